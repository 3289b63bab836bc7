//! Keys that are remembered.

use std::time::Duration;

use anyhow::Result;
use nexus_core::plan::Plan;
use nexus_testkit::{db::TestDb, proxy::Proxy};
use nexus_usage::Config;
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
