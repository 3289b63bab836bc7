//! `eco_subscriptions`, where plans change, and the locks of that.

use chrono::{DateTime, Utc};
use nexus_core::{id::EcoId, period::Period, plan::Plan};
use sqlx::PgConnection;

use super::unknown_word;
use crate::domain::plan_change::{Subscription, WaitingPlan};

/// Keeps everybody out who counts calls of the account, until the transaction ends: who counts holds the same
/// lock shared. What later statements read has all that was counted. A transaction that has it waits for no lock that
/// somebody holds who may want it: those of an event and of an object of Stripe's are taken before it, and are only tried,
/// or waited for before any other; rows of accounts, subscriptions and periods are locked after it.
#[tracing::instrument(name = "db.plan_locks.seize", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn seize(db: &mut PgConnection, eco_id: &EcoId) -> sqlx::Result<()> {
    sqlx::query!(
        "select pg_advisory_xact_lock(hashtext('nexus_plan_range'), nexus_plan_range($1))",
        eco_id.as_str(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The account's subscription, or its last, with the period that contains this very moment: the transaction
/// may be older, if it waited.
#[tracing::instrument(name = "db.eco_subscriptions.get", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn get(db: &mut PgConnection, eco_id: &EcoId) -> sqlx::Result<Option<Subscription>> {
    let row = sqlx::query!(
        r#"select s.subscription_id, s.plan, s.next_plan, s.next_plan_time, s.stripe_subscription_id, s.cancel_time,
                  i.currency_code, i.closed_time, c.now as "now!",
                  nexus_period_start(s.anchor_time, c.now) as "period_start!",
                  nexus_period_end(s.anchor_time, c.now) as "period_end!"
           from (select clock_timestamp() as now offset 0) c
           cross join eco_identities i
           join eco_subscriptions s on s.eco_id = i.eco_id
           where i.eco_id = $1
           order by s.ended_time desc nulls first, s.subscription_id desc
           limit 1"#,
        eco_id.as_str(),
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        let waiting = match row.next_plan.zip(row.next_plan_time) {
            Some((plan, time)) => Some(WaitingPlan { plan: plan.parse().map_err(unknown_word)?, time }),
            None => None,
        };
        Ok(Subscription {
            subscription_id: row.subscription_id,
            plan: row.plan.parse().map_err(unknown_word)?,
            waiting,
            stripe_subscription_id: row.stripe_subscription_id,
            cancel_time: row.cancel_time,
            currency: row.currency_code.parse().map_err(unknown_word)?,
            closed_time: row.closed_time,
            period: Period { start: row.period_start, end: row.period_end },
            now: row.now,
        })
    })
    .transpose()
}

/// What waits is the plan.
#[tracing::instrument(name = "db.eco_subscriptions.apply_waiting", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn apply_waiting(db: &mut PgConnection, subscription_id: i64) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_subscriptions
         set plan = next_plan, plan_version = next_plan_version, plan_epoch = plan_epoch + 1,
             next_plan = null, next_plan_version = null, next_plan_time = null
         where subscription_id = $1",
        subscription_id,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Changes the plan, and drops what waits.
#[tracing::instrument(name = "db.eco_subscriptions.set_plan", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn set_plan(
    db: &mut PgConnection,
    subscription_id: i64,
    plan: Plan,
    version: i32,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_subscriptions
         set plan = $2, plan_version = $3, plan_epoch = plan_epoch + 1,
             next_plan = null, next_plan_version = null, next_plan_time = null
         where subscription_id = $1",
        subscription_id,
        plan.as_str(),
        version,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Sets what waits, or that nothing does.
#[tracing::instrument(name = "db.eco_subscriptions.set_waiting", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn set_waiting(
    db: &mut PgConnection,
    subscription_id: i64,
    waiting: Option<(Plan, i32, DateTime<Utc>)>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_subscriptions set next_plan = $2, next_plan_version = $3, next_plan_time = $4
         where subscription_id = $1",
        subscription_id,
        waiting.map(|(plan, _, _)| plan.as_str()),
        waiting.map(|(_, version, _)| version),
        waiting.map(|(_, _, time)| time),
    )
    .execute(db)
    .await?;
    Ok(())
}
