//! ProcessOverage against a stand-in Stripe over HTTP.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use chrono::{TimeDelta, Utc};
use nexus_client::CallOptions;
use nexus_core::{period::Period, plan::Plan};
use nexus_kit::auth::Scope;
use nexus_proto::billing::v1::{
    ChargeStatus, ListChargesRequest, ProcessOverageRequest, ProcessOverageResponse,
};
use nexus_testkit::{db::TestDb, seed, settings};
use serde_json::json;
use tokio::task::JoinHandle;
use tonic::Code;

use crate::support::{Billing, Sim, config, record, record_at, runner, until, user};

/// A run that is called for by a task of its own.
fn begin(billing: &Billing) -> JoinHandle<Result<ProcessOverageResponse>> {
    let mut client = billing.client.clone();
    tokio::spawn(async move {
        let request = runner()?.request(ProcessOverageRequest::default());
        Ok(client.process_overage(request).await?.into_inner())
    })
}

/// An error that Stripe asks not to be tried again now: the charge stays in doubt until the next run.
fn later() -> serde_json::Value {
    json!({ "outcome": { "kind": "error", "status": 500, "should_retry": false } })
}

fn only(eco_id: &str) -> ProcessOverageRequest {
    ProcessOverageRequest { account_ids: vec![eco_id.to_owned()], ..Default::default() }
}

#[tokio::test]
async fn the_difference_is_charged_to_the_cent_once() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    let customer = sim.customer().await?;
    let subscription = sim.subscription(&customer).await?;
    let anchor = Utc::now() - TimeDelta::days(3);
    seed::account(&db.pool, "eco_a", Plan::Pro, anchor).await?;
    seed::stripe_ids(&db.pool, "eco_a", &customer, Some(&subscription)).await?;
    record(&db, "eco_a", 105_007).await?;

    let run = billing.run_all().await?;
    assert_eq!((run.processed_count, run.charged_count, run.total_micros), (1, 1, 5_000_000));
    ensure!(run.errors.is_empty() && !run.running && !run.already_running && !run.run_id.is_empty());
    let items = sim.items().await?;
    assert_eq!(items.len(), 1);
    let item = &items[0];
    assert_eq!((&item["amount"], &item["currency"]), (&json!(500), &json!("usd")));
    assert_eq!(item["customer"], json!(customer));
    assert_eq!(item["description"], json!("API overage: 5,007 calls beyond 100k limit"));
    assert_eq!(item["parent"]["subscription_details"]["subscription"], json!(subscription));
    let charges = ListChargesRequest::default();
    let ledger = billing.client.clone().list_charges(user("eco_a")?.request(charges)).await?.into_inner();
    let charge = &ledger.charges[0];
    assert_eq!(
        (ledger.charges.len(), charge.status(), charge.amount_micros),
        (1, ChargeStatus::Succeeded, 5_000_000)
    );
    assert_eq!((charge.from_count, charge.to_count, charge.sequence, charge.attempt), (0, 5_007, 1, 1));
    assert_eq!(json!(charge.stripe_invoice_item_id), item["id"]);
    let period = Period::containing(anchor, Utc::now());
    let expected: BTreeMap<&str, String> = [
        ("eco_id", "eco_a".to_owned()),
        ("overage_calls", "5007".to_owned()),
        ("billing_period_start", rfc3339(period.start)),
        ("billing_period_end", rfc3339(period.end)),
        ("charge_id", charge.charge_id.clone()),
    ]
    .into();
    assert_eq!(item["metadata"], json!(expected));
    let overage = billing.overage("eco_a").await?;
    assert_eq!((overage.due_micros, overage.billed_micros, overage.invoiced), (5_000_000, 5_000_000, true));

    let again = billing.run_all().await?;
    assert_eq!((again.charged_count, again.total_micros), (0, 0));
    // 3 more make no cent yet; with 5 more the carried 7 do, and only the difference is charged.
    record(&db, "eco_a", 2).await?;
    assert_eq!(billing.run_all().await?.charged_count, 0);
    record(&db, "eco_a", 1_014).await?;
    let more = billing.run_all().await?;
    assert_eq!((more.charged_count, more.total_micros), (1, 1_020_000));
    assert_eq!(sim.amounts().await?, [500, 102]);
    assert_eq!(sim.items().await?[1]["description"], json!("API overage: 1,016 calls beyond 100k limit"));
    billing.stop().await
}

fn rfc3339(at: chrono::DateTime<Utc>) -> String {
    // The database keeps microseconds.
    let micros = chrono::DateTime::from_timestamp_micros(at.timestamp_micros());
    micros.map(|t| t.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)).unwrap_or_default()
}

#[tokio::test]
async fn a_run_finds_who_owes_although_nothing_was_refreshed() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    sim.pro(&db, "eco_a").await?;
    // Another replica's refresher has taken the queue and has not committed what it stands for.
    let mut other = db.pool.begin().await?;
    sqlx::query("select pg_advisory_xact_lock(1853383273, 1)").execute(&mut *other).await?;
    let billing = Billing::start(&db, &sim.base).await?;
    record(&db, "eco_a", 100_100).await?;
    let run = begin(&billing);
    until(&db, "select exists (select from pg_locks where not granted and database = (select oid from pg_database where datname = current_database()))").await?;
    other.rollback().await?;
    let run = run.await??;
    assert_eq!(run.total_micros, 100_000);
    ensure!(sim.amounts().await? == [10]);
    billing.stop().await
}

#[tokio::test]
async fn two_runs_at_once_charge_once() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let one = Billing::start(&db, &sim.base).await?;
    let two = Billing::start(&db, &sim.base).await?;
    for i in 0..5 {
        let eco_id = format!("eco_{i}");
        sim.pro(&db, &eco_id).await?;
        record(&db, &eco_id, 100_100).await?;
    }
    sim.fault(json!({ "hold": true })).await?;
    let first = begin(&one);
    sim.read("/held").await?;
    for other in [&two, &one] {
        for request in [ProcessOverageRequest::default(), only("eco_0")] {
            let answer = other.run(request).await?;
            ensure!(answer.already_running && !answer.running && answer.run_id.is_empty());
            assert_eq!((answer.processed_count, answer.charged_count, answer.total_micros), (0, 0, 0));
        }
    }
    sim.admin("/release", json!({})).await?;
    let first = first.await??;
    assert_eq!((first.processed_count, first.charged_count, first.total_micros), (5, 5, 500_000));
    assert_eq!(sim.amounts().await?, [10; 5]);
    assert_eq!(two.run_all().await?.charged_count, 0);
    one.stop().await?;
    two.stop().await
}

#[tokio::test]
async fn a_repeated_request_returns_the_first_runs_figures() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    sim.pro(&db, "eco_a").await?;
    record(&db, "eco_a", 100_100).await?;
    let request = ProcessOverageRequest {
        request_id: "0b9c0bd4-55a6-4a2e-8a3f-9d1d4c1a7f00".into(),
        ..Default::default()
    };
    let first = billing.run(request.clone()).await?;
    record(&db, "eco_a", 100).await?;
    let repeat = billing.run(request).await?;
    assert_eq!((&repeat.run_id, repeat.charged_count, repeat.total_micros), (&first.run_id, 1, 100_000));
    assert_eq!(sim.amounts().await?, [10]);
    billing.stop().await
}

#[tokio::test]
async fn an_answer_lost_after_the_effect_is_no_second_item() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    sim.pro(&db, "eco_a").await?;
    record(&db, "eco_a", 100_100).await?;
    // Once: the same run resolves it with the same key.
    sim.fault(json!({ "outcome": { "kind": "drop" } })).await?;
    assert_eq!(billing.run_all().await?.charged_count, 1);
    assert_eq!(sim.amounts().await?, [10]);
    // Out of reach after that: it stays in doubt, counts as billed, and the next run resolves it.
    record(&db, "eco_a", 100).await?;
    sim.fault(json!({ "outcome": { "kind": "drop" } })).await?;
    sim.fault(later()).await?;
    let doubtful = billing.run_all().await?;
    assert_eq!((doubtful.processed_count, doubtful.charged_count, doubtful.total_micros), (1, 0, 0));
    assert_eq!((doubtful.errors.len(), doubtful.errors[0].reason.as_str()), (1, "IN_DOUBT"));
    assert_eq!(billing.overage("eco_a").await?.billed_micros, 200_000);
    record(&db, "eco_a", 50).await?;
    let resolved = billing.run_all().await?;
    assert_eq!((resolved.charged_count, resolved.total_micros), (1, 150_000));
    ensure!(resolved.errors.is_empty());
    assert_eq!(sim.amounts().await?, [10, 10, 5]);
    billing.stop().await
}

#[tokio::test]
async fn a_stored_500_is_replaced_only_if_the_item_is_not_there() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    for (eco_id, effect, attempts) in [("eco_without", false, 2_i64), ("eco_with", true, 1)] {
        sim.pro(&db, eco_id).await?;
        record(&db, eco_id, 100_100).await?;
        sim.fault(json!({ "outcome": { "kind": "stored_error", "status": 500, "effect": effect } })).await?;
        let run = billing.run(only(eco_id)).await?;
        assert_eq!((run.charged_count, run.errors.len()), (1, 0), "{eco_id}");
        let rows: i64 = sqlx::query_scalar("select count(*) from eco_overage_charges where eco_id = $1")
            .bind(eco_id)
            .fetch_one(&db.pool)
            .await?;
        assert_eq!(rows, attempts, "{eco_id}");
    }
    assert_eq!(sim.amounts().await?, [10, 10]);
    // Both attempts name the same charge, under keys of their own.
    let (ids, keys): (i64, i64) = sqlx::query_as(
        "select count(distinct charge_id), count(distinct idempotency_key) from eco_overage_charges
         where eco_id = 'eco_without'",
    )
    .fetch_one(&db.pool)
    .await?;
    assert_eq!((ids, keys), (1, 2));
    billing.stop().await
}

#[tokio::test]
async fn a_rate_limit_is_waited_for() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    sim.pro(&db, "eco_a").await?;
    record(&db, "eco_a", 100_100).await?;
    sim.fault(json!({ "outcome": { "kind": "error", "status": 429, "retry_after": 1 } })).await?;
    let run = billing.run_all().await?;
    assert_eq!((run.charged_count, run.errors.len()), (1, 0));
    ensure!(run.duration_ms >= 1_000, "Retry-After was not waited for: {} ms", run.duration_ms);
    // More than a run waits for: left to the next run, and nothing is sent meanwhile.
    record(&db, "eco_a", 100).await?;
    sim.fault(json!({ "outcome": { "kind": "error", "status": 503, "retry_after": 3600 } })).await?;
    let run = billing.run_all().await?;
    assert_eq!((run.charged_count, run.errors[0].reason.as_str()), (0, "IN_DOUBT"));
    assert_eq!(sim.amounts().await?, [10]);
    billing.stop().await
}

#[tokio::test]
async fn one_accounts_refusal_is_its_own() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    let mut customers = Vec::new();
    for i in 0..3 {
        let eco_id = format!("eco_{i}");
        customers.push(sim.pro(&db, &eco_id).await?);
        record(&db, &eco_id, 100_100).await?;
    }
    sim.admin(&format!("/customers/{}", customers[1]), json!({ "declined": true })).await?;
    let run = billing.run_all().await?;
    assert_eq!((run.processed_count, run.charged_count, run.total_micros), (3, 2, 200_000));
    assert_eq!(run.errors.len(), 1);
    assert_eq!((run.errors[0].eco_id.as_str(), run.errors[0].reason.as_str()), ("eco_1", "CARD_DECLINED"));
    let failed: (String, String) = sqlx::query_as(
        "select c.status, r.parked_reason from eco_overage_charges c join eco_usage_records r using (eco_id, period_start)
         where eco_id = 'eco_1'",
    )
    .fetch_one(&db.pool)
    .await?;
    assert_eq!(failed, ("failed".into(), "CARD_DECLINED".into()));
    let overage = billing.overage("eco_1").await?;
    assert_eq!((overage.billed_micros, overage.invoiced), (0, false));
    // Parked: neither tried nor listed again.
    let again = billing.run_all().await?;
    assert_eq!((again.processed_count, again.errors.len()), (0, 0));
    billing.stop().await
}

#[tokio::test]
async fn an_account_without_a_customer_is_listed_once_and_charged_when_there_is_one() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    seed::account(&db.pool, "eco_a", Plan::Pro, Utc::now() - TimeDelta::days(3)).await?;
    record(&db, "eco_a", 100_100).await?;
    let run = billing.run_all().await?;
    assert_eq!((run.processed_count, run.charged_count, run.errors.len()), (1, 0, 1));
    assert_eq!(run.errors[0].reason, "NO_STRIPE_CUSTOMER");
    assert_eq!(run.errors[0].message, "No Stripe customer ID found for eco_a");
    record(&db, "eco_a", 100).await?;
    let run = billing.run_all().await?;
    assert_eq!((run.processed_count, run.errors.len()), (0, 0));
    assert_eq!(billing.overage("eco_a").await?.due_micros, 200_000);

    let customer = sim.customer().await?;
    seed::stripe_ids(&db.pool, "eco_a", &customer, None).await?;
    let run = billing.run_all().await?;
    assert_eq!((run.charged_count, run.total_micros, run.errors.len()), (1, 200_000, 0));
    let parked: bool =
        sqlx::query_scalar("select exists (select from eco_usage_records where parked_reason is not null)")
            .fetch_one(&db.pool)
            .await?;
    assert!(!parked);
    billing.stop().await
}

#[tokio::test]
async fn killed_between_intent_and_send_the_next_run_sends_it() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    // Takes connections and never says anything: the request does not reach Stripe.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let doomed = Billing::start(&db, &format!("http://{}", silent.local_addr()?)).await?;
    sim.pro(&db, "eco_a").await?;
    record(&db, "eco_a", 100_100).await?;
    let call = begin(&doomed);
    until(&db, "select exists (select from eco_overage_charges where sent_time is not null)").await?;
    doomed.kill().await?;
    ensure!(call.await?.is_err(), "a killed server cannot have answered");
    assert_eq!(sim.amounts().await?.len(), 0);
    resolves(&db, &sim).await
}

#[tokio::test]
async fn killed_between_send_and_record_the_next_run_finds_it_done() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let doomed = Billing::start(&db, &sim.base).await?;
    sim.pro(&db, "eco_a").await?;
    record(&db, "eco_a", 100_100).await?;
    sim.fault(json!({ "hold": true })).await?;
    let call = begin(&doomed);
    sim.read("/held").await?;
    doomed.kill().await?;
    ensure!(call.await?.is_err(), "a killed server cannot have answered");
    sim.admin("/release", json!({})).await?;
    sim.read("/idle").await?;
    assert_eq!(sim.amounts().await?, [10], "the item is there, and nobody knows");
    resolves(&db, &sim).await
}

/// A new server charges what the killed one left, once, and marks its run.
async fn resolves(db: &TestDb, sim: &Sim) -> Result<()> {
    let billing = Billing::start(db, &sim.base).await?;
    // The killed server's lease ends with its connection.
    until(
        db,
        "select not exists (select from pg_locks where locktype = 'advisory' and objid = 2 and objsubid = 2
         and database = (select oid from pg_database where datname = current_database()))",
    )
    .await?;
    let run = billing.run_all().await?;
    assert_eq!((run.charged_count, run.total_micros, run.errors.len()), (1, 100_000, 0));
    assert_eq!(sim.amounts().await?, [10]);
    let runs: Vec<String> = sqlx::query_scalar("select status from eco_overage_runs order by started_time")
        .fetch_all(&db.pool)
        .await?;
    assert_eq!(runs, ["failed", "finished"]);
    billing.stop().await
}

#[tokio::test]
async fn an_old_intent_is_looked_for_before_it_is_replaced() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    for (eco_id, effect, attempt) in [("eco_there", true, 1), ("eco_absent", false, 2)] {
        sim.pro(&db, eco_id).await?;
        record(&db, eco_id, 100_100).await?;
        sim.fault(json!({ "outcome": { "kind": "drop", "effect": effect } })).await?;
        sim.fault(later()).await?;
        assert_eq!(billing.run(only(eco_id)).await?.errors[0].reason, "IN_DOUBT");
        sqlx::query("update eco_overage_charges set created_time = now() - interval '23 hours 1 second' where status = 'pending'")
            .execute(&db.pool)
            .await?;
        // Stripe forgets keys after 24 hours: the old key would make a second item.
        sim.admin("/clock", json!({ "advance_seconds": 90_000 })).await?;
        let run = billing.run(only(eco_id)).await?;
        assert_eq!((run.charged_count, run.errors.len()), (1, 0), "{eco_id}");
        let live: i32 = sqlx::query_scalar(
            "select attempt from eco_overage_charges where eco_id = $1 and status = 'succeeded'",
        )
        .bind(eco_id)
        .fetch_one(&db.pool)
        .await?;
        assert_eq!(live, attempt, "{eco_id}");
    }
    assert_eq!(sim.amounts().await?, [10, 10]);
    billing.stop().await
}

#[tokio::test]
async fn a_dry_run_says_what_would_be_charged_and_touches_nothing() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    sim.pro(&db, "eco_a").await?;
    seed::account(&db.pool, "eco_none", Plan::Pro, Utc::now() - TimeDelta::days(3)).await?;
    record(&db, "eco_a", 100_507).await?;
    record(&db, "eco_none", 100_100).await?;
    until(&db, "select count(*) = 2 from eco_usage_records").await?;
    let before = contents(&db).await?;
    let dry = billing.run(ProcessOverageRequest { dry_run: true, ..Default::default() }).await?;
    assert_eq!(contents(&db).await?, before);
    assert_eq!(sim.read("/requests?path=/v1/invoiceitems").await?["requests"], json!([]));
    assert_eq!(
        (dry.run_id.as_str(), dry.processed_count, dry.charged_count, dry.total_micros),
        ("", 2, 1, 500_000)
    );
    assert_eq!((dry.errors.len(), dry.errors[0].reason.as_str()), (1, "NO_STRIPE_CUSTOMER"));
    assert_eq!(dry.planned_charges.len(), 1);
    let planned = &dry.planned_charges[0];
    assert_eq!(
        (planned.eco_id.as_str(), planned.api_calls_count, planned.included_count),
        ("eco_a", 100_507, 100_000)
    );
    assert_eq!((planned.overage_count, planned.price_micros, planned.price_per_count), (507, 1_000, 1));
    assert_eq!((planned.due_micros, planned.billed_micros, planned.charge_micros), (500_000, 0, 500_000));
    // And that is what a run does.
    assert_eq!(billing.run_all().await?.total_micros, dry.total_micros);
    billing.stop().await
}

async fn contents(db: &TestDb) -> Result<String> {
    Ok(sqlx::query_scalar(
        "select concat((select json_agg(r order by eco_id) from eco_usage_records r),
                       (select json_agg(r) from eco_overage_charges r), (select json_agg(r) from eco_overage_runs r),
                       (select json_agg(r) from eco_usage_changes r))",
    )
    .fetch_one(&db.pool)
    .await?)
}

#[tokio::test]
async fn a_run_goes_on_without_its_caller_and_past_the_callers_deadline() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    sim.pro(&db, "eco_a").await?;
    record(&db, "eco_a", 100_100).await?;
    // The caller's deadline: an answer before it, with the figures so far.
    sim.fault(json!({ "hold": true })).await?;
    let hurried = CallOptions::bearer(
        &settings::service_token(&[Scope::BillingRun])?,
        std::time::Duration::from_millis(1_500),
    )?;
    let so_far =
        billing.client.clone().process_overage(hurried.request(Default::default())).await?.into_inner();
    ensure!(so_far.running && !so_far.run_id.is_empty());
    assert_eq!((so_far.processed_count, so_far.charged_count), (0, 0));
    sim.admin("/release", json!({})).await?;
    until(&db, "select exists (select from eco_overage_runs where status = 'finished' and charged = 1)")
        .await?;
    // The caller goes away.
    record(&db, "eco_a", 100).await?;
    sim.fault(json!({ "hold": true })).await?;
    let call = begin(&billing);
    sim.read("/held").await?;
    call.abort();
    ensure!(call.await.is_err_and(|e| e.is_cancelled()));
    sim.admin("/release", json!({})).await?;
    until(&db, "select count(*) = 2 from eco_overage_runs where status = 'finished' and charged = 1").await?;
    assert_eq!(sim.amounts().await?, [10, 10]);
    billing.stop().await
}

#[tokio::test]
async fn a_stopping_server_finishes_what_it_has_in_hand_and_takes_no_more() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let mut settings = config(&db, &sim.base);
    settings.overage_concurrency = 1;
    let billing = Billing::start_with(settings).await?;
    for eco_id in ["eco_0", "eco_1"] {
        sim.pro(&db, eco_id).await?;
        record(&db, eco_id, 100_100).await?;
    }
    sim.fault(json!({ "hold": true })).await?;
    let call = begin(&billing);
    sim.read("/held").await?;
    billing.shutdown.cancel();
    sim.admin("/release", json!({})).await?;
    billing.stop().await?;
    let answer = call.await??;
    assert_eq!((answer.charged_count, answer.running), (1, false));
    let left: Vec<(String, String)> =
        sqlx::query_as("select eco_id, status from eco_overage_charges").fetch_all(&db.pool).await?;
    assert_eq!(left, [("eco_0".to_owned(), "succeeded".to_owned())]);
    let run: String = sqlx::query_scalar("select status from eco_overage_runs").fetch_one(&db.pool).await?;
    assert_eq!(run, "failed", "a run that was cut short does not pass for a whole one");
    Ok(())
}

#[tokio::test]
async fn a_closed_period_is_charged_and_settled_half_up() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    let customer = sim.customer().await?;
    let anchor = Utc::now() - TimeDelta::days(70);
    seed::account(&db.pool, "eco_a", Plan::Pro, anchor).await?;
    seed::stripe_ids(&db.pool, "eco_a", &customer, None).await?;
    let current = Period::containing(anchor, Utc::now());
    let last = Period::containing(anchor, current.start - TimeDelta::seconds(1));
    let start = chrono::DateTime::from_timestamp_micros(last.start.timestamp_micros()).context("a time")?;
    record_at(&db, "eco_a", start, 100_015).await?;
    record(&db, "eco_a", 100_015).await?;
    let run = billing.run_all().await?;
    assert_eq!((run.processed_count, run.charged_count, run.total_micros), (1, 1, 30_000));
    // 1.5 cents: 2 in the settled period, 1 in the open one, where the half is carried.
    assert_eq!(sim.amounts().await?, [2, 1]);
    let settled: Vec<bool> =
        sqlx::query_scalar("select settled_time is not null from eco_usage_records order by period_start")
            .fetch_all(&db.pool)
            .await?;
    assert_eq!(settled, [true, false]);
    // What is counted in it after all is not lost.
    record_at(&db, "eco_a", start, 10).await?;
    assert_eq!(billing.run_all().await?.total_micros, 10_000);
    // A settled period that owes no more is not looked at again.
    let again = billing.run_all().await?;
    assert_eq!((again.processed_count, again.charged_count), (0, 0));
    billing.stop().await
}

#[tokio::test]
async fn what_was_charged_too_high_becomes_a_credit() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    sim.pro(&db, "eco_a").await?;
    record(&db, "eco_a", 101_000).await?;
    assert_eq!(billing.run_all().await?.total_micros, 1_000_000);
    sqlx::query("update eco_usage_counters set recorded_units = recorded_units - 400")
        .execute(&db.pool)
        .await?;
    sqlx::query("insert into eco_usage_changes (eco_id, period_start) select eco_id, period_start from eco_usage_counters")
        .execute(&db.pool)
        .await?;
    assert_eq!(billing.run_all().await?.total_micros, -400_000);
    assert_eq!(sim.amounts().await?, [100, -40]);
    billing.stop().await
}

#[tokio::test]
async fn only_a_service_with_the_scope_may_run_it_and_bad_fields_are_named() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    let as_user = billing.client.clone().process_overage(user("eco_a")?.request(Default::default())).await;
    assert_eq!(as_user.map(|_| ()).map_err(|s| s.code()), Err(Code::PermissionDenied));
    let bad = ProcessOverageRequest {
        request_id: "x".into(),
        account_ids: vec!["eco_a".into(), "b".into()],
        ..Default::default()
    };
    let refused =
        billing.client.clone().process_overage(runner()?.request(bad)).await.err().context("an error")?;
    assert_eq!(refused.code(), Code::InvalidArgument);
    ensure!(refused.message().contains("request_id") && refused.message().contains("account_ids[1]"));
    billing.stop().await
}
