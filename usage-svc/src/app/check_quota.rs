//! Admits units, exactly up to a hard limit: one row lock per account and period decides.

use std::{sync::Arc, time::Duration};

use moka::future::Cache;
use nexus_core::id::EcoId;
use nexus_kit::{db, validate::Violations};
use sqlx::PgPool;
use tracing::Instrument;
use uuid::Uuid;

use crate::{domain::quota::Standing, error::Error, store};

/// How long an answer is remembered for a repeated request.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);
/// Answers remembered at most.
const MAX_REMEMBERED: u64 = 100_000;

/// The answer of a check.
#[derive(Debug, Clone, Copy)]
pub struct Decision {
    /// Units asked for.
    pub units: i64,
    /// Lease they were granted under; `None`: refused.
    pub admission: Option<Uuid>,
    /// Units consumed in the period, a grant included.
    pub consumed: i64,
    /// Where the account stands; its consumption is from before a grant.
    pub standing: Standing,
}

/// Answers of the last minute, by account and request.
#[derive(Clone)]
pub struct Memory(Cache<(EcoId, Uuid), Decision>);

impl Default for Memory {
    fn default() -> Self {
        Self(Cache::builder().max_capacity(MAX_REMEMBERED).time_to_live(REMEMBERED_FOR).build())
    }
}

impl Memory {
    /// [`run`], once per request id; a repeat gets the first answer. Failures are not remembered.
    pub async fn run(
        &self,
        pool: &PgPool,
        eco_id: &EcoId,
        units: i64,
        request_id: Uuid,
    ) -> Result<Decision, Arc<Error>> {
        let key = (eco_id.clone(), request_id);
        // A task of its own: what has begun is finished and remembered, though the caller goes away.
        let (pool, account, memory) = (pool.clone(), eco_id.clone(), self.0.clone());
        let task = tokio::spawn(
            async move { memory.try_get_with(key, run(&pool, &account, units)).await }.in_current_span(),
        );
        let decision = task.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))?;
        if decision.units != units {
            let message = "was used for another number of units";
            return Err(Arc::new(Error::Invalid(Violations::one("request_id", message))));
        }
        Ok(decision)
    }
}

/// Grants all of the units or none.
pub async fn run(pool: &PgPool, eco_id: &EcoId, units: i64) -> Result<Decision, Error> {
    let mut transaction = db::begin(pool).await?;
    let standing = standing(&mut transaction, eco_id).await?;
    let (start, limit) = (standing.period.start, standing.terms.hard_limit());
    let mut consumed = store::quota_usage::grant(&mut transaction, eco_id, start, units, limit).await?;
    if consumed.is_none() {
        // Over the limit, or the first of the period: then there is a row now.
        store::quota_usage::begin_period(&mut transaction, eco_id, start).await?;
        consumed = store::quota_usage::grant(&mut transaction, eco_id, start, units, limit).await?;
    }
    let Some(consumed) = consumed else {
        let standing = self::standing(&mut transaction, eco_id).await?;
        let consumed = standing.consumption.consumed();
        return Ok(Decision { units, admission: None, consumed, standing });
    };
    let lease = Uuid::now_v7();
    store::quota_leases::insert(&mut transaction, lease, eco_id, standing.period, units).await?;
    transaction.commit().await?;
    Ok(Decision { units, admission: Some(lease), consumed, standing })
}

/// Where an open account stands.
pub async fn standing(connection: &mut sqlx::PgConnection, eco_id: &EcoId) -> Result<Standing, Error> {
    let standing = store::accounts::standing(connection, eco_id).await?.ok_or(Error::UnknownAccount)?;
    if standing.closed { Err(Error::ClosedAccount) } else { Ok(standing) }
}
