//! Counted exactly once: repeats, races of two servers, random mixes.

use anyhow::Result;
use chrono::TimeDelta;
use futures::future::try_join_all;
use nexus_core::plan::Plan;
use nexus_proto::usage::v1::{EventOutcome, UsageEvent};
use nexus_testkit::db::TestDb;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_repeats_at_two_servers_count_once() -> Result<()> {
    let (db, one) = server().await?;
    let two = Server::start(db.args()).await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let events: Vec<UsageEvent> = (0..40).map(|_| event("eco_a")).collect();
    let calls = events
        .iter()
        .flat_map(|event| (0..6).map(|copy| record(if copy % 2 == 0 { &one } else { &two }, event.clone())));
    let answers = try_join_all(calls).await?;
    let accepted = answers.iter().filter(|a| a.outcome() == EventOutcome::Accepted).count();
    assert_eq!((accepted, answers.len()), (40, 240));
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(40));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_batches_at_two_servers_at_once_count_once() -> Result<()> {
    let (db, one) = server().await?;
    let two = Server::start(db.args()).await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..5 {
        let events: Vec<UsageEvent> = (0..300).map(|_| event("eco_a")).collect();
        let mut shuffled = events.clone();
        shuffled.shuffle(&mut rng);
        let (a, b) = tokio::join!(record_batch(&one, events), record_batch(&two, shuffled));
        let (a, b) = (a?, b?);
        assert_eq!((a.accepted_count + b.accepted_count, a.duplicate_count + b.duplicate_count), (300, 300));
    }
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(1500));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flushes_that_overlap_have_slots_of_their_own() -> Result<()> {
    let (db, one) = server().await?;
    let two = Server::start(db.args()).await?;
    account(&db, "eco_a", Plan::Pro).await?;
    // Both flushes have begun before either counts: each waits for the rebuild of its day.
    let mut rebuild = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query("select aggregate_daily_usage((now() at time zone 'UTC')::date)")
        .execute(&mut *rebuild)
        .await?;
    let end_rebuild = async {
        let both_wait = "select count(*) = 2 from pg_locks l join pg_database d on d.oid = l.database
            where d.datname = current_database() and not l.granted and l.locktype = 'advisory'
              and l.classid::bigint = hashtext('nexus_usage_day')::bigint & 4294967295";
        while !sqlx::query_scalar::<_, bool>(both_wait).fetch_one(&db.pool).await? {}
        anyhow::Ok(rebuild.commit().await?)
    };
    let (a, b, ended) = tokio::join!(record(&one, event("eco_a")), record(&two, event("eco_a")), end_rebuild);
    (a?, b?, ended?);
    let slots: Vec<i16> =
        sqlx::query_scalar("select slot from eco_usage_counters order by slot").fetch_all(&db.pool).await?;
    assert_eq!(slots, [0, 1]);
    Ok(())
}

const ACCOUNTS: [&str; 3] = ["eco_a", "eco_b", "eco_c"];

/// A random event of the last days.
fn random_event(rng: &mut StdRng, test_keys: &[String]) -> UsageEvent {
    let account = rng.random_range(0..ACCOUNTS.len());
    let at = now() - TimeDelta::seconds(rng.random_range(0..20 * 86_400));
    let endpoints = ["/v1/a", "/v1/things/7", "/v1/things/8?x=1", "/pkg.Service/Call"];
    UsageEvent {
        endpoint: endpoints[rng.random_range(0..endpoints.len())].to_owned(),
        method: ["GET", "POST", "grpc"][rng.random_range(0..3)].to_owned(),
        status_code: [101, 200, 204, 301, 404, 500, 503][rng.random_range(0..7)],
        response_time_ms: rng.random_range(0..4000),
        units_count: rng.random_range(0..4),
        api_key_id: if rng.random_bool(0.1) { test_keys[account].clone() } else { String::new() },
        ..event_at(ACCOUNTS[account], at)
    }
}

/// Sends a random mix of singles and batches with repeats and conflicts to two servers at once; returns the
/// units each account must have.
async fn random_mix(db: &TestDb, servers: [&Server; 2], seed: u64) -> Result<Vec<(i64, i64)>> {
    let mut test_keys = Vec::new();
    for id in ACCOUNTS {
        account(db, id, Plan::Pro).await?;
        test_keys.push(make_key(servers[0], id, true).await?.api_key.map(|k| k.key_id).unwrap_or_default());
    }
    let mut rng = StdRng::seed_from_u64(seed);
    let events: Vec<UsageEvent> = (0..400).map(|_| random_event(&mut rng, &test_keys)).collect();
    let mut sent: Vec<UsageEvent> = events.iter().chain(&events).cloned().collect();
    sent.shuffle(&mut rng);
    let mut calls = Vec::new();
    let mut rest = sent.as_slice();
    while !rest.is_empty() {
        let (batch, after) = rest.split_at(rng.random_range(1..=rest.len().min(60)));
        calls.push(record_batch(servers[rng.random_range(0..2)], batch.to_vec()));
        rest = after;
    }
    let answers = try_join_all(calls).await?;
    assert_eq!(answers.iter().map(|a| a.accepted_count).sum::<i32>(), 400);
    assert_eq!(answers.iter().map(|a| a.duplicate_count).sum::<i32>(), 400);
    let conflicting = events.iter().map(|e| UsageEvent { status_code: 418, ..e.clone() }).collect();
    assert_eq!(record_batch(servers[0], conflicting).await?.rejected_count, 400);
    let units = |id: &str, test: bool| {
        let own = events.iter().filter(|e| e.eco_id == id && e.api_key_id.is_empty() != test);
        own.map(|e| e.units_count.max(1)).sum()
    };
    Ok(ACCOUNTS.iter().map(|id| (units(id, false), units(id, true))).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raw_log_counters_and_rollup_agree_after_random_mixes() -> Result<()> {
    for seed in 0..4 {
        let (db, one) = server().await?;
        let two = Server::start(db.args()).await?;
        let expected = random_mix(&db, [&one, &two], seed).await?;
        for (id, (units, test)) in ACCOUNTS.iter().zip(expected) {
            let sums = sums(&db.pool, id).await?;
            assert_eq!(sums, Sums { test_raw: test, test_counted: test, ..plain(units) }, "seed {seed}");
        }
        rebuilding_changes_nothing(&db).await?;
    }
    Ok(())
}

async fn rebuilding_changes_nothing(db: &TestDb) -> Result<()> {
    let before = rollups(db).await?;
    assert!(before.len() > 200);
    let rebuilt: i64 = sqlx::query_scalar(
        "select sum(aggregate_daily_usage((now() at time zone 'UTC')::date - n))::bigint from generate_series(0, 30) n",
    )
    .fetch_one(&db.pool)
    .await?;
    let days: i64 = sqlx::query_scalar("select count(*) from eco_usage_daily").fetch_one(&db.pool).await?;
    assert_eq!(rebuilt, days);
    assert_eq!(rollups(db).await?, before);
    Ok(())
}
