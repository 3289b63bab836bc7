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

#[tokio::test]
async fn flushes_that_are_at_work_at_once_have_slots_of_their_own() -> Result<()> {
    let (db, one) = server().await?;
    let two = Server::start(db.args()).await?;
    account(&db, "eco_a", Plan::Pro).await?;
    // Its route has its place: for that they do not wait.
    record(&one, event("eco_a")).await?;
    let held = hold_flushes(&db).await?;
    let let_go = async {
        let waiting = "select count(*) from pg_locks l join pg_database d on d.oid = l.database
             where d.datname = current_database() and relation = 'eco_usage_counters'::regclass and not granted";
        while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&db.pool).await? < 2 {}
        held.commit().await?;
        anyhow::Ok(())
    };
    let (a, b, let_go) = tokio::join!(record(&one, event("eco_a")), record(&two, event("eco_a")), let_go);
    a?;
    b?;
    let_go?;
    let slots: i64 =
        sqlx::query_scalar("select count(*) from eco_usage_counters").fetch_one(&db.pool).await?;
    assert_eq!(slots, 2);
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(3));
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

#[tokio::test]
async fn repeats_within_a_batch_and_of_earlier_ones_are_told_exactly() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let outcomes = async |events: &[UsageEvent]| {
        let answer = record_batch(&server, events.to_vec()).await?;
        let told: Vec<_> = answer.results.iter().map(|r| (r.index, r.outcome())).collect();
        anyhow::Ok((answer.accepted_count, told))
    };
    let changed = |e: &UsageEvent| UsageEvent { response_time_ms: 8, ..e.clone() };
    let [a, b, c, d] = [0; 4].map(|_| event("eco_a"));
    use EventOutcome::{Conflict, Duplicate};
    // All new but for what the batch itself repeats: the first of them is the one written.
    let first = outcomes(&[a.clone(), b.clone(), a.clone(), changed(&b)]).await?;
    assert_eq!(first, (2, vec![(2, Duplicate), (3, Conflict)]));
    // Some stored before, and repeats of a new one.
    let second = outcomes(&[c.clone(), b.clone(), changed(&a), c.clone(), changed(&c)]).await?;
    assert_eq!(second, (1, vec![(1, Duplicate), (2, Conflict), (3, Duplicate), (4, Conflict)]));
    // Again, and then all new.
    assert_eq!(outcomes(&[a, b, c]).await?, (0, vec![(0, Duplicate), (1, Duplicate), (2, Duplicate)]));
    assert_eq!(outcomes(std::slice::from_ref(&d)).await?, (1, vec![]));
    assert_eq!(outcomes(&[d, event("eco_a")]).await?, (1, vec![(0, Duplicate)]));
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(5));
    Ok(())
}

#[tokio::test]
async fn a_batch_of_many_accounts_and_days_is_answered_in_its_order() -> Result<()> {
    let (db, server) = server().await?;
    let ids: Vec<String> = (0..20).map(|n| format!("eco_{n}")).collect();
    for id in &ids {
        account(&db, id, Plan::Pro).await?;
    }
    let mut rng = StdRng::seed_from_u64(5);
    let mut events: Vec<UsageEvent> = (0..200)
        .map(|i| event_at(&ids[i % 20], now() - TimeDelta::hours(rng.random_range(0..20 * 24))))
        .collect();
    for unknown in (0..200).step_by(17) {
        events[unknown].eco_id = "eco_unknown".to_owned();
    }
    let answer = record_batch(&server, events.clone()).await?;
    let told: Vec<_> = answer.results.iter().map(|r| (r.index, r.outcome())).collect();
    let unknown: Vec<_> = (0..200).step_by(17).map(|i| (i, EventOutcome::UnknownAccount)).collect();
    assert_eq!(told, unknown);
    for id in &ids {
        let own = events.iter().filter(|e| e.eco_id == *id).count();
        assert_eq!(sums(&db.pool, id).await?, plain(i64::try_from(own)?));
    }
    Ok(())
}

#[tokio::test]
async fn a_copy_whose_backend_dies_in_the_middle_counts_nothing() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let events: Vec<UsageEvent> = (0..3_000).map(|_| event("eco_a")).collect();
    // Somebody has written the last of them and not committed: the copy waits there.
    let mut other = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query(
        "insert into eco_api_usage (event_id, eco_id, event_day, event_time, period_start, segment, units_count,
                                    endpoint, method, status_code, response_time_ms, test_mode, late)
         values ($1::uuid, 'eco_a', (now() at time zone 'UTC')::date, now(), now(), 0, 1, '/', 'GET', 200, 1, false, false)",
    )
    .bind(&events[2_999].event_id)
    .execute(&mut *other)
    .await?;
    let killed = async {
        let kill = "select count(pg_terminate_backend(pid)) from pg_stat_activity
             where datname = current_database() and query like 'copy eco_api_usage%' and wait_event_type = 'Lock'";
        while sqlx::query_scalar::<_, i64>(kill).fetch_one(&db.pool).await? == 0 {}
        anyhow::Ok(())
    };
    let (answer, killed) = tokio::join!(record_batch(&server, events.clone()), killed);
    refused(answer, tonic::Code::Unavailable, "DATABASE_UNAVAILABLE");
    killed?;
    other.rollback().await?;
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(0));
    assert_eq!(record_batch(&server, events.clone()).await?.accepted_count, 3_000);
    assert_eq!(record_batch(&server, events).await?.duplicate_count, 3_000);
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(3_000));
    Ok(())
}
