//! Admits units, exactly up to a hard limit; a repeated request gets the first answer that admitted it.

use std::{sync::Arc, time::Duration};

use moka::{future::Cache, policy::EvictionPolicy};
use nexus_core::id::{ApiKeyText, EcoId};
use nexus_kit::validate::Violations;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use uuid::Uuid;

use super::{
    quota::{Decision, Quota, Verdict},
    verify_api_key::Keys,
};
use crate::error::Error;

/// How long an answer is remembered for a repeated request.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);
/// Answers remembered at most; then the oldest go first.
const MAX_REMEMBERED: u64 = 1_000_000;

/// Answers of the last minute, by account and request.
#[derive(Clone)]
pub struct Memory(Cache<(EcoId, Uuid), Decision>);

/// Why there is nothing to remember.
#[derive(Debug, Clone)]
enum Undecided {
    /// The caller went away.
    Left,
    /// It consumed nothing, and units may come back.
    Refused(Decision),
    Failed(Arc<Error>),
}

/// Admits units to a caller. A key is verified once more when they are there, for it may have been revoked while they were
/// waited for.
pub async fn admit(
    quota: &Quota,
    (eco_id, units): (&EcoId, i64),
    (keys, key): (&Keys, Option<&ApiKeyText>),
) -> Result<Decision, Error> {
    let (decision, reservation) = quota.reserve(eco_id, units).await?;
    if let Some(key) = key {
        keys.verify(key).await?;
    }
    if let Some(reservation) = reservation {
        reservation.keep();
    }
    Ok(decision)
}

impl Default for Memory {
    fn default() -> Self {
        Self::of(MAX_REMEMBERED)
    }
}

impl Memory {
    /// Of so many answers.
    fn of(capacity: u64) -> Self {
        Self(
            Cache::builder()
                .max_capacity(capacity)
                // Whoever repeats a request does so soon; by default new ones would be turned away from a full cache.
                .eviction_policy(EvictionPolicy::lru())
                .time_to_live(REMEMBERED_FOR)
                .build(),
        )
    }

    /// Admits the units, once per request id; a repeat gets the first answer. Refusals and failures are not remembered,
    /// nor is it decided for a caller who went away before.
    pub async fn run(
        &self,
        quota: &Quota,
        (eco_id, units): (&EcoId, i64),
        request_id: Uuid,
        (keys, key): (&Keys, Option<&ApiKeyText>),
    ) -> Result<Decision, Arc<Error>> {
        let left = CancellationToken::new();
        let _here = left.clone().drop_guard();
        let request = (eco_id.clone(), request_id);
        let (quota, account, memory) = (quota.clone(), eco_id.clone(), self.0.clone());
        let (keys, api_key) = (keys.clone(), key.cloned());
        // A task of its own: what is decided is remembered, whenever the caller goes away.
        let task = async move {
            loop {
                let decide = async {
                    tokio::select! {
                        biased;
                        () = left.cancelled() => Err(Undecided::Left),
                        decision = admit(&quota, (&account, units), (&keys, api_key.as_ref())) => match decision {
                            Ok(refused) if matches!(refused.verdict, Verdict::Refused(_)) => {
                                Err(Undecided::Refused(refused))
                            }
                            Ok(decision) => Ok(decision),
                            Err(error) => Err(Undecided::Failed(Arc::new(error))),
                        }
                    }
                };
                let decided = memory.try_get_with(request.clone(), decide).await;
                match decided.map_err(Arc::unwrap_or_clone) {
                    Ok(decision) | Err(Undecided::Refused(decision)) => return Ok(decision),
                    Err(Undecided::Failed(error)) => return Err(error),
                    // Whoever asked first; who asks again asks for itself.
                    Err(Undecided::Left) if !left.is_cancelled() => {}
                    Err(Undecided::Left) => return Err(Arc::new(Error::Stopping)),
                }
            }
        };
        let decided = tokio::spawn(task.in_current_span()).await;
        let decision = decided.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))?;
        if decision.units != units {
            let message = "was used for another number of units";
            return Err(Arc::new(Error::Invalid(Violations::one("request_id", message))));
        }
        Ok(decision)
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use nexus_core::{period::Period, plan::Plan};

    use super::*;
    use crate::{app::quota::Verdict, clock::BootTime, domain::quota::Terms};

    fn decision() -> Decision {
        let terms =
            Terms { plan: Plan::Pro, included: None, hard: false, priced: false, capped: None, epoch: 0 };
        let period = Period { start: DateTime::UNIX_EPOCH, end: DateTime::UNIX_EPOCH };
        let (verdict, resets) = (Verdict::Open, BootTime::START);
        Decision { units: 1, verdict, consumed: 1, terms, period, resets }
    }

    #[tokio::test]
    async fn of_too_many_answers_the_newest_are_remembered() {
        let memory = Memory::of(100).0;
        let eco_id = EcoId::parse("eco_a").expect("an id");
        let key = |n| (eco_id.clone(), Uuid::from_u128(n));
        for n in 0..1_000 {
            memory.insert(key(n), decision()).await;
        }
        memory.run_pending_tasks().await;
        assert!((950..1_000).all(|n| memory.contains_key(&key(n))));
        assert!((0..850).all(|n| !memory.contains_key(&key(n))));
    }
}
