//! `eco_usage_changes`: which account's period has new usage, or is counted by another plan.

use sqlx::PgConnection;

use crate::domain::period::PeriodKey;

/// Takes up to `limit` entries off the queue, for good once the transaction commits; returns how many, and
/// the periods they name, each once.
///
/// The last one's id bounds them, so that the queue is read once at most: joined with itself, or with an array of ids, a
/// plan made while it was empty reads all of it for each entry.
#[tracing::instrument(name = "db.eco_usage_changes.take", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn take(db: &mut PgConnection, limit: i64) -> sqlx::Result<(usize, Vec<PeriodKey>)> {
    let mut keys = sqlx::query_as!(
        PeriodKey,
        "delete from eco_usage_changes
         where change_id <= (select max(c.change_id)
                             from (select change_id from eco_usage_changes order by change_id limit $1) c)
         returning eco_id, period_start as start",
        limit,
    )
    .fetch_all(db)
    .await?;
    let taken = keys.len();
    keys.sort_unstable();
    keys.dedup();
    Ok((taken, keys))
}

/// Adds a period to the queue.
#[tracing::instrument(name = "db.eco_usage_changes.add", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn add(db: &mut PgConnection, key: &PeriodKey) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into eco_usage_changes (eco_id, period_start) values ($1, $2)",
        key.eco_id,
        key.start,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The periods the queue names now, each once, by account and in order, after an account.
#[tracing::instrument(name = "db.eco_usage_changes.peek", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn peek(
    db: &mut PgConnection,
    accounts: Option<&[String]>,
    after: &str,
    limit: i64,
) -> sqlx::Result<Vec<PeriodKey>> {
    sqlx::query_as!(
        PeriodKey,
        r#"select q.eco_id as "eco_id!", q.period_start as "start!"
           from (select distinct eco_id collate "C" as eco_id, period_start from eco_usage_changes
                 where eco_id collate "C" > $2 and ($1::text[] is null or eco_id = any ($1))) q
           order by q.eco_id, q.period_start
           limit $3"#,
        accounts as Option<&[String]>,
        after,
        limit,
    )
    .fetch_all(db)
    .await
}
