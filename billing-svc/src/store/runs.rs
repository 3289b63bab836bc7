//! `eco_overage_runs`: every run, with its figures.

use chrono::{DateTime, Utc};
use nexus_core::money::Micros;
use sqlx::PgConnection;
use uuid::Uuid;

use super::unknown_word;
use crate::domain::run::{Figures, Run, RunStatus};

/// A run to be worked on. Whoever began it last may write its row: `started_time` tells them apart.
#[derive(Debug, Clone)]
pub struct Begun {
    /// Id.
    pub run_id: Uuid,
    /// When it was begun, or begun again.
    pub started_time: DateTime<Utc>,
    /// Only these accounts; `None`: all.
    pub accounts: Option<Vec<String>>,
    /// What was done before it was begun again; `None`: it is new.
    pub resumed: Option<Figures>,
}

struct Row {
    run_id: Uuid,
    status: String,
    accounts: i32,
    processed: i32,
    charged: i32,
    failed: i32,
    total_micros: i64,
    limited: bool,
    started_time: DateTime<Utc>,
    heartbeat_time: DateTime<Utc>,
    finished_time: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
}

impl TryFrom<Row> for Run {
    type Error = sqlx::Error;
    fn try_from(row: Row) -> Result<Self, sqlx::Error> {
        Ok(Self {
            run_id: row.run_id,
            status: row.status.parse().map_err(unknown_word)?,
            figures: Figures {
                accounts: row.accounts,
                processed: row.processed,
                charged: row.charged,
                failed: row.failed,
                total: Micros(row.total_micros),
            },
            limited: row.limited,
            started_time: row.started_time,
            heartbeat_time: row.heartbeat_time,
            finished_time: row.finished_time,
            now: row.now,
        })
    }
}

/// Marks runs that a killed process left behind, with what they have done. Only the holder of the lease may say so.
#[tracing::instrument(name = "db.eco_overage_runs.fail_orphans", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn fail_orphans(db: &mut PgConnection) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        "update eco_overage_runs r
         set status = 'failed', finished_time = now(),
             (processed, charged, failed, total_micros)
                 = (select f.processed, f.charged, f.failed, f.total_micros from nexus_run_figures(r.run_id) f)
         where status = 'running'"
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Begins a run.
#[tracing::instrument(name = "db.eco_overage_runs.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert(
    db: &mut PgConnection,
    run_id: Uuid,
    request_id: Option<Uuid>,
    accounts: Option<Vec<String>>,
) -> sqlx::Result<Begun> {
    let started_time = sqlx::query_scalar!(
        "insert into eco_overage_runs (run_id, request_id, account_ids, status) values ($1, $2, $3, 'running')
         returning started_time",
        run_id,
        request_id,
        accounts.as_deref() as Option<&[String]>,
    )
    .fetch_one(db)
    .await?;
    Ok(Begun { run_id, started_time, accounts, resumed: None })
}

/// Begins a run again that was cut short.
#[tracing::instrument(name = "db.eco_overage_runs.resume", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn resume(db: &mut PgConnection, run_id: Uuid) -> sqlx::Result<Begun> {
    let row = sqlx::query!(
        "update eco_overage_runs
         set status = 'running', started_time = clock_timestamp(), heartbeat_time = now(), finished_time = null
         where run_id = $1 and status = 'failed'
         returning started_time, account_ids, accounts, processed, charged, failed, total_micros",
        run_id,
    )
    .fetch_one(db)
    .await?;
    Ok(Begun {
        run_id,
        started_time: row.started_time,
        accounts: row.account_ids,
        resumed: Some(Figures {
            accounts: row.accounts,
            processed: row.processed,
            charged: row.charged,
            failed: row.failed,
            total: Micros(row.total_micros),
        }),
    })
}

/// A sign of life, with the figures so far. Whoever lost the run to another changes nothing.
#[tracing::instrument(name = "db.eco_overage_runs.beat", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn beat(db: &mut PgConnection, begun: &Begun, figures: &Figures) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_overage_runs
         set accounts = $2, processed = $3, charged = $4, failed = $5, total_micros = $6, heartbeat_time = now()
         where run_id = $1 and started_time = $7 and status = 'running'",
        begun.run_id,
        figures.known(),
        figures.processed,
        figures.charged,
        figures.failed,
        figures.total.0,
        begun.started_time,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Ends a run with the figures that follow from what is kept of it; `None`: another has it.
#[tracing::instrument(name = "db.eco_overage_runs.end", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn end(
    db: &mut PgConnection,
    begun: &Begun,
    accounts: i32,
    status: RunStatus,
) -> sqlx::Result<Option<Figures>> {
    let row = sqlx::query!(
        "update eco_overage_runs r
         set status = $3, heartbeat_time = now(), finished_time = now(), accounts = greatest($2, f.processed),
             processed = f.processed, charged = f.charged, failed = f.failed, total_micros = f.total_micros
         from nexus_run_figures($1) f
         where r.run_id = $1 and r.started_time = $4 and r.status = 'running'
         returning r.accounts, r.processed, r.charged, r.failed, r.total_micros",
        begun.run_id,
        accounts,
        status.as_str(),
        begun.started_time,
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| Figures {
        accounts: row.accounts,
        processed: row.processed,
        charged: row.charged,
        failed: row.failed,
        total: Micros(row.total_micros),
    }))
}

/// The run of a request.
#[tracing::instrument(name = "db.eco_overage_runs.find_by_request", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn find_by_request(db: &mut PgConnection, request_id: Uuid) -> sqlx::Result<Option<Run>> {
    let run_id = sqlx::query_scalar!("select run_id from eco_overage_runs where request_id = $1", request_id)
        .fetch_optional(&mut *db)
        .await?;
    match run_id {
        Some(run_id) => get(db, run_id).await,
        None => Ok(None),
    }
}

/// A run.
#[tracing::instrument(name = "db.eco_overage_runs.get", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn get(db: &mut PgConnection, run_id: Uuid) -> sqlx::Result<Option<Run>> {
    sqlx::query_as!(
        Row,
        r#"select run_id, status, accounts, processed, charged, failed, total_micros,
                  account_ids is not null as "limited!", started_time, heartbeat_time, finished_time, now() as "now!"
           from eco_overage_runs
           where run_id = $1"#,
        run_id,
    )
    .fetch_optional(db)
    .await?
    .map(Run::try_from)
    .transpose()
}

/// The run that is at work.
#[tracing::instrument(name = "db.eco_overage_runs.at_work", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn at_work(db: &mut PgConnection) -> sqlx::Result<Option<Uuid>> {
    // A run that was cut off may still be marked so, beside the one that has not marked it yet.
    sqlx::query_scalar!(
        "select run_id from eco_overage_runs where status = 'running' order by heartbeat_time desc limit 1"
    )
    .fetch_optional(db)
    .await
}

/// Runs, newest first, after one of them: their ids grow with the time.
#[tracing::instrument(name = "db.eco_overage_runs.list", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn list(db: &mut PgConnection, after: Option<Uuid>, limit: i64) -> sqlx::Result<Vec<Run>> {
    sqlx::query_as!(
        Row,
        r#"select run_id, status, accounts, processed, charged, failed, total_micros,
                  account_ids is not null as "limited!", started_time, heartbeat_time, finished_time, now() as "now!"
           from eco_overage_runs
           where $1::uuid is null or run_id < $1
           order by run_id desc
           limit $2"#,
        after,
        limit,
    )
    .fetch_all(db)
    .await?
    .into_iter()
    .map(Run::try_from)
    .collect()
}
