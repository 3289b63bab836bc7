//! Runs of ProcessOverage: one at a time, without their callers, killed, stopped, dry.

use anyhow::{Context, Result, ensure};
use chrono::{TimeDelta, Utc};
use nexus_client::CallOptions;
use nexus_core::plan::Plan;
use nexus_kit::auth::Scope;
use nexus_proto::billing::v1::ProcessOverageRequest;
use nexus_testkit::{db::TestDb, seed, settings};
use serde_json::json;
use tonic::Code;

use crate::support::{Billing, Sim, begin, config, only, record, runner, until, user};

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
async fn a_dry_run_says_what_would_be_charged_and_touches_nothing() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    // Nothing is refreshed meanwhile: a dry run sees what the summary does not have yet.
    let mut refresher = db.pool.begin().await?;
    sqlx::query("select pg_advisory_xact_lock(1853383273, 1)").execute(&mut *refresher).await?;
    let billing = Billing::start(&db, &sim.base).await?;
    sim.pro(&db, "eco_a").await?;
    seed::account(&db.pool, "eco_none", Plan::Pro, Utc::now() - TimeDelta::days(3)).await?;
    record(&db, "eco_a", 100_507).await?;
    record(&db, "eco_none", 100_100).await?;
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
    refresher.rollback().await?;
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

#[tokio::test]
async fn a_run_can_be_limited_to_accounts() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    for eco_id in ["eco_0", "eco_1"] {
        sim.pro(&db, eco_id).await?;
        record(&db, eco_id, 100_100).await?;
    }
    let dry = billing.run(ProcessOverageRequest { dry_run: true, ..only("eco_1") }).await?;
    assert_eq!((dry.planned_charges.len(), dry.planned_charges[0].eco_id.as_str()), (1, "eco_1"));
    assert_eq!(billing.run(only("eco_1")).await?.charged_count, 1);
    assert_eq!(sim.items().await?[0]["metadata"]["eco_id"], json!("eco_1"));
    assert_eq!(billing.run_all().await?.charged_count, 1);
    assert_eq!(sim.items().await?[1]["metadata"]["eco_id"], json!("eco_0"));
    billing.stop().await
}
