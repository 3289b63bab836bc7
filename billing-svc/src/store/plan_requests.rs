//! `eco_plan_requests`: the answers of changes of plan, for repeats.

use chrono::{DateTime, Utc};
use nexus_core::{id::EcoId, plan::Plan};
use sqlx::PgConnection;
use uuid::Uuid;

use super::unknown_word;
use crate::domain::{of_a_day::OfADay, plan_change::PlanChange};

/// What was asked for and answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answered {
    /// The plan asked for.
    pub plan: Plan,
    /// Whether it was to apply now.
    pub apply_now: bool,
    /// The plan in force afterwards.
    pub account_plan: Plan,
    /// When the change applies.
    pub apply_time: DateTime<Utc>,
}

/// The answer to a request.
#[tracing::instrument(name = "db.eco_plan_requests.get", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn get(db: &mut PgConnection, eco_id: &EcoId, request_id: Uuid) -> sqlx::Result<Option<Answered>> {
    let row = sqlx::query!(
        "select plan, apply_now, account_plan, apply_time from eco_plan_requests
         where eco_id = $1 and request_id = $2",
        eco_id.as_str(),
        request_id,
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        Ok(Answered {
            plan: row.plan.parse().map_err(unknown_word)?,
            apply_now: row.apply_now,
            account_plan: row.account_plan.parse().map_err(unknown_word)?,
            apply_time: row.apply_time,
        })
    })
    .transpose()
}

/// Keeps the answer of a change, if it has a request id; false where the request has an answer already.
#[tracing::instrument(name = "db.eco_plan_requests.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert(
    db: &mut PgConnection,
    change: &PlanChange,
    account_plan: Plan,
    apply_time: DateTime<Utc>,
) -> sqlx::Result<bool> {
    let Some(request_id) = change.request_id else { return Ok(true) };
    let inserted = sqlx::query!(
        "insert into eco_plan_requests (eco_id, request_id, plan, apply_now, account_plan, apply_time)
         values ($1, $2, $3, $4, $5, $6)
         on conflict do nothing",
        change.eco_id.as_str(),
        request_id,
        change.plan.as_str(),
        change.apply_now,
        account_plan.as_str(),
        apply_time,
    )
    .execute(db)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

/// The requests of an account that are kept since less than 24 hours.
#[tracing::instrument(name = "db.eco_plan_requests.of_a_day", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn of_a_day(db: &mut PgConnection, eco_id: &EcoId) -> sqlx::Result<OfADay> {
    sqlx::query_as!(
        OfADay,
        r#"select count(*) as "count!",
                  coalesce(extract(epoch from min(created_time) + interval '24 hours' - now()) * 1000, 0)::bigint
                      as "oldest_leaves_in_ms!"
           from eco_plan_requests where eco_id = $1 and created_time > now() - interval '24 hours'"#,
        eco_id.as_str(),
    )
    .fetch_one(db)
    .await
}
