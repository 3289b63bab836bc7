//! `eco_operator_notices`: what operators are told, each occurrence once; and what there is to tell.

use std::{collections::BTreeMap, time::Duration};

use chrono::TimeDelta;
use sqlx::{PgConnection, types::Json};

use crate::domain::{
    notice::{DriftLeft, FailedRun, Notice, Overdue},
    reconciliation::{Difference, Kind},
};

/// Occurrences of a kind that are read at once; the others are found when these are written down.
const AT_ONCE: i64 = 20;

/// Runs that failed within `since`, or have given no sign of life for `silence`, and that no notice is of; the first
/// of them, without the errors of their accounts.
#[tracing::instrument(name = "db.eco_overage_runs.failed", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn failed_runs(
    db: &mut PgConnection,
    since: TimeDelta,
    silence: TimeDelta,
) -> sqlx::Result<Vec<FailedRun>> {
    let rows = sqlx::query!(
        r#"select r.run_id, r.started_time, r.finished_time, r.processed, r.charged, r.failed
           from eco_overage_runs r
           where r.status <> 'finished' and coalesce(r.finished_time, r.heartbeat_time) > now() - $1::interval
             and (r.status = 'failed' or r.heartbeat_time < now() - $2::interval)
             and not exists (select from eco_operator_notices n
                             where n.kind = 'run_failed'
                               and n.subject = r.run_id::text || ' ' || (extract(epoch from r.started_time) * 1000000)::bigint)
           order by coalesce(r.finished_time, r.heartbeat_time)
           limit $3"#,
        since as _,
        silence as _,
        AT_ONCE,
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| FailedRun {
            run_id: row.run_id,
            started_time: row.started_time,
            finished_time: row.finished_time,
            processed: row.processed,
            charged: row.charged,
            failed: row.failed,
            errors: Vec::new(),
        })
        .collect())
}

/// Since when no run over all accounts has finished, if that is longer than `after`. Before the first run it is the
/// first account that one could have been for.
#[tracing::instrument(name = "db.eco_overage_runs.overdue", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn overdue(db: &mut PgConnection, after: Duration) -> sqlx::Result<Option<Overdue>> {
    sqlx::query_as!(
        Overdue,
        r#"select since as "since!",
                  floor(extract(epoch from now() - since) / extract(epoch from $1::interval))::bigint as "times!"
           from (select coalesce((select max(r.finished_time) from eco_overage_runs r
                                  where r.status = 'finished' and r.account_ids is null),
                                 (select min(i.created_time) from eco_identities i)) as since) s
           where since <= now() - $1::interval"#,
        after as _,
    )
    .fetch_optional(db)
    .await
}

/// Reconciliations that ended within `since` and left differences, and that no notice is of; the first of them.
#[tracing::instrument(name = "db.eco_reconciliations.drift_left", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn drift_left(db: &mut PgConnection, since: TimeDelta) -> sqlx::Result<Vec<DriftLeft>> {
    let rows = sqlx::query!(
        r#"select c.reconciliation_id, c.finished_time as "finished_time!",
                  c.drift as "drift: Json<BTreeMap<Kind, i64>>",
                  c.differences as "differences: Json<Vec<Difference>>"
           from eco_reconciliations c
           where c.status = 'finished' and c.finished_time > now() - $1::interval and c.drift <> '{}'
             and not exists (select from eco_operator_notices n
                             where n.kind = 'drift_found' and n.subject = c.reconciliation_id::text)
           order by c.finished_time
           limit $2"#,
        since as _,
        AT_ONCE,
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| DriftLeft {
            reconciliation_id: row.reconciliation_id,
            finished_time: row.finished_time,
            drift: row.drift.0,
            differences: row.differences.0,
        })
        .collect())
}

/// Writes a notice down, unless there is one of its occurrence; whether it was new.
#[tracing::instrument(name = "db.eco_operator_notices.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert(db: &mut PgConnection, notice: &Notice) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "insert into eco_operator_notices (kind, subject, message) values ($1, $2, $3) on conflict do nothing",
        notice.kind.as_str(),
        notice.subject,
        notice.message,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// A notice that is this process's to send, until the lease ends.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// Which.
    pub notice_id: i64,
    /// Attempts, this one included; who has a later one has the notice.
    pub tries: i32,
    /// What is told.
    pub message: String,
}

/// Takes the notice that is due the longest.
#[tracing::instrument(name = "db.eco_operator_notices.claim", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn claim(db: &mut PgConnection, lease: Duration) -> sqlx::Result<Option<Claimed>> {
    sqlx::query_as!(
        Claimed,
        "with due as (
             select notice_id from eco_operator_notices
             where status = 'pending' and due_time <= now() and (lease_end_time is null or lease_end_time <= now())
             order by due_time, notice_id
             limit 1
             for update skip locked)
         update eco_operator_notices n
         set tries = n.tries + 1, lease_end_time = now() + $1::interval
         from due where n.notice_id = due.notice_id
         returning n.notice_id, n.tries, n.message",
        lease as _,
    )
    .fetch_optional(db)
    .await
}

/// It was told.
#[tracing::instrument(name = "db.eco_operator_notices.sent", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn sent(db: &mut PgConnection, claimed: &Claimed) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_operator_notices set status = 'sent', lease_end_time = null, finished_time = now(), error = null
         where notice_id = $1 and tries = $2 and status = 'pending'",
        claimed.notice_id,
        claimed.tries,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// It could not be told: it is tried again after a pause, or not any more.
#[tracing::instrument(name = "db.eco_operator_notices.fail", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn fail(
    db: &mut PgConnection,
    claimed: &Claimed,
    error: &str,
    pause: Option<Duration>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_operator_notices
         set status = case when $4::interval is null then 'failed' else 'pending' end,
             finished_time = case when $4::interval is null then now() end,
             due_time = now() + coalesce($4::interval, interval '0'), lease_end_time = null, error = $3
         where notice_id = $1 and tries = $2 and status = 'pending'",
        claimed.notice_id,
        claimed.tries,
        error,
        pause as _,
    )
    .execute(db)
    .await?;
    Ok(())
}
