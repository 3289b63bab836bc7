//! Who is calling, and what a caller may do.
//!
//! * A *user* shows a JWT: HS256 by the shared secret, or RS256, ES256 or EdDSA by a public key. A key
//!   verifies the one algorithm it was made for, so that a public key cannot pass for a shared secret.
//! * A *service* shows a JWT of type `nexus-service+jwt` under a secret of its own, with scopes.
//! * An *API client* shows an API key, which usage-svc looks up; here it is only read.

mod caller;
mod key;
mod token;

use std::{collections::HashSet, fmt};

use chrono::{DateTime, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, decode, decode_header, get_current_timestamp};
use nexus_core::id::{ApiKeyText, EcoId};
use secrecy::ExposeSecret;

pub use self::{
    caller::{Caller, KeyVerifier, Scope, VerifiedKey},
    key::check_secret,
    token::{service_token, user_token},
};
use self::{
    key::{UserKey, check_length, inline_or_file, jwks, pem},
    token::{
        SERVICE_TOKEN_ISSUER, SERVICE_TOKEN_TYPE, ServiceClaims, UserClaims, is_users_type,
        names_critical_extensions, validation,
    },
};
use crate::{config::AuthArgs, good_tokens::GoodTokens};

/// Why credentials do not hold; never says more to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// There are none.
    #[error("credentials are missing")]
    Missing,
    /// They are malformed, expired, from elsewhere, or signed with another key.
    #[error("credentials are invalid")]
    Invalid,
}

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthConfigError {
    /// A secret is too short.
    #[error("{0} must have at least 32 bytes (RFC 7518, section 3.2)")]
    ShortSecret(&'static str),
    /// One secret would serve two purposes.
    #[error(
        "SERVICE_TOKEN_SECRET must differ from JWT_SECRET: whoever signs users' tokens could else sign service tokens"
    )]
    SameSecret,
    /// Users could not be verified.
    #[error("one of JWT_SECRET, JWT_JWKS, JWT_PUBLIC_KEY must be set to verify users")]
    NoUserKey,
    /// A key cannot be read.
    #[error("{name}: {message}")]
    BadKey {
        /// Setting.
        name: &'static str,
        /// What is wrong.
        message: String,
    },
    /// An admin id is none.
    #[error("ADMIN_ECO_IDS: `{0}` is not an account id")]
    BadAdmin(String),
}

/// Verifies credentials.
pub struct Authenticator {
    user_keys: Vec<UserKey>,
    issuer: String,
    audience: Option<String>,
    service_key: DecodingKey,
    admins: HashSet<EcoId>,
    good_tokens: GoodTokens,
    pub(crate) open_reflection: bool,
    pub(crate) open_health: bool,
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

impl Authenticator {
    /// Reads the settings.
    pub fn new(args: &AuthArgs) -> Result<Self, AuthConfigError> {
        let service_secret = args.service_token_secret.expose_secret();
        check_length("SERVICE_TOKEN_SECRET", service_secret)?;
        let mut user_keys = Vec::new();
        if let Some(secret) = &args.jwt_secret {
            let secret = secret.expose_secret();
            check_length("JWT_SECRET", secret)?;
            if secret == service_secret {
                return Err(AuthConfigError::SameSecret);
            }
            let key = DecodingKey::from_secret(secret.as_bytes());
            user_keys.push(UserKey { id: None, algorithm: Algorithm::HS256, key });
        }
        if let Some(source) = &args.jwt_jwks {
            user_keys.extend(jwks("JWT_JWKS", &inline_or_file("JWT_JWKS", source, '{')?)?);
        }
        if let Some(source) = &args.jwt_public_key {
            user_keys.push(pem("JWT_PUBLIC_KEY", &inline_or_file("JWT_PUBLIC_KEY", source, '-')?)?);
        }
        if user_keys.is_empty() {
            return Err(AuthConfigError::NoUserKey);
        }
        let admins = args.admin_eco_ids.split(',').map(str::trim).filter(|id| !id.is_empty());
        let admins = admins.map(|id| EcoId::parse(id).map_err(|_| AuthConfigError::BadAdmin(id.to_owned())));
        Ok(Self {
            user_keys,
            issuer: args.jwt_issuer.clone(),
            audience: args.jwt_audience.clone().filter(|audience| !audience.is_empty()),
            service_key: DecodingKey::from_secret(service_secret.as_bytes()),
            admins: admins.collect::<Result<_, _>>()?,
            good_tokens: GoodTokens::default(),
            open_reflection: args.open_reflection,
            open_health: args.open_health,
        })
    }

    /// Reads an `authorization` header.
    pub fn authenticate(&self, authorization: Option<&str>) -> Result<Caller, AuthError> {
        let (scheme, credentials) =
            authorization.ok_or(AuthError::Missing)?.trim().split_once(' ').ok_or(AuthError::Invalid)?;
        let credentials = credentials.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            self.token(credentials, get_current_timestamp())
        } else if scheme.eq_ignore_ascii_case("apikey") {
            ApiKeyText::parse(credentials).map(Caller::ApiKey).map_err(|_| AuthError::Invalid)
        } else {
            Err(AuthError::Invalid)
        }
    }

    /// Whose a token is, and when it ends: for who keeps one, as a session does.
    pub fn session(&self, token: &str) -> Result<(Caller, DateTime<Utc>), AuthError> {
        self.verify(token)
    }

    fn token(&self, token: &str, now: u64) -> Result<Caller, AuthError> {
        if let Some(caller) = self.good_tokens.caller(token, now) {
            return Ok(caller);
        }
        let (caller, expires) = self.verify(token)?;
        let expires = u64::try_from(expires.timestamp()).map_err(|_| AuthError::Invalid)?;
        self.good_tokens.remember(token, caller.clone(), expires);
        Ok(caller)
    }

    /// Whose a token is, and the last second that it is good in.
    fn verify(&self, token: &str) -> Result<(Caller, DateTime<Utc>), AuthError> {
        let header = decode_header(token).map_err(|_| AuthError::Invalid)?;
        if names_critical_extensions(token) {
            return Err(AuthError::Invalid);
        }
        if header.typ.as_deref() == Some(SERVICE_TOKEN_TYPE) {
            return self.service_token(token);
        }
        if !header.typ.as_deref().is_none_or(is_users_type) {
            return Err(AuthError::Invalid);
        }
        let rules = |algorithm| validation(algorithm, &self.issuer, self.audience.as_deref());
        let fitting = |k: &&UserKey| {
            k.algorithm == header.alg && (header.kid.is_none() || k.id.is_none() || k.id == header.kid)
        };
        let claims: UserClaims = self
            .user_keys
            .iter()
            .filter(fitting)
            .find_map(|k| decode(token, &k.key, &rules(k.algorithm)).ok())
            .ok_or(AuthError::Invalid)?
            .claims;
        let eco_id = EcoId::parse(&claims.eco_id).map_err(|_| AuthError::Invalid)?;
        let admin = self.admins.contains(&eco_id);
        Ok((Caller::User { admin, eco_id, email: claims.email }, instant(claims.exp)?))
    }

    fn service_token(&self, token: &str) -> Result<(Caller, DateTime<Utc>), AuthError> {
        let rules = validation(Algorithm::HS256, SERVICE_TOKEN_ISSUER, None);
        let claims: ServiceClaims =
            decode(token, &self.service_key, &rules).map_err(|_| AuthError::Invalid)?.claims;
        let scopes: Result<Vec<Scope>, _> = claims.scope.split_whitespace().map(str::parse).collect();
        let scopes = scopes.map_err(|_| AuthError::Invalid)?;
        Ok((Caller::Service { name: claims.sub, scopes }, instant(claims.exp)?))
    }
}

fn instant(seconds: i64) -> Result<DateTime<Utc>, AuthError> {
    DateTime::from_timestamp(seconds, 0).ok_or(AuthError::Invalid)
}
