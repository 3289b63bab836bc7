//! Adds a version of a plan. Accounts that have the plan get it with their next period: it is written on their
//! subscriptions as a change that waits for the period's end is, so that the period goes on by the terms it began with.

use std::time::Duration;

use nexus_kit::{db, validate::Violations};
use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    domain::plan::{NewPlanVersion, PlanVersion},
    error::Error,
    store::{plans, requests},
};

const METHOD: &str = "UpsertPlan";
/// After a try that failed.
const PAUSE: Duration = Duration::from_secs(2);

/// Returns the version. One that is the same as the newest is that one. A repeat of a request returns the first answer,
/// and hands the version out to accounts that the first did not come to.
pub async fn run(
    pool: &PgPool,
    new: &NewPlanVersion,
    request_id: Uuid,
    actor: &str,
) -> Result<PlanVersion, Error> {
    let mut transaction = db::begin(pool).await?;
    db::set_actor(&mut transaction, actor).await?;
    plans::lock(&mut transaction).await?;
    let made = match requests::find::<NewPlanVersion, i32>(&mut transaction, METHOD, request_id).await? {
        Some((asked, _)) if asked != *new => {
            return Err(Violations::one("request_id", "was used for another version").into());
        }
        Some((_, version)) => version,
        None => {
            let version = make(&mut transaction, new).await?;
            requests::insert(&mut transaction, METHOD, request_id, new, &version).await?;
            version
        }
    };
    let version = plans::get(&mut transaction, new.plan, made).await?.ok_or(sqlx::Error::RowNotFound)?;
    transaction.commit().await?;
    hand_out(pool, Some(actor)).await?;
    Ok(version)
}

async fn make(db: &mut PgConnection, new: &NewPlanVersion) -> Result<i32, Error> {
    let newest = plans::list_newest(db).await?.into_iter().find(|version| version.plan == new.plan);
    if let Some(newest) = &newest
        && new.is(newest)
    {
        return Ok(newest.version);
    }
    let mut missing = plans::currencies_of_accounts(db, new.plan).await?;
    missing.retain(|code| new.prices.iter().all(|price| price.currency_code != *code));
    if !missing.is_empty() {
        let message = format!("must have one in {}: accounts of the plan have", missing.join(", "));
        return Err(Violations::one("plan.prices", message).into());
    }
    Ok(plans::insert(db, new).await?)
}

/// Hands out what a process that is gone did not come to hand out, once the database answers. To be called at the start.
pub async fn take_up(pool: PgPool, shutdown: CancellationToken) {
    let mut failed = false;
    while !shutdown.is_cancelled() {
        match hand_out(&pool, None).await {
            Ok(()) => return,
            Err(error) if failed => {
                tracing::debug!(%error, "versions of plans could still not be handed out")
            }
            Err(error) => {
                tracing::warn!(%error, "versions of plans could not be handed out");
                failed = true;
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// Hands the newest versions out where an account does not wait for its own yet: a range of accounts at a time, so that
/// no flush waits long.
async fn hand_out(pool: &PgPool, actor: Option<&str>) -> Result<(), Error> {
    let ranges = {
        let mut connection = db::acquire(pool).await?;
        plans::ranges_behind(&mut connection).await?
    };
    for range in ranges {
        let mut transaction = db::begin(pool).await?;
        plans::seize_range(&mut transaction, range).await?;
        if let Some(actor) = actor {
            db::set_actor(&mut transaction, actor).await?;
        }
        plans::hand_out(&mut transaction, Some(range), None).await?;
        transaction.commit().await?;
    }
    Ok(())
}
