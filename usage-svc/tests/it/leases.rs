//! Units that replicas hold: exact over replicas that take, give back, stop, are cut off and are killed.

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use nexus_kit::db::{self, Role};
use nexus_proto::usage::v1::{CheckQuotaResponse, UsageEvent};
use nexus_testkit::{db::TestDb, proxy::Proxy};
use sqlx::PgPool;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use uuid::Uuid;

use crate::support::*;

fn admitted(answers: &[Result<CheckQuotaResponse, Status>]) -> Result<i64> {
    for answer in answers {
        let code = answer.as_ref().err().map_or(Code::Ok, Status::code);
        ensure!([Code::Ok, Code::ResourceExhausted].contains(&code), "{answer:?}");
    }
    Ok(i64::try_from(answers.iter().filter(|answer| answer.is_ok()).count())?)
}

/// Has the server, which asks alone, hold units that it has not spent: a lease is as large as the pace of
/// the last one. Returns what was admitted.
async fn hold_some(db: &TestDb, server: &Server) -> Result<Vec<CheckQuotaResponse>> {
    hear(db, 1).await?;
    let mut answers = vec![check(server, "eco_a", 1).await?];
    while granted(db, "eco_a").await? == units(&answers)? {
        answers.push(check(server, "eco_a", 1).await?);
    }
    Ok(answers)
}

fn units(answers: &[CheckQuotaResponse]) -> Result<i64> {
    Ok(i64::try_from(answers.len())?)
}

/// When a refused caller is told to come back.
fn retry_after(status: &Status) -> Result<std::time::Duration> {
    status.get_error_details().retry_info().and_then(|info| info.retry_delay).context("no RetryInfo")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_the_limit_is_admitted_of_5000_checks_at_four_replicas_at_once() -> Result<()> {
    let db = database(1000).await?;
    let mut servers = Vec::new();
    for _ in 0..4 {
        servers.push(Server::start(db.args()).await?);
    }
    let answers = burst(&servers.iter().collect::<Vec<_>>(), "eco_a", 5000).await?;
    assert_eq!(admitted(&answers)?, 1000);
    assert_eq!(current(&servers[0], "eco_a").await?.consumed_count, 1000, "refused calls consume nothing");
    for server in servers {
        server.stop().await?;
    }
    assert_eq!(granted(&db, "eco_a").await?, 1000, "nobody held units that were not spent");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn units_that_lie_idle_at_one_replica_are_admitted_at_another() -> Result<()> {
    let db = database(60).await?;
    let (one, two) = (Server::start(db.args()).await?, Server::start(db.args()).await?);
    hear(&db, 2).await?;
    let mut spent = units(&hold_some(&db, &one).await?)?;
    // Only what the other gives back makes up the rest. That one is busy: it sweeps nothing, it is called.
    while let Err(refusal) = check(&two, "eco_a", 60 - spent).await {
        refused::<()>(Err(refusal), Code::ResourceExhausted, "QUOTA_EXCEEDED");
        check(&one, "eco_a", 1).await?;
        spent += 1;
    }
    for server in [&one, &two] {
        // Once each knows that nothing is outstanding: come back at the reset.
        eventually(async || {
            let answer = check(server, "eco_a", 1).await;
            let refusal = refused(answer, Code::ResourceExhausted, "QUOTA_EXCEEDED");
            Ok(retry_after(&refusal)?.as_secs() > 60)
        })
        .await?;
    }
    assert_eq!(granted(&db, "eco_a").await?, 60);
    Ok(())
}

#[tokio::test]
async fn a_request_for_more_than_a_lease_holds_is_granted_whole_or_not_at_all() -> Result<()> {
    let db = database(60).await?;
    let server = Server::start(db.args()).await?;
    let spent = units(&hold_some(&db, &server).await?)?;
    refused(check(&server, "eco_a", 61 - spent).await, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    // What is left, the units that it holds itself included.
    let last = check(&server, "eco_a", 60 - spent).await?;
    assert_eq!((last.consumed_count, last.remaining_count), (60, 0));
    refused(check(&server, "eco_a", 1).await, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    Ok(())
}

#[tokio::test]
async fn what_a_replica_holds_unspent_is_shown_as_remaining() -> Result<()> {
    let db = database(60).await?;
    let server = Server::start(db.args()).await?;
    let spent = units(&hold_some(&db, &server).await?)?;
    let next = check(&server, "eco_a", 1).await?;
    assert_eq!((next.consumed_count, next.remaining_count), (spent + 1, 59 - spent));
    assert_eq!(current(&server, "eco_a").await?.consumed_count, spent + 1);
    Ok(())
}

#[tokio::test]
async fn a_replica_that_stops_gives_back_what_it_has_not_spent() -> Result<()> {
    let db = database(60).await?;
    let (one, two) = (Server::start(db.args()).await?, Server::start(db.args()).await?);
    hear(&db, 2).await?;
    let spent = units(&hold_some(&db, &one).await?)?;
    one.stop().await?;
    assert_eq!(granted(&db, "eco_a").await?, spent);
    let holders: i64 = sqlx::query_scalar(
        "select count(*) from eco_quota_holders where holder_id in (select holder_id from eco_quota_leases)",
    )
    .fetch_one(&db.pool)
    .await?;
    assert_eq!(holders, 0, "it has left");
    assert_eq!(check(&two, "eco_a", 60 - spent).await?.remaining_count, 0);
    refused(check(&two, "eco_a", 1).await, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn units_of_a_killed_replica_are_forfeited_and_shown() -> Result<()> {
    let db = database(60).await?;
    let one = Server::start_apart(db.args()).await?;
    let first = hold_some(&db, &one).await?;
    let spent = units(&first)?;
    let lost = granted(&db, "eco_a").await? - spent;
    one.kill().await?;
    age_holders(&db).await?;
    let two = Server::start(db.args()).await?;
    let rest = admitted(&burst(&[&two], "eco_a", 60).await?)?;
    assert_eq!(spent + rest, 60 - lost, "all but what was lost");
    let refusal = refused(check(&two, "eco_a", 1).await, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    assert!(retry_after(&refusal)?.as_secs() <= 2, "it may come back, whatever the clocks say");
    // What the dead one has admitted cannot be told from what it held, until it is recorded.
    let usage = current(&two, "eco_a").await?;
    assert!((lost..=lost + spent).contains(&usage.forfeited_count), "{lost} of {usage:?}");
    assert_eq!(usage.consumed_count, 60);
    let events = first.into_iter().map(|a| UsageEvent { admission: a.admission, ..event("eco_a") });
    record_batch(&two, events.collect()).await?;
    let usage = current(&two, "eco_a").await?;
    assert_eq!((usage.forfeited_count, usage.consumed_count, usage.api_calls_count), (lost, 60, spent));
    Ok(())
}

/// It is paused, as far as anyone can tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_cut_off_serves_what_it_holds_and_overshoots_nothing() -> Result<()> {
    let db = database(60).await?;
    let proxy = Proxy::before(&db).await?;
    let one = Server::start(proxy.args(&db)?).await?;
    let two = Server::start(db.args()).await?;
    hear(&db, 2).await?;
    let spent = units(&hold_some(&db, &one).await?)?;
    proxy.cut();
    let held = granted(&db, "eco_a").await? - spent;
    assert!(held > 0);
    age_holders(&db).await?;
    // Taken for dead, its units are still its own.
    assert_eq!(admitted(&burst(&[&two], "eco_a", 60).await?)?, 60 - spent - held);
    check(&one, "eco_a", 1).await?;
    proxy.mend();
    let mut rest = held - 1;
    while rest > 0 {
        rest -= i64::from(check(&two, "eco_a", 1).await.is_ok());
    }
    assert_eq!(admitted(&burst(&[&one, &two], "eco_a", 10).await?)?, 0);
    assert_eq!(granted(&db, "eco_a").await?, 60);
    Ok(())
}

/// The commit of a grant is under way when its connection is cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_whose_answer_is_lost_gives_nothing_and_takes_nothing() -> Result<()> {
    let db = database(60).await?;
    let proxy = Proxy::before(&db).await?;
    let server = Server::start(proxy.args(&db)?).await?;
    sqlx::raw_sql(
        "create function wait() returns trigger language plpgsql as
         $$ begin perform pg_advisory_xact_lock_shared(42); return null; end $$;
         create constraint trigger wait after insert on eco_quota_leases
         deferrable initially deferred for each row execute function wait();",
    )
    .execute(&db.pool)
    .await?;
    let mut lock = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query("select pg_advisory_xact_lock(42)").execute(&mut *lock).await?;
    let mut call = Box::pin(check(&server, "eco_a", 40));
    tokio::select! {
        answer = &mut call => anyhow::bail!("answered before the commit: {answer:?}"),
        waited = service_waits(&db) => waited?,
    }
    proxy.cut();
    refused(call.await, Code::Unavailable, "DATABASE_UNAVAILABLE");
    lock.commit().await?;
    // The grant happens all the same.
    while granted(&db, "eco_a").await? != 40 {}
    proxy.mend();
    while check(&server, "eco_a", 60).await.is_err() {}
    assert_eq!(granted(&db, "eco_a").await?, 60);
    Ok(())
}

/// Asks the functions of the database as usage-svc does, for the account's first period.
struct Ledger {
    db: TestDb,
    pool: PgPool,
    period: (DateTime<Utc>, DateTime<Utc>),
}

impl Ledger {
    async fn new() -> Result<Self> {
        let db = database(60).await?;
        let pool = db::pool(&db.args(), Role::Usage)?;
        Ok(Self { db, pool, period: (now() - TimeDelta::days(1), now() + TimeDelta::days(1)) })
    }

    /// So many units of 60, or none.
    async fn grant(&self, lease: u128, units: i64) -> sqlx::Result<Option<i64>> {
        self.grant_for(lease, units, units).await
    }

    /// Units of 60 for so many that wait; the first of these needs `least`.
    async fn grant_for(&self, lease: u128, least: i64, waiting: i64) -> sqlx::Result<Option<i64>> {
        let statement =
            "select granted from nexus_grant_quota($1, gen_random_uuid(), 'eco_a', $2, $3, 60, $4, $5, 0)";
        sqlx::query_scalar(statement)
            .bind(Uuid::from_u128(lease))
            .bind(self.period.0)
            .bind(self.period.1)
            .bind(least)
            .bind(waiting)
            .fetch_one(&self.pool)
            .await
    }

    /// Returns what came back.
    async fn settle(&self, lease: u128, unspent: i64) -> Result<Option<i64>> {
        let statement = "select units from nexus_settle_leases(array[$1], array[$2], false)";
        let units = sqlx::query_scalar(statement).bind(Uuid::from_u128(lease)).bind(unspent);
        Ok(units.fetch_optional(&self.pool).await?)
    }

    async fn disown(&self, lease: u128) -> Result<i64> {
        sqlx::query("select nexus_disown_lease($1, 'eco_a', $2, $3)")
            .bind(Uuid::from_u128(lease))
            .bind(self.period.0)
            .bind(self.period.1)
            .execute(&self.pool)
            .await?;
        granted(&self.db, "eco_a").await
    }
}

/// A replica that is killed then takes no more than a part with it.
#[tokio::test]
async fn what_waits_is_granted_in_parts_of_what_is_left() -> Result<()> {
    let ledger = Ledger::new().await?;
    let mut granted = Vec::new();
    for lease in 1..=4 {
        granted.push(ledger.grant_for(lease, 1, 60).await?.unwrap_or_default());
    }
    assert_eq!(granted, [30, 16, 14, 0], "half, at least 16, the rest");
    Ok(())
}

#[tokio::test]
async fn a_lease_gives_back_once_and_never_what_was_recorded_against_it() -> Result<()> {
    let ledger = Ledger::new().await?;
    assert_eq!((ledger.grant(1, 40).await?, ledger.grant(2, 21).await?), (Some(40), Some(0)));
    assert_eq!((ledger.settle(1, 30).await?, ledger.settle(1, 30).await?), (Some(30), None));
    assert_eq!(granted(&ledger.db, "eco_a").await?, 10);
    assert_eq!(ledger.grant(3, 50).await?, Some(50));
    sqlx::query("update eco_quota_leases set booked_units = 20 where granted_units = 50")
        .execute(&ledger.db.pool)
        .await?;
    assert_eq!(ledger.settle(3, 50).await?, Some(30));
    assert_eq!(ledger.settle(4, 7).await?, None, "no such lease");
    assert_eq!(granted(&ledger.db, "eco_a").await?, 30);
    Ok(())
}

#[tokio::test]
async fn a_lease_that_is_disowned_cannot_be_granted_later() -> Result<()> {
    let ledger = Ledger::new().await?;
    assert_eq!(ledger.disown(1).await?, 0);
    let late = ledger.grant(1, 40).await.expect_err("its id is taken");
    assert!(late.as_database_error().is_some_and(|e| e.is_unique_violation()), "{late}");
    assert_eq!(ledger.grant(2, 40).await?, Some(40));
    assert_eq!((ledger.disown(2).await?, ledger.disown(2).await?), (0, 0));
    assert_eq!(ledger.grant(3, 60).await?, Some(60));
    Ok(())
}

#[tokio::test]
async fn no_units_are_granted_of_a_period_that_is_over_or_has_not_begun() -> Result<()> {
    let mut ledger = Ledger::new().await?;
    for days in [-2, 2] {
        let shift = TimeDelta::days(days);
        ledger.period = (now() - TimeDelta::days(1) + shift, now() + TimeDelta::days(1) + shift);
        assert_eq!(ledger.grant(1, 1).await?, None);
    }
    assert_eq!(granted(&ledger.db, "eco_a").await?, 0);
    Ok(())
}
