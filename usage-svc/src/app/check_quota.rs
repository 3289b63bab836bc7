//! Admits units, exactly up to a hard limit; a repeated request gets the first answer.

use std::{sync::Arc, time::Duration};

use moka::future::Cache;
use nexus_core::id::EcoId;
use nexus_kit::validate::Violations;
use tracing::Instrument;
use uuid::Uuid;

use super::quota::{Decision, Quota};
use crate::error::Error;

/// How long an answer is remembered for a repeated request.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);
/// Answers remembered at most.
const MAX_REMEMBERED: u64 = 100_000;

/// Answers of the last minute, by account and request.
#[derive(Clone)]
pub struct Memory(Cache<(EcoId, Uuid), Decision>);

impl Default for Memory {
    fn default() -> Self {
        Self(Cache::builder().max_capacity(MAX_REMEMBERED).time_to_live(REMEMBERED_FOR).build())
    }
}

impl Memory {
    /// Admits the units, once per request id; a repeat gets the first answer. Failures are not remembered.
    pub async fn run(
        &self,
        quota: &Quota,
        eco_id: &EcoId,
        units: i64,
        request_id: Uuid,
    ) -> Result<Decision, Arc<Error>> {
        let key = (eco_id.clone(), request_id);
        // A task of its own: what has begun is finished and remembered, though the caller goes away.
        let (quota, account, memory) = (quota.clone(), eco_id.clone(), self.0.clone());
        let task = tokio::spawn(
            async move { memory.try_get_with(key, quota.admit(&account, units)).await }.in_current_span(),
        );
        let decision = task.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))?;
        if decision.units != units {
            let message = "was used for another number of units";
            return Err(Arc::new(Error::Invalid(Violations::one("request_id", message))));
        }
        Ok(decision)
    }
}
