//! `eco_subscriptions` and the customer in `eco_identities`, where they follow Stripe.

use chrono::{DateTime, Utc};
use nexus_core::{
    id::EcoId,
    plan::{Plan, SubscriptionStatus},
};
use sqlx::PgConnection;

use super::unknown_word;
use crate::domain::{stripe_objects::Subscription, stripe_subscription::Held};

/// The account that has a subscription of Stripe's, or else its customer.
#[tracing::instrument(name = "db.eco_identities.of_stripe", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn account_of(db: &mut PgConnection, found: &Subscription) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar!(
        r#"select coalesce((select eco_id from eco_subscriptions where stripe_subscription_id = $1),
                           (select eco_id from eco_identities where stripe_customer_id = $2))"#,
        found.id,
        found.customer,
    )
    .fetch_one(db)
    .await
}

/// All subscriptions that an account has and had.
#[tracing::instrument(name = "db.eco_subscriptions.list", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn list(db: &mut PgConnection, eco_id: &EcoId) -> sqlx::Result<Vec<Held>> {
    let rows = sqlx::query!(
        r#"select subscription_id, stripe_subscription_id, coalesce(stripe_created_time, started_time) as "created!",
                  status, plan_version, anchor_time, ended_time is null as "is_current!"
           from eco_subscriptions where eco_id = $1 order by subscription_id"#,
        eco_id.as_str(),
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Held {
                subscription_id: row.subscription_id,
                stripe_id: row.stripe_subscription_id,
                created: row.created,
                status: row.status.parse().map_err(unknown_word)?,
                plan_version: row.plan_version,
                anchor: row.anchor_time,
                is_current: row.is_current,
            })
        })
        .collect()
}

/// A subscription as it goes into force.
#[derive(Debug, Clone, Copy)]
pub struct Beginning<'a> {
    /// Plan.
    pub plan: Plan,
    /// Version of it.
    pub version: i32,
    /// State.
    pub status: SubscriptionStatus,
    /// Begins the periods.
    pub anchor: DateTime<Utc>,
    /// Since when.
    pub at: DateTime<Utc>,
    /// Stripe's id, and when it was made there; `None`: it is not at Stripe.
    pub at_stripe: Option<(&'a str, DateTime<Utc>)>,
    /// When it ends by itself, if it does.
    pub cancel: Option<DateTime<Utc>>,
}

/// Begins a subscription of an account that has none in force. Its plan's epoch goes on from those before. One that is
/// known comes into force again.
#[tracing::instrument(name = "db.eco_subscriptions.begin", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn begin(db: &mut PgConnection, eco_id: &EcoId, new: Beginning<'_>) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into eco_subscriptions as s
             (eco_id, plan, plan_version, status, anchor_time, started_time, plan_epoch,
              stripe_subscription_id, stripe_created_time, cancel_time)
         select $1, $2, $3::int, $4, $5::timestamptz, $6::timestamptz, coalesce(max(e.plan_epoch), 0) + 1, $7,
                $8::timestamptz, $9::timestamptz
         from eco_subscriptions e where e.eco_id = $1
         on conflict (stripe_subscription_id) do update set
             plan                = excluded.plan,
             plan_version        = excluded.plan_version,
             status              = excluded.status,
             anchor_time         = excluded.anchor_time,
             plan_epoch          = excluded.plan_epoch,
             stripe_created_time = excluded.stripe_created_time,
             cancel_time         = excluded.cancel_time,
             ended_time          = null
         where s.eco_id = excluded.eco_id",
        eco_id.as_str(),
        new.plan.as_str(),
        new.version,
        new.status.as_str(),
        new.anchor,
        new.at,
        new.at_stripe.map(|(id, _)| id),
        new.at_stripe.map(|(_, created)| created),
        new.cancel,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Records a subscription that was over before it was heard of: it was never in force, so that it began when it ended.
#[tracing::instrument(name = "db.eco_subscriptions.record", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn record(db: &mut PgConnection, eco_id: &EcoId, over: Beginning<'_>) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into eco_subscriptions
             (eco_id, plan, plan_version, status, anchor_time, started_time, ended_time, plan_epoch,
              stripe_subscription_id, stripe_created_time)
         values ($1, $2, $3, $4, $5, $6, $6, 0, $7, $8)
         on conflict (stripe_subscription_id) do nothing",
        eco_id.as_str(),
        over.plan.as_str(),
        over.version,
        over.status.as_str(),
        over.anchor,
        over.at,
        over.at_stripe.map(|(id, _)| id),
        over.at_stripe.map(|(_, created)| created),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Ends a subscription. What waited for the end of its period does not come any more.
#[tracing::instrument(name = "db.eco_subscriptions.end", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn end(
    db: &mut PgConnection,
    subscription_id: i64,
    status: Option<SubscriptionStatus>,
    at: DateTime<Utc>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_subscriptions
         set ended_time = $2, status = coalesce($3, status),
             next_plan = null, next_plan_version = null, next_plan_time = null
         where subscription_id = $1",
        subscription_id,
        at,
        status.map(SubscriptionStatus::as_str),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Notes a subscription's state, when it was made at Stripe, and when it ends by itself. Where other limits hold with it, so do they at once:
/// units granted by those of before are not granted any more.
#[tracing::instrument(name = "db.eco_subscriptions.set_status", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn set_status(
    db: &mut PgConnection,
    subscription_id: i64,
    found: &Subscription,
    other_limits: bool,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_subscriptions
         set status = $2, stripe_created_time = $3, cancel_time = $5,
             plan_epoch = plan_epoch + case when $4 then 1 else 0 end
         where subscription_id = $1 and (status, stripe_created_time, cancel_time) is distinct from ($2, $3, $5)",
        subscription_id,
        found.status.as_str(),
        found.created,
        other_limits,
        found.cancel_at,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Has a subscription's periods begin otherwise. A change of plan that waits for the end of one waits for the new one's.
#[tracing::instrument(name = "db.eco_subscriptions.set_anchor", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn set_anchor(
    db: &mut PgConnection,
    subscription_id: i64,
    anchor: DateTime<Utc>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_subscriptions
         set anchor_time = $2, plan_epoch = plan_epoch + 1,
             next_plan_time = case when next_plan_time > now() then nexus_period_end($2, greatest($2, now()))
                                   else next_plan_time end
         where subscription_id = $1",
        subscription_id,
        anchor,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Has the account's charges go to a customer; `or_keep`: unless they go to one already.
#[tracing::instrument(name = "db.eco_identities.set_customer", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn set_customer(
    db: &mut PgConnection,
    eco_id: &EcoId,
    customer: &str,
    or_keep: bool,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_identities set stripe_customer_id = $2
         where eco_id = $1 and stripe_customer_id is distinct from $2 and (stripe_customer_id is null or not $3)",
        eco_id.as_str(),
        customer,
        or_keep,
    )
    .execute(db)
    .await?;
    Ok(())
}
