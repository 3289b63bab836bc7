//! `eco_withheld_accounts`: accounts that are not charged before a reconciliation could take in what Stripe has of them.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

/// These are from now on, with when their oldest item was made, and of the others only those that were and still differ.
#[tracing::instrument(name = "db.eco_withheld_accounts.replace", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn replace(
    db: &mut PgConnection,
    accounts: &BTreeMap<String, DateTime<Utc>>,
    differing: &[String],
) -> sqlx::Result<()> {
    let (ids, oldest): (Vec<&str>, Vec<DateTime<Utc>>) =
        accounts.iter().map(|(id, oldest)| (id.as_str(), *oldest)).unzip();
    sqlx::query!(
        "with gone as (delete from eco_withheld_accounts where eco_id <> all ($1 || $3::text[]))
         insert into eco_withheld_accounts as w (eco_id, oldest_item_time)
         select * from unnest($1::text[], $2::timestamptz[])
         on conflict (eco_id) do update set oldest_item_time = least(w.oldest_item_time, excluded.oldest_item_time)",
        &ids as &[&str],
        &oldest,
        differing,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// When the oldest item was made that any of them waits for.
#[tracing::instrument(name = "db.eco_withheld_accounts.oldest_item", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn oldest_item(db: &mut PgConnection) -> sqlx::Result<Option<DateTime<Utc>>> {
    sqlx::query_scalar!("select min(oldest_item_time) from eco_withheld_accounts").fetch_one(db).await
}

/// Which of these are.
#[tracing::instrument(name = "db.eco_withheld_accounts.among", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn among(db: &mut PgConnection, accounts: &[&str]) -> sqlx::Result<HashSet<String>> {
    let found = sqlx::query_scalar!(
        "select eco_id from eco_withheld_accounts where eco_id = any ($1)",
        accounts as &[&str],
    )
    .fetch_all(db)
    .await?;
    Ok(found.into_iter().collect())
}
