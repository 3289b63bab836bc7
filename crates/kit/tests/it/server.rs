//! A server of the kit with routes of a test.

use std::{sync::Arc, time::Duration};

use nexus_kit::{
    auth::Authenticator,
    config::{AuthArgs, ServeArgs},
    descriptors::connection_places,
    metrics::Metrics,
    serve::{CONNECTION_AGE, GrpcServer},
    status,
    turn::Turns,
};
use tonic::service::Routes;

pub(crate) const SERVICE_SECRET: &str = "the-secret-of-services-0123456789-abcdef";

pub(crate) const USER_SECRET: &str = "the-secret-of-users-0123456789-abcdef";

pub(crate) fn server(routes: Routes) -> GrpcServer {
    let auth = AuthArgs {
        jwt_secret: Some(USER_SECRET.into()),
        jwt_issuer: "nexus".into(),
        jwt_audience: None,
        jwt_jwks: None,
        jwt_public_key: None,
        admin_eco_ids: String::new(),
        service_token_secret: SERVICE_SECRET.into(),
        open_reflection: true,
        open_health: true,
    };
    GrpcServer {
        routes,
        services: &["some.Service"],
        foreign_services: &[],
        auth: Arc::new(Authenticator::new(&auth).expect("good settings")),
        api_keys: Some(Arc::new(|_| Box::pin(async { Err(status::unauthenticated("no key is good here")) }))),
        metrics: Metrics::new(),
        turns: Turns::of(8),
        args: ServeArgs {
            shutdown_grace: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
            max_in_flight: 10,
            tls_cert: None,
            tls_key: None,
        },
        readiness: Arc::new(|| Box::pin(async { Ok(nexus_kit::serve::Ready::Fully) })),
        connection_age: CONNECTION_AGE,
        connections: connection_places(),
    }
}
