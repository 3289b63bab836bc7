//! `eco_overage_run_accounts`: accounts that a run looked at and did not simply charge, and why.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::run::AccountError;

/// There was nothing to charge an account for, unless something else is known of it.
#[tracing::instrument(name = "db.eco_overage_run_accounts.note", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn note(db: &mut PgConnection, run_id: Uuid, eco_id: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into eco_overage_run_accounts (run_id, eco_id) values ($1, $2) on conflict do nothing",
        run_id,
        eco_id,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Keeps why an account could not be charged.
#[tracing::instrument(name = "db.eco_overage_run_accounts.fail", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn fail(db: &mut PgConnection, run_id: Uuid, error: &AccountError) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into eco_overage_run_accounts (run_id, eco_id, reason, message) values ($1, $2, $3, $4)
         on conflict (run_id, eco_id) do update set reason = excluded.reason, message = excluded.message",
        run_id,
        error.eco_id,
        error.reason,
        error.message,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Keeps why periods take no charge that were parked outside of runs, unless something else is told of their account;
/// it is told once.
#[tracing::instrument(name = "db.eco_overage_run_accounts.tell_parked", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn tell_parked(
    db: &mut PgConnection,
    run_id: Uuid,
    accounts: Option<&[String]>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "with untold as (
             select distinct on (r.eco_id) r.eco_id, r.period_start, r.parked_reason, r.parked_message
             from eco_usage_records r
             where r.parked_message is not null and r.parked_reason is not null
               and ($2::text[] is null or r.eco_id = any ($2))
               and not exists (select from eco_overage_run_accounts a
                               where a.run_id = $1 and a.eco_id = r.eco_id and a.reason is not null)
             order by r.eco_id, r.period_start),
         told as (
             update eco_usage_records r set parked_message = null from untold u
             where r.eco_id = u.eco_id and r.period_start = u.period_start)
         insert into eco_overage_run_accounts (run_id, eco_id, reason, message)
         select $1, u.eco_id, u.parked_reason, u.parked_message from untold u
         on conflict (run_id, eco_id) do update set reason = excluded.reason, message = excluded.message",
        run_id,
        accounts as Option<&[String]>,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Forgets what is known of accounts that are looked at again; returns for each of which something was whether it
/// had failed.
#[tracing::instrument(name = "db.eco_overage_run_accounts.forget", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn forget(db: &mut PgConnection, run_id: Uuid, eco_ids: &[String]) -> sqlx::Result<Vec<bool>> {
    sqlx::query_scalar!(
        r#"delete from eco_overage_run_accounts where run_id = $1 and eco_id = any ($2)
           returning reason is not null as "had_failed!""#,
        run_id,
        eco_ids,
    )
    .fetch_all(db)
    .await
}

/// Accounts that failed in a run, by their ids, after one of them.
#[tracing::instrument(name = "db.eco_overage_run_accounts.errors", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn errors(
    db: &mut PgConnection,
    run_id: Uuid,
    after: &str,
    limit: i64,
) -> sqlx::Result<Vec<AccountError>> {
    sqlx::query_as!(
        AccountError,
        r#"select eco_id, reason as "reason!", message as "message!" from eco_overage_run_accounts
           where run_id = $1 and eco_id > $2 and reason is not null
           order by eco_id
           limit $3"#,
        run_id,
        after,
        limit,
    )
    .fetch_all(db)
    .await
}
