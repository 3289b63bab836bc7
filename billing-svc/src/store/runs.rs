//! `eco_overage_runs`: every run, with its figures.

use chrono::{DateTime, Utc};
use nexus_core::money::Micros;
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use super::unknown_word;
use crate::domain::run::{AccountError, Figures, RunStatus};

/// A run as it is kept.
#[derive(Debug, Clone)]
pub struct Run {
    /// Id.
    pub run_id: Uuid,
    /// How far it is.
    pub status: RunStatus,
    /// Its figures.
    pub figures: Figures,
    /// How long it has taken, or took, since it was last begun.
    pub duration_ms: i64,
}

/// A run to be worked on. Whoever began it last may write its row: `started_time` tells them apart.
#[derive(Debug, Clone)]
pub struct Begun {
    /// Id.
    pub run_id: Uuid,
    /// When it was begun, or begun again.
    pub started_time: DateTime<Utc>,
    /// Only these accounts; `None`: all.
    pub accounts: Option<Vec<String>>,
    /// What was done before it was begun again.
    pub figures: Figures,
}

/// Marks runs that a killed process left behind. Only the holder of the lease may say so.
#[tracing::instrument(name = "db.eco_overage_runs.fail_orphans", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn fail_orphans(db: &mut PgConnection) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        "update eco_overage_runs set status = 'failed', finished_time = now() where status = 'running'"
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
    Ok(Begun { run_id, started_time, accounts, figures: Figures::default() })
}

/// Begins a run again that was cut short. Accounts that failed in it are looked at again.
#[tracing::instrument(name = "db.eco_overage_runs.resume", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn resume(db: &mut PgConnection, run_id: Uuid) -> sqlx::Result<Begun> {
    let row = sqlx::query!(
        "update eco_overage_runs
         set status = 'running', processed = processed - failed, failed = 0, errors = '[]',
             started_time = clock_timestamp(), heartbeat_time = now(), finished_time = null
         where run_id = $1 and status = 'failed'
         returning started_time, account_ids, processed, charged, total_micros",
        run_id,
    )
    .fetch_one(db)
    .await?;
    Ok(Begun {
        run_id,
        started_time: row.started_time,
        accounts: row.account_ids,
        figures: Figures {
            processed: row.processed,
            charged: row.charged,
            total: Micros(row.total_micros),
            ..Figures::default()
        },
    })
}

/// Keeps the figures so far, and how far the run is. Whoever lost the run to another changes nothing.
#[tracing::instrument(name = "db.eco_overage_runs.update", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn update(
    db: &mut PgConnection,
    begun: &Begun,
    figures: &Figures,
    status: RunStatus,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_overage_runs
         set processed = $2, charged = $3, failed = $4, total_micros = $5, errors = $6, status = $7,
             heartbeat_time = now(), finished_time = case when $7 = 'running' then null else now() end
         where run_id = $1 and started_time = $8 and status = 'running'",
        begun.run_id,
        figures.processed,
        figures.charged,
        figures.failed,
        figures.total.0,
        Json(&figures.errors) as _,
        status.as_str(),
        begun.started_time,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The run of a request.
#[tracing::instrument(name = "db.eco_overage_runs.find_by_request", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn find_by_request(db: &mut PgConnection, request_id: Uuid) -> sqlx::Result<Option<Run>> {
    let row = sqlx::query!(
        r#"select run_id, status, processed, charged, failed, total_micros,
                  errors as "errors: Json<Vec<AccountError>>",
                  (extract(epoch from coalesce(finished_time, now()) - started_time) * 1000)::bigint as "duration_ms!"
           from eco_overage_runs
           where request_id = $1"#,
        request_id,
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        Ok(Run {
            run_id: row.run_id,
            status: row.status.parse().map_err(unknown_word)?,
            figures: Figures {
                processed: row.processed,
                charged: row.charged,
                failed: row.failed,
                total: Micros(row.total_micros),
                errors: row.errors.0,
            },
            duration_ms: row.duration_ms,
        })
    })
    .transpose()
}
