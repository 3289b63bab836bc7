//! When the gateway is ready: once it has reached every service, for as long as it reaches one. With one
//! service away the routes of the others go on and its own answer 503, which a gateway that took itself
//! out of rotation could not do.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use nexus_kit::serve::{Readiness, Ready};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::backend::Backend;

const CHECK_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Asks each service for its health.
pub fn readiness(backend: Arc<Backend>) -> Readiness {
    let reached: Arc<[AtomicBool; 3]> = Arc::default();
    Arc::new(move || {
        let (backend, reached) = (backend.clone(), reached.clone());
        Box::pin(async move { check(&backend, &reached).await })
    })
}

async fn check(backend: &Backend, reached: &[AtomicBool; 3]) -> Result<Ready, String> {
    let options = backend.own(CHECK_TIMEOUT).map_err(|e| e.to_string())?;
    let checks = backend.channels().iter().zip(reached).map(|((name, channel), reached)| {
        let request = options.request(HealthCheckRequest::default());
        async move {
            let mut client = HealthClient::new(channel.clone());
            let answer = tokio::time::timeout(CHECK_TIMEOUT, client.check(request)).await;
            let answers = matches!(answer, Ok(Ok(_)));
            reached.fetch_or(answers, Ordering::Relaxed);
            (!answers).then_some(*name)
        }
    });
    let away: Vec<&str> = join_all(checks).await.into_iter().flatten().collect();
    let all_reached = reached.iter().all(|r| r.load(Ordering::Relaxed));
    if all_reached && away.len() < reached.len() {
        return Ok(if away.is_empty() { Ready::Fully } else { Ready::Degraded });
    }
    Err(format!("away: {}", away.join(", ")))
}
