//! `eco_withheld_accounts`: accounts that are not charged before a reconciliation could take in what Stripe has of them.

use std::collections::HashSet;

use sqlx::PgConnection;

/// These are from now on, and of the others only those that were and still differ.
#[tracing::instrument(name = "db.eco_withheld_accounts.replace", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn replace(db: &mut PgConnection, accounts: &[String], differing: &[String]) -> sqlx::Result<()> {
    sqlx::query!(
        "with gone as (delete from eco_withheld_accounts where eco_id <> all ($1 || $2::text[]))
         insert into eco_withheld_accounts (eco_id) select unnest($1::text[]) on conflict do nothing",
        accounts,
        differing,
    )
    .execute(db)
    .await?;
    Ok(())
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
