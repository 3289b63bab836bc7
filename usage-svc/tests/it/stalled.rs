//! Sessions of the database that stand still, and what they must not hold up.

use anyhow::{Context, Result};
use nexus_kit::db;
use nexus_testkit::db::TestDb;
use sqlx::{Connection, PgConnection, postgres::PgPoolCopyExt};

use crate::support::*;

/// As of a replica that is stopped in the middle of a flush.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_that_sends_nothing_more_is_ended() -> Result<()> {
    let db = TestDb::new().await?;
    let _server = Server::start(db.args()).await?;
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(1).connect(db.url()).await?;
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&pool).await?;
    let copy = pool.copy_in_raw("copy eco_api_usage (event_id) from stdin (format binary)").await?;
    let lives = "select exists (select from pg_stat_activity where pid = $1)";
    eventually(async || Ok(!sqlx::query_scalar::<_, bool>(lives).bind(pid).fetch_one(&db.pool).await?))
        .await?;
    copy.finish().await.map(|_| ()).err().context("it is of no use any more")?;
    Ok(())
}

#[tokio::test]
async fn a_reader_of_the_raw_log_holds_up_no_partition_that_is_made_and_no_flush_for_one_that_is_dropped()
-> Result<()> {
    let db = TestDb::new().await?;
    let mut reader = db::begin(&db.pool).await?;
    sqlx::query("select count(*) from eco_api_usage").execute(&mut *reader).await?;
    let mut connection = PgConnection::connect(db.url()).await?;
    sqlx::query("set lock_timeout = '1s'").execute(&mut connection).await?;
    let made = "select nexus_ensure_usage_partitions(current_date + 50, current_date + 51)";
    assert_eq!(sqlx::query_scalar::<_, i32>(made).fetch_one(&mut connection).await?, 2);
    let alike = "select count(distinct (relam, relpersistence)) = 1 and count(*) = count(pk.indisprimary)
                 from pg_inherits join pg_class c on c.oid = inhrelid
                 left join pg_index pk on pk.indrelid = c.oid and pk.indisprimary and pk.indisvalid
                 where inhparent = 'eco_api_usage'::regclass";
    assert!(
        sqlx::query_scalar::<_, bool>(alike).fetch_one(&mut connection).await?,
        "each has its primary key"
    );
    let old = "select nexus_ensure_usage_partitions(current_date - 60, current_date - 60)";
    sqlx::query(old).execute(&mut connection).await?;
    sqlx::query("select count(*) from eco_api_usage").execute(&mut *reader).await?;
    sqlx::query("set lock_timeout = '1h'").execute(&mut connection).await?;
    let dropped = "select nexus_drop_usage_partitions(current_date - 45)";
    let refused = sqlx::query(dropped).execute(&mut connection).await.err().context("it is being read")?;
    assert!(db::is_busy(&refused), "{refused}");
    reader.rollback().await?;
    sqlx::query(dropped).execute(&mut connection).await?;
    Ok(())
}
