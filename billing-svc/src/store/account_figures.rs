//! `eco_account_figures`: usage and revenue of each account, ready for lists; `eco_account_changes`: whose no longer hold.
//! Who computes has the refresher's lock; what a summary says of usage comes by a trigger, whoever writes it.
//! `eco_figure_totals`: their sums, which triggers append to (`eco_figure_deltas`).

use sqlx::PgConnection;

/// Takes up to `limit` changes off the queue, for good once the transaction commits, and adds up to as many accounts
/// whose row is over (the period, or the plan). Returns how many changes or rows there were at most, and the accounts.
#[tracing::instrument(name = "db.eco_account_changes.take", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn take(db: &mut PgConnection, limit: i64) -> sqlx::Result<(i64, Vec<String>)> {
    let changed = sqlx::query_scalar!(
        "delete from eco_account_changes
         where change_id <= (select max(c.change_id)
                             from (select change_id from eco_account_changes order by change_id limit $1) c)
         returning eco_id",
        limit,
    )
    .fetch_all(&mut *db)
    .await?;
    let over = sqlx::query_scalar!(
        "select eco_id from eco_account_figures where valid_until <= now() order by valid_until limit $1",
        limit,
    )
    .fetch_all(db)
    .await?;
    let most = changed.len().max(over.len()) as i64;
    let mut accounts = [changed, over].concat();
    accounts.sort_unstable();
    accounts.dedup();
    Ok((most, accounts))
}

/// Computes the rows of these accounts anew, by a snapshot of its own; those of closed accounts go.
#[tracing::instrument(name = "db.eco_account_figures.compute", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn compute(db: &mut PgConnection, accounts: &[String]) -> sqlx::Result<()> {
    sqlx::query!("select nexus_compute_figures($1)", accounts).execute(db).await?;
    Ok(())
}

/// Adds to the totals what has become of figures since it was added last. Who adds has the refresher's lock.
#[tracing::instrument(name = "db.eco_figure_totals.add", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn add_deltas(db: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!("select nexus_add_figure_deltas()").execute(db).await?;
    Ok(())
}
