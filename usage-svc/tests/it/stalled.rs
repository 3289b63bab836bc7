//! Sessions of the database that stand still, and what they must not hold up.

use std::str::FromStr;

use anyhow::{Context, Result};
use futures::TryStreamExt;
use nexus_kit::db;
use nexus_testkit::db::TestDb;
use sqlx::{
    Connection, PgConnection,
    postgres::{PgConnectOptions, PgPoolCopyExt},
};

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

/// As of a replica that is stopped while the database answers it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_takes_no_answer_is_ended_and_nobody_else() -> Result<()> {
    let db = TestDb::new().await?;
    let _server = Server::start(db.args()).await?;
    let options = PgConnectOptions::from_str(db.url())?;
    let mut person = PgConnection::connect_with(&options.clone().application_name("psql")).await?;
    let mut replica = PgConnection::connect_with(&options.application_name("nexus usage")).await?;
    let mut pids = Vec::new();
    for connection in [&mut person, &mut replica] {
        pids.push(sqlx::query_scalar::<_, i32>("select pg_backend_pid()").fetch_one(connection).await?);
    }
    // More than the buffers on the way take.
    let much = "select repeat('x', 10000) from generate_series(1, 10000)";
    let mut persons = sqlx::query(much).fetch(&mut person);
    let mut replicas = sqlx::query(much).fetch(&mut replica);
    persons.try_next().await?;
    replicas.try_next().await?;
    let lives = "select exists (select from pg_stat_activity where pid = $1)";
    let lives = async |pid: i32| sqlx::query_scalar::<_, bool>(lives).bind(pid).fetch_one(&db.pool).await;
    eventually(async || Ok(!lives(pids[1]).await?)).await?;
    assert!(lives(pids[0]).await?, "whoever reads by hand may take their time");
    while let Some(row) = persons.try_next().await? {
        drop(row);
    }
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
