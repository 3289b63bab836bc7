//! What holds for units that replicas hold: changed plans and accounts, periods that end, and a database
//! that is away.

use std::sync::Arc;

use anyhow::Result;
use chrono::{DateTime, Months, Utc};
use futures::future::join_all;
use nexus_core::{id::EcoId, plan::Plan};
use nexus_kit::{
    config::DbArgs,
    db::{self, Role},
};
use nexus_testkit::{db::TestDb, proxy::Proxy, seed};
use nexus_usage::{
    app::{
        feed::{self, Feed},
        known::Known,
        outage::Outage,
        quota::{self, Quota, Verdict},
    },
    domain::judge::Facts,
    store,
};
use sqlx::PgPool;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status};

use crate::support::*;

/// A database and two replicas that hold units of `eco_a`, a free account.
async fn two_holders() -> Result<(TestDb, [Server; 2])> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Free).await?;
    let servers = [Server::start(db.args()).await?, Server::start(db.args()).await?];
    hear(&db, 2).await?;
    for server in &servers {
        check(server, "eco_a", 1).await?;
    }
    Ok((db, servers))
}

/// Uses up the account, so that both replicas remember that it is refused until the reset. A burst may be refused for
/// units that are on their way back, and are there for the next.
async fn use_up(db: &TestDb, servers: &[Server; 2]) -> Result<()> {
    eventually(async || {
        let answers = burst(&[&servers[0], &servers[1]], "eco_a", 250).await?;
        Ok(answers.iter().all(Result::is_err) && granted(db, "eco_a").await? == 1000)
    })
    .await?;
    for server in servers {
        refused(check(server, "eco_a", 1).await, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    }
    Ok(())
}

/// Returns once the server answers so; what it remembered would last for weeks.
async fn becomes(server: &Server, eco_id: &str, code: Code) -> Result<()> {
    let answers = async {
        while check(server, eco_id, 1).await.as_ref().err().map_or(Code::Ok, Status::code) != code {}
    };
    Ok(tokio::time::timeout(TIMEOUT, answers).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_is_in_force_at_every_replica() -> Result<()> {
    let (db, servers) = two_holders().await?;
    use_up(&db, &servers).await?;
    sqlx::query("update eco_subscriptions set plan = 'pro'").execute(&db.pool).await?;
    for server in &servers {
        becomes(server, "eco_a", Code::Ok).await?;
        assert_eq!(check(server, "eco_a", 1).await?.limit_count, 100_000);
    }
    Ok(())
}

/// Units that go back at a change were not spent: they make no lease larger.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_do_not_grow_with_changes_of_plan() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let server = Server::start(db.args()).await?;
    hear(&db, 1).await?;
    for plan in ["enterprise", "pro", "enterprise", "pro"] {
        check(&server, "eco_a", 1).await?;
        sqlx::query("update eco_subscriptions set plan = $1").bind(plan).execute(&db.pool).await?;
        let held = "select count(*) from eco_quota_leases where settled_time is null";
        eventually(async || Ok(sqlx::query_scalar::<_, i64>(held).fetch_one(&db.pool).await? == 0)).await?;
    }
    check(&server, "eco_a", 1).await?;
    let largest: i64 =
        sqlx::query_scalar("select max(granted_units) from eco_quota_leases").fetch_one(&db.pool).await?;
    assert_eq!(largest, 100);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raised_limit_is_in_force_at_every_replica_and_no_unit_beyond_it() -> Result<()> {
    let (db, servers) = two_holders().await?;
    use_up(&db, &servers).await?;
    sqlx::query("update eco_plans set included_units = 1010 where plan = 'free'").execute(&db.pool).await?;
    for server in &servers {
        becomes(server, "eco_a", Code::Ok).await?;
    }
    eventually(async || {
        let answers = burst(&[&servers[0], &servers[1]], "eco_a", 10).await?;
        Ok(answers.iter().all(Result::is_err) && granted(&db, "eco_a").await? >= 1010)
    })
    .await?;
    assert_eq!(granted(&db, "eco_a").await?, 1010);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lowered_limit_takes_back_what_is_held() -> Result<()> {
    let (db, servers) = two_holders().await?;
    sqlx::query("update eco_plans set included_units = 5 where plan = 'free'").execute(&db.pool).await?;
    for server in &servers {
        becomes(server, "eco_a", Code::ResourceExhausted).await?;
    }
    let refusal = refused(check(&servers[0], "eco_a", 1).await, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    assert!(refusal.message().contains("of 5 units"), "{refusal:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_account_admits_nothing_at_any_replica_and_holds_nothing() -> Result<()> {
    let (db, servers) = two_holders().await?;
    // So that nobody runs out of units, and asks for more, before the closure is heard.
    sqlx::query("update eco_subscriptions set plan = 'enterprise'").execute(&db.pool).await?;
    for server in &servers {
        eventually(async || Ok(check(server, "eco_a", 1).await?.limit_count < 0)).await?;
    }
    close(&db, "eco_a").await?;
    for server in &servers {
        becomes(server, "eco_a", Code::FailedPrecondition).await?;
    }
    let consumed = current(&servers[0], "eco_a").await?.consumed_count;
    while granted(&db, "eco_a").await? > consumed {}
    Ok(())
}

/// The feed is cut, so that the change is not heard; that it was not is known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_was_not_heard_is_in_force_when_the_feed_comes_back() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Free).await?;
    let proxy = Proxy::before(&db).await?;
    let server = Server::start(proxy.args(&db)?).await?;
    check(&server, "eco_a", 1000).await?;
    refused(check(&server, "eco_a", 1).await, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    proxy.cut();
    sqlx::query("update eco_subscriptions set plan = 'pro'").execute(&db.pool).await?;
    proxy.mend();
    becomes(&server, "eco_a", Code::Ok).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_database_is_away_what_is_held_is_served_and_then_the_plan_decides() -> Result<()> {
    let db = TestDb::new().await?;
    let proxy = Proxy::before(&db).await?;
    for (eco_id, plan) in [
        ("eco_free", Plan::Free),
        ("eco_pro", Plan::Pro),
        ("eco_ent", Plan::Enterprise),
        ("eco_new", Plan::Pro),
        ("eco_capped", Plan::Pro),
    ] {
        account(&db, eco_id, plan).await?;
    }
    let caps =
        "update eco_identities set spend_cap_micros = 1000000 where eco_id in ('eco_ent', 'eco_capped')";
    sqlx::query(caps).execute(&db.pool).await?;
    let server = Server::start(proxy.args(&db)?).await?;
    hear(&db, 1).await?;
    let mut spent = 0;
    while granted(&db, "eco_free").await? == spent {
        check(&server, "eco_free", 1).await?;
        spent += 1;
    }
    for eco_id in ["eco_pro", "eco_ent", "eco_capped"] {
        assert!(!check(&server, eco_id, 1).await?.admission.is_empty());
    }
    proxy.cut();
    let held = granted(&db, "eco_free").await? - spent;
    assert!(held > 0);
    for _ in 0..held {
        assert!(!check(&server, "eco_free", 1).await?.admission.is_empty());
    }
    refused(check(&server, "eco_free", 1).await, Code::Unavailable, "DATABASE_UNAVAILABLE");
    for eco_id in ["eco_pro", "eco_ent"] {
        assert!(!check(&server, eco_id, 1).await?.admission.is_empty(), "of a lease");
        let open = check(&server, eco_id, 1_000_000).await?;
        assert!(open.admission.is_empty(), "of no lease: {open:?}");
    }
    // The cap might be passed; that of an unlimited plan never is.
    let closed = loop {
        match check(&server, "eco_capped", 1).await {
            Ok(held) => assert!(!held.admission.is_empty(), "{held:?}"),
            refusal => break refusal,
        }
    };
    refused(closed, Code::Unavailable, "DATABASE_UNAVAILABLE");
    // What its plan is nobody knows.
    refused(check(&server, "eco_new", 1).await, Code::Unavailable, "DATABASE_UNAVAILABLE");
    proxy.mend();
    becomes(&server, "eco_free", Code::Ok).await?;
    becomes(&server, "eco_new", Code::Ok).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_period_that_ends_takes_its_units_with_it() -> Result<()> {
    let db = TestDb::new().await?;
    // More than can be used up until then.
    sqlx::query("update eco_plans set included_units = 1000000000 where plan = 'free'")
        .execute(&db.pool)
        .await?;
    // Ends in three seconds: the anchor is four years ago, on a day that this year has as well.
    let anchor: DateTime<Utc> =
        sqlx::query_scalar("select now() + interval '3 seconds' - interval '48 months'")
            .fetch_one(&db.pool)
            .await?;
    seed::account(&db.pool, "eco_a", Plan::Free, anchor).await?;
    let server = Server::start(db.args()).await?;
    let first = check(&server, "eco_a", 1).await?;
    let mut spent = 1;
    let next = loop {
        let answer = check(&server, "eco_a", 1).await?;
        if answer.period_start_time != first.period_start_time {
            break answer;
        }
        spent += 1;
    };
    let of_the_old = "select sum(granted_units)::bigint from eco_quota_leases where period_start < (select max(period_start) from eco_quota_leases)";
    assert!(sqlx::query_scalar::<_, i64>(of_the_old).fetch_one(&db.pool).await? > spent, "units were held");
    assert_eq!((next.period_start_time, next.consumed_count), (first.period_end_time, 1));
    let admitted_in: DateTime<Utc> =
        sqlx::query_scalar("select period_start from eco_quota_leases where lease_id = $1::uuid")
            .bind(&next.admission)
            .fetch_one(&db.pool)
            .await?;
    assert_eq!(next.period_start_time, Some(nexus_kit::convert::timestamp(admitted_in)));
    // What was held of the old one went back to it.
    let in_the_old = "select (granted_units - returned_units) from eco_quota_usage where period_start < $1";
    while sqlx::query_scalar::<_, i64>(in_the_old).bind(admitted_in).fetch_one(&db.pool).await? != spent {}
    Ok(())
}

/// Fills the server's memory: `eco_pro` and `eco_free` were checked, of `eco_recorded` an event was recorded.
async fn known() -> Result<(TestDb, Proxy, Server)> {
    let db = TestDb::new().await?;
    for (eco_id, plan) in [("eco_free", Plan::Free), ("eco_pro", Plan::Pro), ("eco_recorded", Plan::Pro)] {
        account(&db, eco_id, plan).await?;
    }
    let proxy = Proxy::before(&db).await?;
    let server = Server::start(proxy.args(&db)?).await?;
    hear(&db, 1).await?;
    for eco_id in ["eco_free", "eco_pro"] {
        check(&server, eco_id, 1).await?;
    }
    record(&server, event("eco_recorded")).await?;
    Ok((db, proxy, server))
}

/// Nothing of the account is held, as the database knows it.
async fn is_given_back(db: &TestDb, eco_id: &str) -> Result<()> {
    let held = "select count(*) from eco_quota_leases where eco_id = $1 and settled_time is null";
    eventually(async || Ok(sqlx::query_scalar::<_, i64>(held).bind(eco_id).fetch_one(&db.pool).await? == 0))
        .await
}

/// While the database is away, an account whose plan refuses nobody is open; that of which it is not known, or that is
/// limited, is closed.
async fn plans_decide(server: &Server) -> Result<()> {
    for eco_id in ["eco_pro", "eco_recorded"] {
        let open = check(server, eco_id, 1).await?;
        assert!(open.admission.is_empty(), "of no lease: {eco_id} {open:?}");
        assert_eq!((open.limit_count, open.plan()), (100_000, nexus_proto::common::v1::Plan::Pro));
    }
    refused(check(server, "eco_free", 1).await, Code::Unavailable, "DATABASE_UNAVAILABLE");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_decide_in_an_outage_after_the_database_was_back_for_a_moment() -> Result<()> {
    let (db, proxy, server) = known().await?;
    // A connection of the feed that is made anew makes everything doubtful: what is held goes back.
    proxy.cut();
    let connections = "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'nexus usage'";
    eventually(async || Ok(sqlx::query_scalar::<_, i64>(connections).fetch_one(&db.pool).await? == 0))
        .await?;
    proxy.mend();
    for eco_id in ["eco_free", "eco_pro"] {
        is_given_back(&db, eco_id).await?;
    }
    proxy.cut();
    plans_decide(&server).await
}

/// Of a downgrade that waits for the period's end it is known, whether the account was checked or recorded for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_downgrade_whose_time_comes_in_an_outage_is_in_force() -> Result<()> {
    let db = TestDb::new().await?;
    let end: DateTime<Utc> =
        sqlx::query_scalar("select now() + interval '5 seconds'").fetch_one(&db.pool).await?;
    let accounts = ["eco_checked", "eco_recorded", "eco_stays"];
    for eco_id in accounts {
        // Four years ago, on a day that this year has as well.
        seed::account(&db.pool, eco_id, Plan::Pro, end - Months::new(48)).await?;
    }
    let downgrade = "update eco_subscriptions
                     set next_plan = 'free', next_plan_version = 1, next_plan_time = $1 where eco_id <> 'eco_stays'";
    sqlx::query(downgrade).bind(end).execute(&db.pool).await?;
    let proxy = Proxy::before(&db).await?;
    let server = Server::start(proxy.args(&db)?).await?;
    assert_eq!(check(&server, "eco_checked", 1).await?.plan(), nexus_proto::common::v1::Plan::Pro);
    for eco_id in accounts {
        record(&server, event(eco_id)).await?;
    }
    proxy.cut();
    for eco_id in ["eco_checked", "eco_recorded"] {
        becomes(&server, eco_id, Code::Unavailable).await?;
    }
    assert!(check(&server, "eco_stays", 1).await?.admission.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_decide_in_an_outage_after_the_plans_changed() -> Result<()> {
    let (db, proxy, server) = known().await?;
    sqlx::query("update eco_plans set included_units = 2000 where plan = 'free'").execute(&db.pool).await?;
    for eco_id in ["eco_free", "eco_pro"] {
        is_given_back(&db, eco_id).await?;
    }
    proxy.cut();
    plans_decide(&server).await
}

/// Those who ask at once do not wait for the database one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_an_outage_nobody_waits_for_those_who_asked_before() -> Result<()> {
    let (_db, proxy, server) = known().await?;
    // A connection is waited for as long as may be: so many, one after the other, would take too long.
    proxy.silence();
    let asked = (0..24).map(|_| async { check(&server, "eco_recorded", 1).await });
    for answer in tokio::time::timeout(TIMEOUT, join_all(asked)).await? {
        assert!(answer?.admission.is_empty());
    }
    Ok(())
}

/// A replica without a server.
struct Replica {
    pool: PgPool,
    feed: Arc<Feed>,
    known: Arc<Known>,
    outage: Arc<Outage>,
    quota: Quota,
    _stop: DropGuard,
}

impl Replica {
    async fn start(args: &DbArgs) -> Result<Self> {
        Self::start_apart(args, args).await
    }

    /// The feed has another way to the database.
    async fn start_apart(feed: &DbArgs, args: &DbArgs) -> Result<Self> {
        let (stop, known) = (CancellationToken::new(), Arc::new(Known::default()));
        let (feed, _listening) = feed::start(feed, stop.clone())?;
        let pool = db::pool(args, Role::Usage)?;
        let outage = Arc::new(Outage::new(feed.clone()));
        let name = "a test".to_owned();
        let (quota, _holding) =
            quota::start(pool.clone(), outage.clone(), known.clone(), name, TIMEOUT, stop.clone());
        until(|| feed.is_heard()).await?;
        Ok(Self { pool, feed, known, outage, quota, _stop: stop.drop_guard() })
    }

    /// Knows of an account as after a flush.
    async fn learn(&self, eco_id: &EcoId) -> Result<()> {
        let (mut connection, id) = (db::acquire(&self.pool).await?, [eco_id.as_str()]);
        let facts = Facts {
            now: now(),
            accounts: store::accounts::for_recording(&mut connection, &id).await?,
            terms: store::accounts::terms(&mut connection, &id).await?,
            ..Facts::default()
        };
        self.known.learn(self.known.before(), &facts);
        Ok(())
    }

    async fn knows(&self, eco_id: &EcoId, plan: Plan) -> Result<()> {
        until(|| self.known.terms(eco_id).is_some_and(|(terms, ..)| terms.plan == plan)).await
    }
}

/// A replica that nobody asks finds out by itself, and as long as it lasts: whoever asks then waits for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_known_before_anybody_asks() -> Result<()> {
    let db = TestDb::new().await?;
    let proxy = Proxy::before(&db).await?;
    let replica = Replica::start(&proxy.args(&db)?).await?;
    assert!(!replica.outage.is_on());
    proxy.cut();
    until(|| replica.outage.is_on()).await?;
    proxy.mend();
    until(|| replica.feed.is_heard() && !replica.outage.is_on()).await
}

/// What changed while the feed was not heard is asked for when it is, of accounts too that nobody asks about.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_was_not_heard_is_known_in_the_next_outage() -> Result<()> {
    let db = TestDb::new().await?;
    let eco_id = EcoId::parse("eco_a")?;
    account(&db, "eco_a", Plan::Pro).await?;
    let proxy = Proxy::before(&db).await?;
    let replica = Replica::start(&proxy.args(&db)?).await?;
    replica.learn(&eco_id).await?;
    proxy.cut();
    until(|| replica.outage.is_on()).await?;
    sqlx::query("update eco_subscriptions set plan = 'free'").execute(&db.pool).await?;
    replica.knows(&eco_id, Plan::Pro).await?;
    proxy.mend();
    replica.knows(&eco_id, Plan::Free).await
}

/// A database that takes no new connection serves those who have one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_that_is_refused_is_no_outage_while_the_database_answers() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Free).await?;
    let proxy = Proxy::before(&db).await?;
    let replica = Replica::start_apart(&proxy.args(&db)?, &db.args()).await?;
    proxy.cut();
    until(|| replica.feed.is_refused() && !replica.feed.is_heard()).await?;
    let eco_id = EcoId::parse("eco_a")?;
    for _ in 0..1_000 {
        assert!(matches!(replica.quota.admit(&eco_id, 1).await?.verdict, Verdict::Admitted(_)));
    }
    Ok(())
}

/// An account that changed is read anew, so that no change between two outages goes unknown: one that was checked, and
/// one for which was only recorded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_changed_is_known_again_before_anybody_asks() -> Result<()> {
    let db = TestDb::new().await?;
    let replica = Replica::start(&db.args()).await?;
    let [checked, recorded] = [EcoId::parse("eco_checked")?, EcoId::parse("eco_recorded")?];
    for eco_id in [&checked, &recorded] {
        account(&db, eco_id.as_str(), Plan::Free).await?;
    }
    replica.quota.admit(&checked, 1).await?;
    replica.learn(&recorded).await?;
    for eco_id in [&checked, &recorded] {
        for plan in [Plan::Pro, Plan::Free, Plan::Enterprise] {
            let change = "update eco_subscriptions set plan = $1 where eco_id = $2";
            sqlx::query(change).bind(plan.as_str()).bind(eco_id.as_str()).execute(&db.pool).await?;
            replica.knows(eco_id, plan).await?;
        }
    }
    Ok(())
}
