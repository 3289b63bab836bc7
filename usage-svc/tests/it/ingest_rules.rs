//! What the writing of events relies on in the database, and what it must not do there.

use anyhow::Result;
use nexus_core::plan::Plan;
use nexus_testkit::db::TestDb;
use nexus_usage::store::changes::CHANNEL;
use sqlx::{AssertSqlSafe, postgres::PgListener};

use crate::support::*;

/// What a flush writes to.
const TABLES: [&str; 7] = [
    "eco_api_usage",
    "eco_usage_counters",
    "eco_usage_hourly",
    "eco_usage_daily",
    "eco_usage_routes",
    "eco_quota_leases",
    "eco_usage_totals",
];

/// Whatever the defaults of the database are.
#[tokio::test]
async fn flushes_commit_durably_and_hold_nobody_up_for_long() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    sqlx::raw_sql(
        "do $$ begin
             execute format('alter database %I set synchronous_commit = off', current_database());
             execute format('alter database %I set lock_timeout = 0', current_database());
             execute format('alter database %I set idle_in_transaction_session_timeout = 0', current_database());
         end $$;
         create table seen (name text, value text);
         grant insert on seen to nexus_usage;
         create function look() returns trigger language plpgsql as $$ begin
             insert into seen select name, current_setting(name)
             from unnest(array['synchronous_commit', 'lock_timeout', 'idle_in_transaction_session_timeout', 'role']) as name;
             return null;
         end $$;
         create constraint trigger look after insert on eco_usage_counters
         deferrable initially deferred for each row execute function look();",
    )
    .execute(&db.pool)
    .await?;
    let server = Server::start(db.args()).await?;
    record(&server, event("eco_a")).await?;
    let seen: Vec<(String, String)> =
        sqlx::query_as("select name, value from seen order by 1").fetch_all(&db.pool).await?;
    let expected = [
        ("idle_in_transaction_session_timeout", "5s"),
        ("lock_timeout", "5s"),
        ("role", "nexus_usage"),
        ("synchronous_commit", "on"),
    ];
    assert_eq!(seen, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    Ok(())
}

/// It would have all commits wait for each other.
#[tokio::test]
async fn no_flush_notifies_anybody() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    hear(&db, 1).await?;
    let mut listener = PgListener::connect_with(&db.pool).await?;
    listener.listen(CHANNEL).await?;
    let repeated = event("eco_a");
    for event in [repeated.clone(), repeated, event("eco_a")] {
        record(&server, event).await?;
    }
    sqlx::query("select pg_notify($1, 'the end')").bind(CHANNEL).execute(&db.pool).await?;
    // They come in the order of their commits.
    assert_eq!(listener.recv().await?.payload(), "the end");

    let triggers = "select t.tgrelid::regclass || ': ' || t.tgname from pg_trigger t join pg_class c on c.oid = t.tgrelid
        where c.relname = any($1) and not t.tgisinternal";
    let triggers: Vec<String> =
        sqlx::query_scalar(triggers).bind(TABLES.as_slice()).fetch_all(&db.pool).await?;
    assert_eq!(triggers, Vec::<String>::new());
    Ok(())
}

/// So that the tables can be distributed by account as they are.
#[tokio::test]
async fn unique_keys_hold_the_account_and_the_partition_column() -> Result<()> {
    let db = TestDb::new().await?;
    let keys = |condition: &str| {
        format!(
            "select i.indexrelid::regclass::text
             from pg_index i join pg_class c on c.oid = i.indrelid left join pg_partitioned_table p on p.partrelid = c.oid
             where i.indisunique and c.relname = any($1) and {condition}"
        )
    };
    let found = async |condition: &str| -> Result<Vec<String>> {
        let keys = sqlx::query_scalar(AssertSqlSafe(keys(condition)));
        // Leases are not distributed, ids are all that names them; nor are the totals, which are of all accounts.
        Ok(keys.bind(&TABLES[..5]).fetch_all(&db.pool).await?)
    };
    assert_eq!(found("true").await?.len(), 5, "a key for each");
    let account = "(select attnum from pg_attribute where attrelid = c.oid and attname = 'eco_id')";
    assert_eq!(
        found(&format!("not coalesce({account} = any(i.indkey), false)")).await?,
        Vec::<String>::new()
    );
    let partition = "exists (select from unnest(p.partattrs::int2[]) as a where a <> all(i.indkey::int2[]))";
    assert_eq!(found(partition).await?, Vec::<String>::new());
    let partitioned: i64 = sqlx::query_scalar("select count(*) from pg_partitioned_table where partrelid in ('eco_api_usage'::regclass, 'eco_usage_hourly'::regclass)")
        .fetch_one(&db.pool)
        .await?;
    assert_eq!(partitioned, 2);
    Ok(())
}
