//! Connections that die and a database that goes away: what was acknowledged is counted, what was not can
//! be sent again.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures::{FutureExt, StreamExt, future::try_join_all, stream::FuturesUnordered};
use nexus_core::plan::Plan;
use nexus_kit::{
    config::{DbArgs, ServeArgs},
    db::{Role, is_away, is_busy, is_unavailable},
};
use nexus_proto::usage::v1::{CheckQuotaRequest, EventOutcome, UsageEvent};
use nexus_testkit::{db::TestDb, proxy::Proxy, settings};
use nexus_usage::Config;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::support::*;

/// Sends until it is acknowledged; returns how often it was not.
pub(crate) async fn insist(server: &Server, event: UsageEvent) -> Result<u32> {
    let mut failures = 0;
    loop {
        match record(server, event.clone()).await {
            Ok(_) => return Ok(failures),
            Err(status) if status.code() == Code::Unavailable => {
                has_retry_info(&status)?;
                failures += 1;
            }
            Err(status) => return Err(status.into()),
        }
    }
}

pub(crate) fn has_retry_info(status: &Status) -> Result<()> {
    let delay = status.get_error_details().retry_info().and_then(|r| r.retry_delay);
    ensure!(delay.is_some_and(|d| !d.is_zero()), "no RetryInfo: {status:?}");
    Ok(())
}

/// Ends backends of the service that are in a transaction, until so many were ended or `stop` is set. One that takes its
/// time to end is one.
async fn kill_backends(db: &TestDb, times: usize, stop: &AtomicBool) -> Result<usize> {
    let mut killed = HashSet::new();
    while killed.len() < times && !stop.load(Ordering::Relaxed) {
        let pids: Vec<(i32, bool)> = sqlx::query_as(
            "select pid, pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and application_name = 'nexus usage' and xact_start is not null",
        )
        .fetch_all(&db.pool)
        .await?;
        killed.extend(pids.into_iter().filter(|(_, ended)| *ended).map(|(pid, _)| pid));
    }
    Ok(killed.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_killed_in_flushes_lose_and_double_nothing() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let stop = AtomicBool::new(false);
    let senders = (0..16).map(|_| async {
        let mut failures = 0;
        for _ in 0..25 {
            failures += insist(&server, event("eco_a")).await?;
        }
        anyhow::Ok(failures)
    });
    let sending = async {
        let failures = try_join_all(senders).await?;
        stop.store(true, Ordering::Relaxed);
        anyhow::Ok(failures.into_iter().sum::<u32>())
    };
    let (failures, killed) = tokio::join!(sending, kill_backends(&db, 20, &stop));
    let (failures, killed) = (failures?, killed?);
    assert!(killed > 0 && failures > 0, "{killed} killed, {failures} failed: nothing was tried");
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(16 * 25));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_is_unavailable_and_comes_back() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Free).await?;
    let proxy = Proxy::before(&db).await?;
    let server = Server::start(proxy.args(&db)?).await?;
    record(&server, event("eco_a")).await?;
    proxy.cut();
    let lost = event("eco_a");
    let mut client = server.client()?;
    let request = CheckQuotaRequest { eco_id: "eco_a".to_owned(), ..CheckQuotaRequest::default() };
    let (recorded, batch, checked, key) = tokio::join!(
        record(&server, lost.clone()),
        record_batch(&server, vec![event("eco_a")]),
        client.check_quota(service()?.request(request)),
        make_key(&server, "eco_a", false),
    );
    let key = key.expect_err("the database is away").downcast::<Status>()?;
    for status in [recorded.err(), batch.err(), checked.err(), Some(key)] {
        let status = refused(status.map_or(Ok(()), Err), Code::Unavailable, "DATABASE_UNAVAILABLE");
        has_retry_info(&status)?;
    }
    proxy.mend();
    insist(&server, lost).await?;
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(2));
    Ok(())
}

/// Whoever asks for a connection waits for it, in vain; without a spool each call would.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_a_database_that_is_known_to_be_away() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let proxy = Proxy::before(&db).await?;
    let server = Server::start(proxy.args(&db)?).await?;
    hear(&db, 1).await?;
    record(&server, event("eco_a")).await?;
    let pool = nexus_kit::db::pool(&proxy.args(&db)?, Role::Usage)?;
    proxy.silence();
    let lost = event("eco_a");
    refused(record(&server, lost.clone()).await, Code::Unavailable, "DATABASE_UNAVAILABLE");
    let calls = async {
        // Each would wait as long: a few are enough, and are made in time on a busy machine.
        for _ in 0..5 {
            let status =
                refused(record(&server, lost.clone()).await, Code::Unavailable, "DATABASE_UNAVAILABLE");
            has_retry_info(&status)?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        connection = nexus_kit::db::acquire(&pool) => anyhow::bail!("calls wait as long as for {connection:?}"),
        refused = calls => refused?,
    }
    proxy.mend();
    insist(&server, lost).await?;
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(2));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_is_unavailable_and_what_was_taken_is_written_before_the_end() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let server = Server::start_with(Config { ingest_queue: 10_000, ..config(db.args()) }).await?;
    // The queue fills behind a flush.
    let flushes = hold_flushes(&db).await?;
    let batches = (0..4).map(|_| record_batch(&server, (0..4000).map(|_| event("eco_a")).collect()));
    let mut answers: FuturesUnordered<_> = batches.collect();
    // Two of the four fit, and those that do not are refused while these wait.
    for _ in 0..2 {
        let full = answers.next().await.context("four are answered")?;
        has_retry_info(&refused(full, Code::Unavailable, "OVERLOADED"))?;
    }
    flushes.commit().await?;
    while let Some(taken) = answers.next().await {
        assert_eq!(taken?.accepted_count, 4000);
    }
    drop(answers);
    server.stop().await?;
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(8000));
    Ok(())
}

/// Records an event whose flush loses its connection without a word, as in a failover: it is at work when the line
/// goes silent and its backend ends.
async fn record_into_silence(
    db: &TestDb,
    proxy: &Proxy,
    server: &Server,
    event: UsageEvent,
) -> Result<Result<(), Status>> {
    let flushes = hold_flushes(db).await?;
    let go_silent = async {
        service_waits(db).await?;
        proxy.silence();
        sqlx::query(
            "select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and application_name = 'nexus usage'",
        )
        .execute(&db.pool)
        .await?;
        flushes.commit().await?;
        proxy.mend();
        anyhow::Ok(())
    };
    let (answer, silent) = tokio::join!(record(server, event), go_silent);
    silent?;
    Ok(answer.map(|_| ()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_goes_silent_in_a_flush_is_given_up_for_another() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let proxy = Proxy::before(&db).await?;
    let bound = Duration::from_secs(2);
    let server = Server::start_with(Config { flush_timeout: bound, ..config(proxy.args(&db)?) }).await?;
    insist(&server, event("eco_a")).await?;

    let lost = event("eco_a");
    let answer = record_into_silence(&db, &proxy, &server, lost.clone()).await?;
    has_retry_info(&refused(answer, Code::Unavailable, "DATABASE_UNAVAILABLE"))?;
    insist(&server, lost).await?;
    insist(&server, event("eco_a")).await?;
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(3));
    tokio::time::timeout(TIMEOUT, server.stop()).await??;
    Ok(())
}

/// An account's claims wait while it is read where it stands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_goes_silent_holds_up_no_claim_for_long() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Free).await?;
    let proxy = Proxy::before(&db).await?;
    let patient = ServeArgs { request_timeout: 4 * TIMEOUT, ..settings::serve_args() };
    let server = Server::start_with(Config { serve: patient, ..config(proxy.args(&db)?) }).await?;
    check(&server, "eco_a", 1).await?;
    let mut locked = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query("lock table eco_quota_leases in access exclusive mode").execute(&mut *locked).await?;
    let checked = async {
        service_waits(&db).await?;
        proxy.silence();
        locked.rollback().await?;
        proxy.mend();
        eventually(async || Ok(check(&server, "eco_a", 999).await.is_ok())).await
    };
    tokio::select! {
        read = async { current(&server, "eco_a").await.and(std::future::pending().await) } => read,
        checked = checked => checked,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_ends_though_its_flush_hears_nothing() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let proxy = Proxy::before(&db).await?;
    let server = Server::start_with(Config {
        flush_timeout: Duration::from_secs(3600),
        serve: ServeArgs {
            shutdown_grace: Duration::from_millis(100),
            request_timeout: Duration::from_secs(2),
            ..settings::serve_args()
        },
        ..config(proxy.args(&db)?)
    })
    .await?;
    let answer = record_into_silence(&db, &proxy, &server, event("eco_a")).await?;
    assert_eq!(answer.map_err(|status| status.code()), Err(Code::DeadlineExceeded));
    tokio::time::timeout(TIMEOUT, server.stop()).await??;
    Ok(())
}

#[tokio::test]
async fn a_server_with_nothing_left_to_write_ends_at_once() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Free).await?;
    record(&server, event("eco_a")).await?;
    check(&server, "eco_a", 1).await?;
    // Ten seconds are what its background tasks get when they do not come to an end.
    tokio::time::timeout(Duration::from_secs(9), server.stop()).await??;
    Ok(())
}

#[tokio::test]
async fn a_caller_that_goes_away_cancels_no_flush() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let flushes = hold_flushes(&db).await?;
    let mut call = Box::pin(record(&server, event("eco_a")));
    tokio::select! {
        answer = &mut call => anyhow::bail!("answered before the commit: {answer:?}"),
        waited = service_waits(&db) => waited?,
    }
    drop(call);
    flushes.commit().await?;
    // Written before the server ends.
    server.stop().await?;
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(1));
    Ok(())
}

#[tokio::test]
async fn nothing_is_acknowledged_before_the_commit() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    // Every statement of the flush succeeds; its commit fails.
    sqlx::raw_sql(
        "create function fail() returns trigger language plpgsql as $$
         begin raise exception 'the server ends' using errcode = 'admin_shutdown'; end $$;
         create constraint trigger fail after insert or update on eco_usage_counters
         deferrable initially deferred for each row execute function fail();",
    )
    .execute(&db.pool)
    .await?;
    let event = event("eco_a");
    refused(record(&server, event.clone()).await, Code::Unavailable, "DATABASE_UNAVAILABLE");
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(0));
    sqlx::raw_sql("drop trigger fail on eco_usage_counters").execute(&db.pool).await?;
    assert_eq!(record(&server, event).await?.outcome(), EventOutcome::Accepted);
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(1));
    Ok(())
}

#[tokio::test]
async fn errors_that_pass_by_themselves_mean_that_the_database_is_away_or_busy() -> Result<()> {
    let db = TestDb::new().await?;
    for (code, away, busy) in [
        ("08006", true, false),
        ("25006", true, false), // the other one took over: this is a standby
        ("53300", true, false),
        ("57P01", true, false),
        ("25P03", false, true), // a transaction stood idle for too long
        ("55P03", false, true),
        ("57014", false, true),
        ("40001", false, true),
        ("40P01", false, true),
        ("25P02", false, false),
        ("23505", false, false),
        ("42501", false, false),
    ] {
        let raise = format!("do $$ begin raise exception 'raised' using errcode = '{code}'; end $$");
        let error = sqlx::raw_sql(sqlx::AssertSqlSafe(raise)).execute(&db.pool).await.expect_err(code);
        assert_eq!((is_away(&error), is_busy(&error)), (away, busy), "{error:?}");
        assert_eq!(is_unavailable(&error), away || busy, "{error:?}");
    }
    Ok(())
}

/// Whoever asks for a connection and goes away does not cost it.
#[tokio::test]
async fn callers_that_give_up_leave_the_pool_its_connections() -> Result<()> {
    let db = TestDb::new().await?;
    let args = DbArgs { database_max_connections: 1, ..db.args() };
    let pool = nexus_kit::db::pool(&args, Role::Usage)?;
    let backend = async || -> Result<i32> {
        let mut connection = nexus_kit::db::acquire(&pool).await?;
        Ok(sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *connection).await?)
    };
    let first = backend().await?;
    for _ in 0..50 {
        let asked = nexus_kit::db::acquire(&pool).now_or_never();
        ensure!(asked.is_none(), "it has to wait for the database");
        let begun = nexus_kit::db::begin(&pool).now_or_never();
        ensure!(begun.is_none(), "it has to wait for the database");
        // Far enough for what was begun to be under way.
        tokio::task::yield_now().await;
    }
    assert_eq!(backend().await?, first);
    Ok(())
}
