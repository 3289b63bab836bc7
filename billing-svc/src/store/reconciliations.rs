//! `eco_reconciliations`: every reconciliation, with what it found.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::{Executor, PgConnection, types::Json};
use uuid::Uuid;

use super::unknown_word;
use crate::domain::reconciliation::{Difference, Findings, Kind, Scope, Status};

/// A reconciliation as it is kept.
#[derive(Debug, Clone)]
pub struct Reconciliation {
    /// Id.
    pub reconciliation_id: Uuid,
    /// How it is.
    pub status: Status,
    /// What it found.
    pub findings: Findings,
    /// How long it has taken, or took.
    pub duration_ms: i64,
}

/// One to be worked on.
#[derive(Debug, Clone)]
pub struct Begun {
    /// Id.
    pub reconciliation_id: Uuid,
    /// What is compared.
    pub scope: Scope,
    /// Whether what can be repaired is.
    pub repair: bool,
}

/// Marks those that a killed process left behind. Only the holder of the lease may say so.
#[tracing::instrument(name = "db.eco_reconciliations.fail_orphans", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn fail_orphans(db: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_reconciliations set status = 'failed', finished_time = now() where status = 'running'"
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Begins one.
#[tracing::instrument(name = "db.eco_reconciliations.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert(db: &mut PgConnection, begun: &Begun, request_id: Option<Uuid>) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into eco_reconciliations (reconciliation_id, request_id, account_ids, period_time, repair, status)
         values ($1, $2, $3, $4, $5, 'running')",
        begun.reconciliation_id,
        request_id,
        begun.scope.accounts.as_deref() as Option<&[String]>,
        begun.scope.period_time,
        begun.repair,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Begins one again that was cut short.
#[tracing::instrument(name = "db.eco_reconciliations.restart", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn restart(db: &mut PgConnection, reconciliation_id: Uuid) -> sqlx::Result<Begun> {
    let row = sqlx::query!(
        "update eco_reconciliations set status = 'running', started_time = now(), finished_time = null
         where reconciliation_id = $1
         returning account_ids, period_time, repair",
        reconciliation_id,
    )
    .fetch_one(db)
    .await?;
    let scope = Scope { accounts: row.account_ids, period_time: row.period_time };
    Ok(Begun { reconciliation_id, scope, repair: row.repair })
}

/// Keeps what was found, and how it ended.
#[tracing::instrument(name = "db.eco_reconciliations.finish", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn finish(
    db: &mut PgConnection,
    reconciliation_id: Uuid,
    findings: &Findings,
    status: Status,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_reconciliations
         set status = $2, accounts = $3, periods = $4, items = $5, difference_count = $6, repaired_count = $7,
             drift = $8, differences = $9, finished_time = now()
         where reconciliation_id = $1 and status = 'running'",
        reconciliation_id,
        status.as_str(),
        findings.accounts,
        findings.periods,
        findings.items,
        findings.total,
        findings.repaired,
        Json(&findings.drift) as _,
        Json(&findings.differences) as _,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The reconciliation of a request.
#[tracing::instrument(name = "db.eco_reconciliations.find_by_request", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn find_by_request(
    db: &mut PgConnection,
    request_id: Uuid,
) -> sqlx::Result<Option<Reconciliation>> {
    let row = sqlx::query!(
        r#"select reconciliation_id, status, accounts, periods, items, difference_count, repaired_count,
                  drift as "drift: Json<BTreeMap<Kind, i64>>", differences as "differences: Json<Vec<Difference>>",
                  (extract(epoch from coalesce(finished_time, now()) - started_time) * 1000)::bigint as "duration_ms!"
           from eco_reconciliations where request_id = $1"#,
        request_id,
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        Ok(Reconciliation {
            reconciliation_id: row.reconciliation_id,
            status: row.status.parse().map_err(unknown_word)?,
            findings: Findings {
                accounts: row.accounts,
                periods: row.periods,
                items: row.items,
                total: row.difference_count,
                repaired: row.repaired_count,
                drift: row.drift.0,
                differences: row.differences.0,
            },
            duration_ms: row.duration_ms,
        })
    })
    .transpose()
}

/// What was left by the last reconciliation over all accounts, and how long ago that was, in seconds.
#[tracing::instrument(name = "db.eco_reconciliations.last_drift", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn last_drift(db: &mut PgConnection) -> sqlx::Result<Option<(BTreeMap<Kind, i64>, i64)>> {
    let row = sqlx::query!(
        r#"select drift as "drift: Json<BTreeMap<Kind, i64>>",
                  extract(epoch from finished_time)::bigint as "finished!"
           from eco_reconciliations
           where status = 'finished' and account_ids is null and period_time is null
           order by finished_time desc limit 1"#
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| (row.drift.0, row.finished)))
}

/// Lets the statements of this transaction take their time, and returns that of its beginning.
#[tracing::instrument(name = "db.eco_reconciliations.take_time", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn take_time(db: &mut PgConnection) -> sqlx::Result<DateTime<Utc>> {
    db.execute(
        "set local statement_timeout = '30min'; set local idle_in_transaction_session_timeout = '10min'",
    )
    .await?;
    sqlx::query_scalar!(r#"select now() as "now!""#).fetch_one(db).await
}
