//! Keys that are remembered.

use std::time::Duration;

use anyhow::Result;
use nexus_core::plan::Plan;
use nexus_testkit::{db::TestDb, proxy::Proxy};
use nexus_usage::Config;
use sqlx::{AssertSqlSafe, Postgres, Transaction};
use tonic::Code;

use crate::support::*;

async fn is_good(server: &Server, key: &str) -> Result<bool> {
    Ok(verify(server, key).await?.is_ok())
}

#[tokio::test]
async fn a_known_key_is_verified_without_a_statement() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let key = make_key(&server, "eco_a", false).await?.key;
    let other = make_key(&server, "eco_a", false).await?.key;
    eventually(async || is_good(&server, &key).await).await?;
    sqlx::query("alter table eco_api_keys rename to hidden").execute(&db.pool).await?;
    // It counts as known only while the feed is heard, so that a slow machine may ask in between.
    eventually(async || is_good(&server, &key).await).await?;
    refused(verify(&server, &other).await?, Code::Internal, "INTERNAL");
    Ok(())
}

#[tokio::test]
async fn with_the_database_away_a_known_key_is_good_for_a_while_and_no_other_is() -> Result<()> {
    let db = TestDb::new().await?;
    let proxy = Proxy::before(&db).await?;
    let config = Config { key_stale_max: Duration::from_secs(4), ..config(proxy.args(&db)?) };
    let server = Server::start_with(config).await?;
    hear(&db, 1).await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let known = make_key(&server, "eco_a", false).await?.key;
    let unknown = make_key(&server, "eco_a", false).await?.key;
    let wrong = format!(
        "{}.{}",
        known.split('.').next().unwrap_or_default(),
        unknown.split('.').nth(1).unwrap_or_default()
    );
    assert!(is_good(&server, &known).await?);
    proxy.cut();
    let away = async |key: &str| -> Result<()> {
        refused(verify(&server, key).await?, Code::Unavailable, "DATABASE_UNAVAILABLE");
        Ok(())
    };
    for key in [&unknown, &wrong] {
        away(key).await?;
    }
    assert!(is_good(&server, &known).await?, "it was accepted just before");
    eventually(async || Ok(!is_good(&server, &known).await?)).await?;
    away(&known).await?;
    proxy.mend();
    for key in [&known, &unknown] {
        eventually(async || is_good(&server, key).await).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_key_that_was_revoked_unheard_is_refused_when_the_feed_is_heard_again() -> Result<()> {
    let db = TestDb::new().await?;
    let proxy = Proxy::before(&db).await?;
    let server = Server::start(proxy.args(&db)?).await?;
    // A feed that has just begun says that everything changed.
    hear(&db, 1).await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let key = make_key(&server, "eco_a", false).await?.key;
    assert!(is_good(&server, &key).await?);
    proxy.cut();
    sqlx::query("update eco_api_keys set status = 'revoked', revoked_time = now()").execute(&db.pool).await?;
    assert!(is_good(&server, &key).await?, "nobody can know");
    proxy.mend();
    is_refused(&server, &key).await
}

/// Keeps what reads a key at work until the transaction ends: it has the row as it was, and waits with it.
async fn hold_reads(db: &TestDb, key_id: &str) -> Result<Transaction<'static, Postgres>> {
    let held = format!(
        "create function held() returns boolean language plpgsql set lock_timeout = 0 as
             'begin perform pg_advisory_xact_lock_shared(7); return true; end';
         create policy held on eco_api_keys using (key_id <> '{key_id}' or held());
         alter table eco_api_keys enable row level security"
    );
    let mut holder = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query("select pg_advisory_xact_lock(7)").execute(&mut *holder).await?;
    sqlx::raw_sql(AssertSqlSafe(held)).execute(&db.pool).await?;
    Ok(holder)
}

/// What the read has is older than a revocation may take to hold.
#[tokio::test]
async fn a_key_that_is_revoked_while_it_is_read_is_read_again() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let (made, other) = (make_key(&server, "eco_a", false).await?, make_key(&server, "eco_a", false).await?);
    verify(&server, &other.key).await??;
    let holder = hold_reads(&db, &key_id(&made)).await?;
    let meanwhile = async {
        service_waits(&db).await?;
        for key in [&made, &other] {
            sqlx::query("update eco_api_keys set status = 'revoked', revoked_time = now() where key_id = $1")
                .bind(key_id(key))
                .execute(&db.pool)
                .await?;
        }
        // Changes are heard in the order of their commits.
        is_refused(&server, &other.key).await?;
        let old = "select exists (select from pg_stat_activity where datname = current_database()
                   and wait_event_type = 'Lock' and clock_timestamp() - query_start > interval '1 second')";
        eventually(async || Ok(sqlx::query_scalar(old).fetch_one(&db.pool).await?)).await?;
        Ok(holder.rollback().await?)
    };
    let (first, ()) = tokio::try_join!(verify(&server, &made.key), meanwhile)?;
    refused(first, Code::Unauthenticated, "INVALID_API_KEY");
    refused(verify(&server, &made.key).await?, Code::Unauthenticated, "INVALID_API_KEY");
    Ok(())
}
