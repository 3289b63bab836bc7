//! A guard that holds units: exact over guards and replicas, whatever goes away, and all given back in the end.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nexus_client::{
    Guard,
    guard::{Admitted, Decision, GuardError, LeaseReport},
};
use nexus_core::plan::Plan;
use nexus_proto::usage::v1::UsageEvent;
use nexus_testkit::{db::TestDb, proxy::Proxy, settings::ANY_PORT};

use crate::support::*;

/// Units that nobody asks for go back after so long.
const IDLE: Duration = Duration::from_secs(2);
const DEADLINE: Duration = Duration::from_secs(30);

/// A database whose free plan has so many units, and `eco_a` with that plan.
async fn database(limit: i64) -> Result<TestDb> {
    let db = TestDb::new().await?;
    sqlx::query("update eco_plans set included_units = $1 where plan = 'free'")
        .bind(limit)
        .execute(&db.pool)
        .await?;
    account(&db, "eco_a", Plan::Free).await?;
    Ok(db)
}

/// One unit; `None`: refused.
async fn check(guard: &Guard) -> Result<Option<Admitted>> {
    check_for(guard, 1).await
}

async fn check_for(guard: &Guard, units: i64) -> Result<Option<Admitted>> {
    match guard.check("eco_a", units).await? {
        Decision::Admitted(admitted) => Ok(Some(admitted)),
        Decision::Refused(_) => Ok(None),
    }
}

/// Leases of clients, by their ids.
async fn lent(db: &TestDb) -> Result<BTreeSet<String>> {
    let ids = "select lease_id::text from eco_quota_leases where client_id is not null";
    Ok(sqlx::query_scalar(ids).fetch_all(&db.pool).await?.into_iter().collect())
}

/// Checks until units are admitted from what the guard holds; all that was admitted by then.
async fn hold(db: &TestDb, guard: &Guard) -> Result<Vec<Admitted>> {
    hold_by(db, guard, 1).await
}

/// The same by checks of so many units each: it holds the more.
async fn hold_by(db: &TestDb, guard: &Guard, units: i64) -> Result<Vec<Admitted>> {
    let mut all = Vec::new();
    let held = async {
        loop {
            let admitted = check_for(guard, units).await?.context("there are units")?;
            all.push(admitted.clone());
            if lent(db).await?.contains(&admitted.admission) {
                return anyhow::Ok(());
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), held).await??;
    Ok(all)
}

fn units(admitted: &[Admitted]) -> Result<i64> {
    Ok(i64::try_from(admitted.len())?)
}

async fn nothing_is_lost(guard: &Guard) {
    let LeaseReport { forfeited_units, .. } = guard.shutdown(DEADLINE).await;
    assert_eq!(forfeited_units, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_the_limit_is_admitted_by_two_guards_and_a_replica() -> Result<()> {
    let db = database(2_000).await?;
    let (one, two) = (Server::start(db.args()).await?, Server::start(db.args()).await?);
    hear(&db, 2).await?;
    let guards = [one.guard()?.leased(8), two.guard()?.leased(8), two.guard()?];
    let workers: Vec<_> = guards
        .iter()
        .flat_map(|guard| std::iter::repeat_n(guard, 4))
        .map(|guard| {
            let guard = guard.clone();
            tokio::spawn(async move {
                let mut admitted = Vec::new();
                // Refused for as long as others hold units, and then for good.
                let mut refused = 0;
                while refused < 3 {
                    match check(&guard).await? {
                        Some(unit) => admitted.push(unit.admission),
                        None => refused += 1,
                    }
                }
                anyhow::Ok(admitted)
            })
        })
        .collect();
    let mut admitted = Vec::new();
    for worker in workers {
        admitted.extend(worker.await??);
    }
    let lent = lent(&db).await?;
    let from_memory = admitted.iter().filter(|admission| lent.contains(*admission)).count();
    assert!(from_memory > 200, "{from_memory} of {} were decided here", admitted.len());
    for guard in &guards {
        nothing_is_lost(guard).await;
    }
    // What came back after the last refusal is there for whoever asks, and not a unit more. A replica has a quarter of
    // a second to give back what it holds: on a busy machine it is asked again.
    let mut total = admitted.len();
    let rest = async {
        while total < 2_000 {
            total += usize::from(check(&guards[2]).await?.is_some());
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(DEADLINE, rest).await??;
    assert_eq!(total, 2_000);
    assert!(check(&guards[2]).await?.is_none());
    assert_eq!(consumed(&db.pool, "eco_a").await?, (2_000, 0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_admitted_here_is_recorded_and_consumed_once() -> Result<()> {
    let db = database(1_000).await?;
    let server = Server::start(db.args()).await?;
    hear(&db, 1).await?;
    let guard = server.guard()?.leased(8);
    let admitted = hold(&db, &guard).await?;
    let used = units(&admitted)?;
    let last = admitted.last().context("some")?;
    assert_eq!(last.quota.limit, 1_000);
    // What the replica admitted while the grant was under way is known with the next answer.
    assert!((1_000 - used..1_000).contains(&last.quota.remaining), "{used} used, {:?}", last.quota);
    let tracker = tracker(&server.url())?.build().await?;
    for unit in &admitted {
        tracker.track(UsageEvent { admission: unit.admission.clone(), ..event("eco_a") })?;
    }
    tracker.flush().await?;
    nothing_is_lost(&guard).await;
    assert_eq!(counted(&db.pool, "eco_a").await?, each(used));
    assert_eq!(server.consumed("eco_a").await?, used);
    // It holds nothing more, and asks.
    let admission = check(&guard).await?.context("there are units")?.admission;
    assert!(!lent(&db).await?.contains(&admission));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn units_that_lie_idle_here_are_admitted_elsewhere_at_once() -> Result<()> {
    let db = database(100).await?;
    let (one, two) = (Server::start(db.args()).await?, Server::start(db.args()).await?);
    hear(&db, 2).await?;
    let guard = one.guard()?.leased(8);
    let used = units(&hold(&db, &guard).await?)?;
    let (held, other) = (Instant::now(), two.guard()?);
    // On a busy machine they come back a moment after the first check gave up waiting for them.
    while matches!(other.check("eco_a", 100 - used).await?, Decision::Refused(_)) {
        assert!(held.elapsed() < IDLE, "they would have come back by themselves");
    }
    assert!(check(&guard).await?.is_none());
    nothing_is_lost(&guard).await;
    assert_eq!(consumed(&db.pool, "eco_a").await?, (100, 0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn units_that_nobody_asks_for_go_back() -> Result<()> {
    let db = database(1_000).await?;
    let server = Server::start(db.args()).await?;
    hear(&db, 1).await?;
    let guard = server.guard()?.leased(8);
    let used = units(&hold(&db, &guard).await?)?;
    while server.consumed("eco_a").await? != used {}
    nothing_is_lost(&guard).await;
    Ok(())
}

/// The server is killed: what it lent is used on, and settled with the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_restarts_loses_nothing() -> Result<()> {
    let db = database(100_000).await?;
    let server = Server::start(db.args()).await?;
    hear(&db, 1).await?;
    let guard = server.guard()?.leased(8);
    // Many at a time: where checks are slow, a lease has hardly more than one needs, and would be used up by now.
    let mut used = 50 * units(&hold_by(&db, &guard, 50).await?)?;
    let address = server.address;
    server.kill().await?;
    let mut here = 0;
    loop {
        match check(&guard).await {
            Ok(Some(_)) => here += 1,
            Ok(None) => bail!("there are units"),
            Err(_) => break,
        }
    }
    used += here;
    assert!(here > 0, "what was held is used");
    let server = Server::start_at(address, db.args()).await?;
    // Units that the one that was killed held itself are lost with it; those of the guard are not.
    let held = "select coalesce(sum(granted_units), 0)::bigint from eco_quota_leases where client_id is null";
    let held: i64 = sqlx::query_scalar(held).fetch_one(&db.pool).await?;
    nothing_is_lost(&guard).await;
    let mine = "select coalesce(sum(granted_units - returned_units), 0)::bigint from eco_quota_leases
                where client_id is not null";
    let mine: i64 = sqlx::query_scalar(mine).fetch_one(&db.pool).await?;
    assert!((used - held..=used).contains(&mine), "{mine} of {used}, {held} by the replica");
    assert_eq!(unsettled(&db).await?, 0);
    server.kill().await
}

/// Leases of clients that nobody settled.
async fn unsettled(db: &TestDb) -> Result<i64> {
    let open = "select count(*) from eco_quota_leases where client_id is not null and settled_time is null";
    Ok(sqlx::query_scalar(open).fetch_one(&db.pool).await?)
}

/// The connection breaks while units are being granted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_whose_answer_is_lost_is_given_back() -> Result<()> {
    let db = database(1_000).await?;
    let server = Server::start(db.args()).await?;
    let proxy = Proxy::before_tcp(server.address).await?;
    hear(&db, 1).await?;
    sqlx::raw_sql(
        "create function wait() returns trigger language plpgsql as
         $$ begin perform pg_advisory_xact_lock_shared(42); return null; end $$;
         create constraint trigger wait after update of client_id on eco_quota_leases
         deferrable initially deferred for each row execute function wait();",
    )
    .execute(&db.pool)
    .await?;
    let mut lock = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query("select pg_advisory_xact_lock(42)").execute(&mut *lock).await?;
    let guard = Guard::new(nexus_client::channel(&format!("http://{}", proxy.address()))?, credentials()?);
    let guard = guard.timeout(DEADLINE).leased(8);
    // From when the grant waits, a check may wait for it.
    let checks = async {
        loop {
            if let Err(error) = check(&guard).await {
                return error;
            }
        }
    };
    let waits =
        "select exists (select from pg_locks where locktype = 'advisory' and objid = 42 and not granted
                 and database = (select oid from pg_database where datname = current_database()))";
    tokio::select! {
        error = checks => return Err(error),
        waits = until(&db.pool, waits) => waits?,
    }
    proxy.cut();
    lock.commit().await?;
    while lent(&db).await?.is_empty() {}
    proxy.mend();
    nothing_is_lost(&guard).await;
    assert_eq!(unsettled(&db).await?, 0);
    let used = "select sum(granted_units - returned_units)::bigint from eco_quota_leases where client_id is not null";
    assert_eq!(sqlx::query_scalar::<_, i64>(used).fetch_one(&db.pool).await?, 0);
    Ok(())
}

/// Cut off without a word: what is held may be used for as long as the server said, and not longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_admitted_unheard_for_longer_than_the_server_allows() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Enterprise).await?;
    let stale_max = Duration::from_secs(3);
    let server = Server::start_with(ANY_PORT, db.args(), stale_max).await?;
    let proxy = Proxy::before_tcp(server.address).await?;
    hear(&db, 1).await?;
    let url = format!("http://{}", proxy.address());
    let guard = Guard::new(nexus_client::channel(&url)?, credentials()?);
    let guard = guard.timeout(Duration::from_secs(2)).leased(8);
    hold_by(&db, &guard, 1_000).await?;
    proxy.silence();
    let cut = Instant::now();
    // When the last check began that was admitted: how long it took, and the one that failed, depends on the machine.
    let mut last = Duration::ZERO;
    loop {
        let began = cut.elapsed();
        match guard.check("eco_a", 1).await {
            // Not all is used up that quickly.
            Ok(_) => {
                last = began;
                lent(&db).await?;
            }
            Err(GuardError::Unavailable(_)) => break,
            Err(error) => return Err(error.into()),
        }
    }
    assert!(last < stale_max + Duration::from_millis(500), "{last:?}");
    assert!(last > Duration::from_secs(1), "what is held is used: {last:?}");
    let report = guard.shutdown(Duration::from_millis(100)).await;
    assert!(report.forfeited_units > 0, "what cannot be given back is said");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lowered_limit_takes_back_what_is_held_here() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Enterprise).await?;
    let server = Server::start(db.args()).await?;
    hear(&db, 1).await?;
    let guard = server.guard()?.leased(8);
    // More than can be used up one by one.
    hold_by(&db, &guard, 1_000).await?;
    sqlx::query("update eco_subscriptions set plan = 'free'").execute(&db.pool).await?;
    let refused = async {
        while check(&guard).await?.is_some() {
            lent(&db).await?;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(DEADLINE, refused).await??;
    nothing_is_lost(&guard).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_an_outage_an_account_that_is_closed_closes_no_other() -> Result<()> {
    let db = database(1_000).await?;
    account(&db, "eco_p", Plan::Pro).await?;
    let proxy = Proxy::before(&db).await?;
    let server = Server::start(proxy.args(&db)?).await?;
    let guard = server.guard()?;
    for eco_id in ["eco_a", "eco_p"] {
        assert!(matches!(guard.check(eco_id, 1).await?, Decision::Admitted(_)), "{eco_id} is known");
    }
    proxy.cut();
    // More than are left: refused, until nobody can tell.
    while guard.check("eco_a", 1_000).await.is_ok() {}
    for _ in 0..20 {
        assert!(matches!(guard.check("eco_a", 1_000).await, Err(GuardError::Unavailable(_))));
        assert!(matches!(guard.check("eco_p", 1).await?, Decision::Admitted(_)));
    }
    Ok(())
}
