//! Settings of a server under test, and tokens that it accepts.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use chrono::{TimeDelta, Utc};
use nexus_core::id::EcoId;
use nexus_kit::{
    auth::{self, Scope},
    config::{AuthArgs, ServeArgs},
};
use secrecy::SecretString;
use tokio::net::TcpSocket;

/// Secret of users' tokens in tests.
pub const JWT_SECRET: &str = "users-tokens-in-tests-0123456789abcdef";
/// Secret of service tokens in tests.
pub const SERVICE_TOKEN_SECRET: &str = "service-tokens-in-tests-0123456789abcdef";
/// Issuer of users' tokens in tests.
pub const ISSUER: &str = "nexus";
/// The admin's account in tests.
pub const ADMIN: &str = "eco_admin";

/// A free port on loopback.
pub const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// An address on loopback where nobody listens. As long as this process lives no other is given it: the port is bound,
/// though not listened on. A server of the test's own may still be told to listen there.
pub fn nowhere() -> Result<SocketAddr> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(ANY_PORT)?;
    let address = socket.local_addr()?;
    std::mem::forget(socket);
    Ok(address)
}

/// Who may call a server under test.
pub fn auth_args() -> AuthArgs {
    AuthArgs {
        jwt_secret: Some(JWT_SECRET.into()),
        jwt_issuer: ISSUER.to_owned(),
        jwt_audience: None,
        jwt_jwks: None,
        jwt_public_key: None,
        admin_eco_ids: ADMIN.to_owned(),
        service_token_secret: SERVICE_TOKEN_SECRET.into(),
        open_reflection: true,
        open_health: true,
    }
}

/// How a server under test serves.
pub fn serve_args() -> ServeArgs {
    ServeArgs {
        shutdown_grace: Duration::from_secs(10),
        request_timeout: Duration::from_secs(30),
        max_in_flight: 10_000,
        tls_cert: None,
        tls_key: None,
    }
}

/// A user's token, good for an hour.
pub fn user_token(eco_id: &str) -> Result<String> {
    let expires = Utc::now() + TimeDelta::hours(1);
    Ok(auth::user_token(
        &SecretString::from(JWT_SECRET),
        ISSUER,
        None,
        &EcoId::parse(eco_id)?,
        None,
        expires,
    )?)
}

/// The admin's token, good for an hour.
pub fn admin_token() -> Result<String> {
    user_token(ADMIN)
}

/// A service token with these scopes, good for an hour.
pub fn service_token(scopes: &[Scope]) -> Result<String> {
    let expires = Utc::now() + TimeDelta::hours(1);
    Ok(auth::service_token(&SecretString::from(SERVICE_TOKEN_SECRET), "tests", scopes, expires)?)
}
