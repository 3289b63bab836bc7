//! Spend caps: exact as a hard limit over replicas and clients, in force everywhere once they change.

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response::Code as Verdict;
use futures::future::try_join_all;
use nexus_core::plan::Plan;
use nexus_proto::usage::v1::{CheckQuotaResponse, LeaseQuotaResponse, UsageEvent};
use nexus_testkit::{db::TestDb, seed};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{
    billing::Billing,
    lease_quota::{Leasing, granted_of, settle, want},
    rate_limit::{account_of, verdict},
    support::*,
};

/// Micros of a unit beyond the included ones.
const UNIT: i64 = 1_000;

/// The plan pro with 60 units, `eco_a` on it with this cap, a billing-svc, and two servers that hear of changes.
async fn suite(cap: Option<i64>) -> Result<(TestDb, Billing, [Server; 2])> {
    let db = TestDb::new().await?;
    sqlx::query("update eco_plans set included_units = 60 where plan = 'pro'").execute(&db.pool).await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let billing = Billing::start(&db).await?;
    billing.cap("eco_a", cap).await?;
    let servers = [Server::start(db.args()).await?, Server::start(db.args()).await?];
    hear(&db, 2).await?;
    Ok((db, billing, servers))
}

/// The refusal of a cap that is reached, of so many units.
#[track_caller]
fn capped<T: std::fmt::Debug>(result: Result<T, Status>, limit: i64) -> Status {
    let refusal = refused(result, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    let details = refusal.get_error_details();
    let metadata = details.error_info().map(|info| &info.metadata);
    let told = |key: &str| metadata.and_then(|metadata| metadata.get(key)).cloned().unwrap_or_default();
    assert_eq!((told("reason"), told("limit")), ("spend_cap_reached".to_owned(), limit.to_string()));
    refusal
}

/// Checks at both servers until so many units are granted and used; returns the admissions.
async fn use_up(db: &TestDb, servers: &[Server; 2], units: i64) -> Result<Vec<String>> {
    let mut admissions = Vec::new();
    eventually(async || {
        let answers = burst(&[&servers[0], &servers[1]], "eco_a", 100).await?;
        let is_refused = answers.iter().all(Result::is_err);
        admissions.extend(answers.into_iter().flatten().map(|admitted| admitted.admission));
        // Whoever was refused while the other held units may come again.
        Ok(is_refused && granted(db, "eco_a").await? == units)
    })
    .await?;
    Ok(admissions)
}

/// Returns once every server answers so.
async fn become_so(servers: &[Server; 2], admitted: bool) -> Result<()> {
    for server in servers {
        eventually(async || Ok(check(server, "eco_a", 1).await.is_ok() == admitted)).await?;
    }
    Ok(())
}

/// Uses what a client was granted, and leases more until there are none; returns how many. Others have some of the time.
async fn lease_on((mut client, mut lease): (Leasing, LeaseQuotaResponse)) -> Result<i64> {
    let mut used = 0;
    while lease.granted_count > 0 {
        assert_eq!(lease.limit_count, 100);
        used += lease.granted_count;
        client.ask(settle(&lease.lease_id, lease.granted_count)).await?;
        lease = client.ask(want(7)).await?;
    }
    Ok(used)
}

/// What is admitted until something is refused.
async fn admitted(server: &Server) -> Vec<CheckQuotaResponse> {
    let mut admitted = Vec::new();
    while let Ok(answer) = check(server, "eco_a", 1).await {
        admitted.push(answer);
    }
    admitted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cap_is_exact_over_servers_and_clients_that_lease() -> Result<()> {
    let (db, billing, servers) = suite(Some(40 * UNIT)).await?;
    let clients = try_join_all([granted_of(&servers[0], 7), granted_of(&servers[1], 7)]).await?;
    let leased = try_join_all(clients.into_iter().map(lease_on));
    let (admissions, leased) = tokio::join!(use_up(&db, &servers, 100), leased);
    let (checked, leased) = (admissions?.len(), leased?.iter().sum::<i64>());
    assert_eq!(i64::try_from(checked)? + leased, 100, "{checked} checked, {leased} leased");

    for server in &servers {
        let refusal = capped(check(server, "eco_a", 1).await, 100);
        assert!(refusal.message().contains("100 of 100 units that the spend cap allows"), "{refusal:?}");
        let help = refusal.get_error_details().help().map(|help| help.links[0].description.clone());
        assert_eq!(help.as_deref(), Some("Raise or remove the spend cap"));
        let over = (Verdict::OverLimit, vec![(100, 0, Verdict::OverLimit)]);
        assert_eq!(verdict(server, vec![account_of("eco_a")]).await?, over);
    }
    // All of it recorded is billed at the cap, and not a micro beyond.
    record_batch(&servers[0], vec![UsageEvent { units_count: 100, ..event("eco_a") }]).await?;
    assert_eq!(billing.spent("eco_a").await?, (40 * UNIT, Some(0), 100));
    let shown = current(&servers[0], "eco_a").await?;
    assert_eq!((shown.limit_count, shown.overage_count), (60, 40), "what the plan includes");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cap_that_is_raised_lowered_or_removed_is_in_force_at_every_replica() -> Result<()> {
    let (db, billing, servers) = suite(Some(0)).await?;
    let both = [&servers[0], &servers[1]];
    assert_eq!(use_up(&db, &servers, 60).await?.len(), 60);
    for server in both {
        capped(check(server, "eco_a", 1).await, 60);
    }

    billing.cap("eco_a", Some(10 * UNIT)).await?;
    assert_eq!(use_up(&db, &servers, 70).await?.len(), 10);
    for server in both {
        capped(check(server, "eco_a", 1).await, 70);
    }

    billing.cap("eco_a", None).await?;
    become_so(&servers, true).await?;
    let answers = burst(&both, "eco_a", 500).await?;
    assert!(answers.iter().all(Result::is_ok));
    let unlimited = check(&servers[0], "eco_a", 1).await?;
    assert_eq!((unlimited.limit_count, unlimited.remaining_count), (60, 0), "beyond it units are billed");
    // A client holds some as well.
    let mut client = Leasing::at(&servers[1]).await?;
    let lease = client.ask(want(50)).await?;
    assert_eq!(lease.granted_count, 50);

    // Far below what is spent: nothing is granted any more from the change on, heard or not.
    billing.cap("eco_a", Some(20 * UNIT)).await?;
    let granted_before = granted(&db, "eco_a").await?;
    burst(&both, "eco_a", 500).await?;
    assert!(granted(&db, "eco_a").await? <= granted_before, "units were granted by the cap of before");
    become_so(&servers, false).await?;
    for server in both {
        capped(check(server, "eco_a", 1).await, 80);
    }
    client.is_recalled().await?;
    client.ask(settle(&lease.lease_id, 0)).await?;
    let nothing = client.ask(want(1)).await?;
    assert_eq!((nothing.granted_count, nothing.limit_count), (0, 80));
    Ok(())
}

/// The change is not notified, as if it had been committed a moment ago.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_has_not_heard_of_a_cap_is_granted_nothing_without_it() -> Result<()> {
    let (db, _billing, servers) = suite(None).await?;
    check(&servers[0], "eco_a", 1).await?;
    let mut silent = nexus_kit::db::begin(&db.pool).await?;
    for statement in [
        "set local session_replication_role = replica",
        "update eco_identities set spend_cap_micros = 40000, spend_cap_epoch = spend_cap_epoch + 1",
    ] {
        sqlx::query(statement).execute(&mut *silent).await?;
    }
    silent.commit().await?;
    capped(check(&servers[0], "eco_a", 100_000).await, 100);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_segments_before_cost_is_not_there_for_the_next() -> Result<()> {
    let (db, billing, servers) = suite(Some(100 * UNIT)).await?;
    // A larger plan with dearer units: what 20 of the smaller leave of the cap buys half as many.
    for statement in [
        "update eco_plans set included_units = 70 where plan = 'enterprise'",
        "update eco_plan_prices set overage_micros = 2000 where plan = 'enterprise'",
    ] {
        sqlx::query(statement).execute(&db.pool).await?;
    }
    record_batch(&servers[0], vec![UsageEvent { units_count: 80, ..event("eco_a") }]).await?;
    billing.change("eco_a", Plan::Enterprise).await?;
    assert_eq!(billing.spent("eco_a").await?, (20 * UNIT, Some(80 * UNIT), 120));
    let admissions = use_up(&db, &servers, 40).await?;
    assert_eq!(admissions.len(), 40);
    let events = admissions.into_iter().map(|admission| UsageEvent { admission, ..event("eco_a") });
    record_batch(&servers[0], events.collect()).await?;
    assert_eq!(billing.spent("eco_a").await?, (100 * UNIT, Some(0), 120));

    // Back again: the cheaper units were paid for by the same cap.
    billing.change("eco_a", Plan::Pro).await?;
    assert_eq!(billing.spent("eco_a").await?, (100 * UNIT, Some(0), 120));
    become_so(&servers, false).await?;
    for server in &servers {
        capped(check(server, "eco_a", 1).await, 120);
    }
    assert_eq!(granted(&db, "eco_a").await?, 40);

    // A cent more buys ten of the cheaper ones.
    billing.cap("eco_a", Some(110 * UNIT)).await?;
    assert_eq!(billing.spent("eco_a").await?, (100 * UNIT, Some(10 * UNIT), 130));
    assert_eq!(use_up(&db, &servers, 50).await?.len(), 10);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_correction_of_usage_takes_of_the_cap_or_gives_back() -> Result<()> {
    let (db, billing, servers) = suite(Some(40 * UNIT)).await?;
    let recorded = async |admissions: Vec<String>| {
        let events = admissions.into_iter().map(|admission| UsageEvent { admission, ..event("eco_a") });
        record_batch(&servers[0], events.collect()).await
    };
    recorded(use_up(&db, &servers, 100).await?).await?;
    billing.adjust("eco_a", -30).await?;
    recorded(use_up(&db, &servers, 130).await?).await?;
    assert_eq!(
        billing.spent("eco_a").await?,
        (40 * UNIT, Some(0), 100),
        "it is billed at the cap all the same"
    );
    for server in &servers {
        capped(check(server, "eco_a", 1).await, 130);
    }

    // Part of what was corrected is in a segment that is closed.
    billing.change("eco_a", Plan::Enterprise).await?;
    billing.change("eco_a", Plan::Pro).await?;
    billing.adjust("eco_a", 10).await?;
    assert_eq!(billing.spent("eco_a").await?, (50 * UNIT, Some(0), 100));
    for server in &servers {
        eventually(async || Ok(check(server, "eco_a", 1).await.is_err())).await?;
        capped(check(server, "eco_a", 1).await, 120);
    }
    billing.cap("eco_a", Some(60 * UNIT)).await?;
    assert_eq!(use_up(&db, &servers, 140).await?.len(), 10);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_recorded_without_an_admission_counts_and_bills_beyond_the_cap() -> Result<()> {
    let (_db, billing, servers) = suite(Some(40 * UNIT)).await?;
    record_batch(&servers[0], vec![UsageEvent { units_count: 130, ..event("eco_a") }]).await?;
    for server in &servers {
        let refusal = capped(check(server, "eco_a", 1).await, 100);
        assert!(refusal.message().starts_with("130 of 100"), "{refusal:?}");
    }
    assert_eq!(billing.spent("eco_a").await?, (70 * UNIT, Some(0), 100));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_period_has_the_whole_cap_and_late_calls_take_none_of_the_next() -> Result<()> {
    let db = TestDb::new().await?;
    sqlx::query("update eco_plans set included_units = 5 where plan = 'pro'").execute(&db.pool).await?;
    let billing = Billing::start(&db).await?;
    let server = Server::start(db.args()).await?;
    hear(&db, 1).await?;
    // Ends in four seconds: the anchor is four years ago, on a day that this year has as well.
    let anchor: DateTime<Utc> =
        sqlx::query_scalar("select now() + interval '4 seconds' - interval '48 months'")
            .fetch_one(&db.pool)
            .await?;
    seed::account(&db.pool, "eco_a", Plan::Pro, anchor).await?;
    billing.cap("eco_a", Some(10 * UNIT)).await?;
    let late = event("eco_a");
    let old = admitted(&server).await;
    assert_eq!(old.len(), 15);
    let (first, last) = (&old[0], &old[14]);
    assert_eq!(first.period_end_time, last.period_end_time, "the period ended too soon");

    let mut new = Vec::new();
    eventually(async || {
        new.extend(check(&server, "eco_a", 1).await);
        Ok(!new.is_empty())
    })
    .await?;
    assert_eq!(new[0].period_start_time, last.period_end_time);
    // A call of the period before, which its cap does not refuse.
    record(&server, UsageEvent { units_count: 3, ..late }).await?;
    new.extend(admitted(&server).await);
    assert_eq!(new.len(), 15);
    capped(check(&server, "eco_a", 1).await, 15);
    let periods = "select granted_units - returned_units from eco_quota_usage order by period_start";
    let periods: Vec<i64> = sqlx::query_scalar(periods).fetch_all(&db.pool).await?;
    assert_eq!(periods, [15, 15]);
    let late = "select period_start, recorded_units from eco_usage_counters";
    let late: Vec<(DateTime<Utc>, i64)> = sqlx::query_as(late).fetch_all(&db.pool).await?;
    let late: Vec<_> = late.into_iter().map(|(start, units)| (start.timestamp(), units)).collect();
    assert_eq!(late, [(first.period_start_time.context("a period")?.seconds, 3)]);
    Ok(())
}
