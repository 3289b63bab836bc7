//! Days that are rebuilt, and plans that are changed, again and again: who counts has a turn in between.

use anyhow::Result;
use chrono::TimeDelta;
use futures::future::{join_all, try_join_all};
use nexus_core::plan::Plan;
use nexus_proto::usage::v1::EventOutcome;
use nexus_testkit::db::TestDb;
use sqlx::{AssertSqlSafe, Postgres, Transaction};

use crate::{
    spool::{World, drained},
    support::*,
};

/// What a rebuild of yesterday holds, or a change of the plan of `eco_a`.
#[derive(Debug, Clone, Copy)]
enum Lock {
    Yesterday,
    PlanOfA,
}

impl Lock {
    fn of(self) -> (&'static str, &'static str) {
        match self {
            Self::Yesterday => {
                ("nexus_usage_day", "(now() at time zone 'UTC')::date - 1 - date '2000-01-01'")
            }
            Self::PlanOfA => ("nexus_plan_range", "nexus_plan_range('eco_a')"),
        }
    }

    /// Takes it until the transaction ends.
    async fn seize(self, db: &TestDb) -> Result<Transaction<'static, Postgres>> {
        let (class, key) = self.of();
        let statement = format!("select pg_advisory_xact_lock(hashtext('{class}'), {key})");
        let mut transaction = nexus_kit::db::begin(&db.pool).await?;
        sqlx::query(AssertSqlSafe(statement)).execute(&mut *transaction).await?;
        Ok(transaction)
    }

    /// Returns once a session waits for it in this mode and holds nothing meanwhile.
    async fn is_waited_for(self, db: &TestDb, mode: &str) -> Result<()> {
        let (class, key) = self.of();
        let statement = format!(
            "select exists (select from pg_locks l join pg_database d on d.oid = l.database
             where d.datname = current_database() and l.locktype = 'advisory' and not l.granted
               and l.classid::bigint = hashtext('{class}')::bigint & 4294967295 and l.objid::bigint = {key}
               and l.mode = '{mode}'
               and not exists (select from pg_locks h
                               where h.pid = l.pid and h.granted and h.locktype <> 'virtualxid'))"
        );
        let waits = || sqlx::query_scalar::<_, bool>(AssertSqlSafe(statement.as_str())).fetch_one(&db.pool);
        eventually(async || Ok(waits().await?)).await
    }
}

/// Calls that came before another who wants the lock for itself, be it while the first of them waited already, are
/// counted before that one has it.
async fn calls_have_their_turn(lock: Lock) -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let first = lock.seize(&db).await?;
    let late = || event_at("eco_a", now() - TimeDelta::days(1));
    let second = async {
        lock.is_waited_for(&db, "ShareLock").await?;
        let (second, freed) = tokio::join!(lock.seize(&db), async {
            lock.is_waited_for(&db, "ExclusiveLock").await?;
            let (answers, freed) = tokio::join!(join_all((0..3).map(|_| record(&server, late()))), async {
                set_aside(&server, 4).await?;
                anyhow::Ok(first.commit().await?)
            });
            freed?;
            for answer in answers {
                assert_eq!(answer?.outcome(), EventOutcome::Accepted);
            }
            anyhow::Ok(())
        });
        freed?;
        second
    };
    // The second one keeps it.
    let (answer, second) = tokio::join!(record(&server, late()), second);
    assert_eq!(answer?.outcome(), EventOutcome::Accepted);
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(4));
    Ok(second?.commit().await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_have_their_turn_between_changes_of_plan() -> Result<()> {
    calls_have_their_turn(Lock::PlanOfA).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_have_their_turn_between_rebuilds() -> Result<()> {
    calls_have_their_turn(Lock::Yesterday).await
}

/// There are places to wait for four.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_of_one_locked_day_more_than_are_waited_for_does_not_wait_for_these() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let at = |days: i64| now() - TimeDelta::days(days);
    let rebuilds = try_join_all((1..=4).map(|days| hold_day(&db, at(days)))).await?;
    let mut of_four = Box::pin(join_all((1..=4).map(|days| record(&server, event_at("eco_a", at(days))))));
    tokio::select! {
        early = &mut of_four => anyhow::bail!("their days are being rebuilt: {early:?}"),
        waits = set_aside(&server, 4) => waits?,
    }
    let fifth = hold_day(&db, at(5)).await?;
    let freed = async {
        set_aside(&server, 5).await?;
        anyhow::Ok(fifth.commit().await?)
    };
    tokio::select! {
        early = &mut of_four => anyhow::bail!("the other waited for these: {early:?}"),
        (answer, freed) = async { tokio::join!(record(&server, event_at("eco_a", at(5))), freed) } => {
            freed?;
            assert_eq!(answer?.outcome(), EventOutcome::Accepted);
        }
    }
    for rebuild in rebuilds {
        rebuild.commit().await?;
    }
    for answer in of_four.await {
        assert_eq!(answer?.outcome(), EventOutcome::Accepted);
    }
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(5));
    Ok(())
}

/// The drain leaves out what is locked, and has its turn for that, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spool_is_drained_but_for_a_day_that_is_rebuilt_and_that_has_its_turn() -> Result<()> {
    let world = World::new().await?;
    let (server, db, lock) = (&world.server, &world.db, Lock::Yesterday);
    world.proxy.cut();
    for _ in 0..3 {
        for days in [1, 0, 1] {
            let answer = record(server, event_at("eco_a", now() - TimeDelta::days(days))).await?;
            assert_eq!(answer.outcome(), EventOutcome::Accepted);
        }
    }
    let first = lock.seize(db).await?;
    world.proxy.mend();
    eventually(async || Ok(world.sums().await? == plain(4))).await?;
    lock.is_waited_for(db, "ShareLock").await?;
    assert_eq!(server.metric("nexus_usage_degraded").await?, 0);
    assert_eq!(server.metric("nexus_usage_spool_events").await?, 6);
    let (second, freed) = tokio::join!(lock.seize(db), async {
        lock.is_waited_for(db, "ExclusiveLock").await?;
        anyhow::Ok(first.commit().await?)
    });
    freed?;
    // The second one keeps it.
    drained(server).await?;
    assert_eq!(world.sums().await?, plain(10));
    Ok(second?.commit().await?)
}
