//! `eco_overage_runs`: every run, with its figures.

use nexus_core::money::Micros;
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use crate::domain::run::{AccountError, Figures};

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It looked at every account that owed.
    Finished,
    /// It was cut short.
    Failed,
}

/// A run as it is kept.
#[derive(Debug, Clone)]
pub struct Run {
    /// Id.
    pub run_id: Uuid,
    /// Its figures.
    pub figures: Figures,
    /// Whether it is still at work.
    pub running: bool,
    /// How long it has taken, or took.
    pub duration_ms: i64,
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
    accounts: Option<&[String]>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into eco_overage_runs (run_id, request_id, account_ids, status) values ($1, $2, $3, 'running')",
        run_id,
        request_id,
        accounts as Option<&[String]>,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Keeps the figures so far, and at the end how it ended.
#[tracing::instrument(name = "db.eco_overage_runs.update", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn update(
    db: &mut PgConnection,
    run_id: Uuid,
    figures: &Figures,
    end: Option<End>,
) -> sqlx::Result<()> {
    let status = match end {
        None => "running",
        Some(End::Finished) => "finished",
        Some(End::Failed) => "failed",
    };
    sqlx::query!(
        "update eco_overage_runs
         set processed = $2, charged = $3, failed = $4, total_micros = $5, errors = $6, status = $7,
             heartbeat_time = now(), finished_time = case when $7 = 'running' then null else now() end
         where run_id = $1 and status = 'running'",
        run_id,
        figures.processed,
        figures.charged,
        figures.failed,
        figures.total.0,
        Json(&figures.errors) as _,
        status,
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
    Ok(row.map(|row| Run {
        run_id: row.run_id,
        figures: Figures {
            processed: row.processed,
            charged: row.charged,
            failed: row.failed,
            total: Micros(row.total_micros),
            errors: row.errors.0,
        },
        running: row.status == "running",
        duration_ms: row.duration_ms,
    }))
}
