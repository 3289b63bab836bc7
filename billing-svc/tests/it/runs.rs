//! Runs of ProcessOverage: one at a time, without their callers, killed, stopped.

use anyhow::{Context, Result, ensure};
use chrono::{TimeDelta, Utc};
use nexus_client::CallOptions;
use nexus_core::plan::Plan;
use nexus_kit::{auth::Scope, status::reason};
use nexus_proto::billing::v1::ProcessOverageRequest;
use nexus_testkit::{db::TestDb, seed, settings};
use serde_json::json;
use tonic::Code;
use tonic_types::StatusExt;

use crate::support::{
    Billing, Sim, begin, begin_with, config, lease_is_free, only, record, record_at, runner, until, user,
};

/// Calls with this are repeats of each other.
fn requested() -> ProcessOverageRequest {
    ProcessOverageRequest { request_id: "0b9c0bd4-55a6-4a2e-8a3f-9d1d4c1a7f00".into(), ..Default::default() }
}

#[tokio::test]
async fn a_run_finds_who_owes_although_nothing_was_refreshed() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    sim.pro(&db, "eco_a").await?;
    // Another replica's refresher has taken the queue and has not committed what it stands for.
    let mut other = nexus_kit::db::begin(&db.pool).await?;
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
    let first = billing.run(requested()).await?;
    record(&db, "eco_a", 100).await?;
    let repeat = billing.run(requested()).await?;
    assert_eq!((&repeat.run_id, repeat.charged_count, repeat.total_micros), (&first.run_id, 1, 100_000));
    assert_eq!(sim.amounts().await?, [10]);
    billing.stop().await
}

#[tokio::test]
async fn a_run_that_failed_is_an_error_and_a_repeat_goes_on_with_it() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    sim.pro(&db, "eco_a").await?;
    record(&db, "eco_a", 100_100).await?;
    sqlx::query("revoke update on eco_usage_records from nexus_billing").execute(&db.pool).await?;
    for _ in 0..2 {
        let call = billing.client.clone().process_overage(runner()?.request(requested())).await;
        let error = call.err().context("a run that failed is no success")?;
        assert_eq!((error.code(), reason(&error).as_str()), (Code::Unavailable, "RUN_FAILED"));
        let run_id: String =
            sqlx::query_scalar("select run_id::text from eco_overage_runs where status = 'failed'")
                .fetch_one(&db.pool)
                .await?;
        ensure!(error.message().contains(&run_id), "{error}");
        let retry = error.get_error_details().retry_info().and_then(|info| info.retry_delay);
        ensure!(retry.is_some_and(|delay| !delay.is_zero()), "{retry:?}");
    }
    sqlx::query("grant update on eco_usage_records to nexus_billing").execute(&db.pool).await?;
    let repeat = billing.run(requested()).await?;
    assert_eq!((repeat.charged_count, repeat.total_micros, repeat.running), (1, 100_000, false));
    assert_eq!(billing.run(requested()).await?.run_id, repeat.run_id);
    assert_eq!(sim.amounts().await?, [10]);
    billing.stop().await
}

#[tokio::test]
async fn a_repeat_goes_on_with_a_run_that_was_killed() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let mut settings = config(&db, &sim.base);
    settings.overage_concurrency = 1;
    let doomed = Billing::start_with(settings).await?;
    for eco_id in ["eco_0", "eco_1", "eco_other"] {
        sim.pro(&db, eco_id).await?;
        record(&db, eco_id, 100_100).await?;
    }
    let request = ProcessOverageRequest { account_ids: vec!["eco_0".into(), "eco_1".into()], ..requested() };
    // The first account is charged, and kept as such, before the second one's request hangs.
    sim.fault(json!({ "times": 1 })).await?;
    sim.fault(json!({ "hold": true })).await?;
    let call = begin_with(&doomed, request.clone());
    sim.read("/held").await?;
    until(&db, "select exists (select from eco_overage_runs where charged = 1)").await?;
    doomed.kill().await?;
    ensure!(call.await?.is_err(), "a killed server cannot have answered");
    sim.admin("/release", json!({})).await?;
    lease_is_free(&db).await?;
    let billing = Billing::start(&db, &sim.base).await?;
    let repeat = billing.run(request.clone()).await?;
    assert_eq!((repeat.running, repeat.processed_count), (false, 2));
    assert_eq!((repeat.charged_count, repeat.total_micros), (2, 200_000), "what was done before counts");
    let runs: Vec<(String, String)> =
        sqlx::query_as("select run_id::text, status from eco_overage_runs").fetch_all(&db.pool).await?;
    assert_eq!(runs, [(repeat.run_id.clone(), "finished".to_owned())]);
    assert_eq!(billing.run(request).await?.run_id, repeat.run_id);
    assert_eq!(sim.amounts().await?, [10, 10]);
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
    lease_is_free(db).await?;
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
async fn a_run_goes_on_without_its_caller_and_past_the_callers_deadline() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    sim.pro(&db, "eco_a").await?;
    record(&db, "eco_a", 100_100).await?;
    // The caller's deadline: an answer before it, with the figures so far. Of eight seconds four fifths of one are left
    // for its way back: a machine that others use, too, needs some of it.
    sim.fault(json!({ "hold": true })).await?;
    let hurried = CallOptions::bearer(
        &settings::service_token(&[Scope::BillingRun])?,
        std::time::Duration::from_secs(8),
    )?;
    let so_far =
        billing.client.clone().process_overage(hurried.request(Default::default())).await?.into_inner();
    ensure!(so_far.running && !so_far.run_id.is_empty());
    assert_eq!((so_far.processed_count, so_far.charged_count), (0, 0));
    sim.read("/held").await?;
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
    let error = call.await?.err().context("a run that was cut short is no success")?;
    let error = error.downcast_ref::<tonic::Status>().context("a status")?;
    assert_eq!((error.code(), reason(error).as_str()), (Code::Unavailable, "RUN_FAILED"));
    // The next one may be written down; it is not sent.
    let sent: Vec<(String, String)> =
        sqlx::query_as("select eco_id, status from eco_overage_charges where sent_time is not null")
            .fetch_all(&db.pool)
            .await?;
    assert_eq!(sent, [("eco_0".to_owned(), "succeeded".to_owned())]);
    let run: String = sqlx::query_scalar("select status from eco_overage_runs").fetch_one(&db.pool).await?;
    assert_eq!(run, "failed", "a run that was cut short does not pass for a whole one");
    assert_eq!(sim.amounts().await?, [10]);
    let billing = Billing::start(&db, &sim.base).await?;
    assert_eq!(billing.run_all().await?.charged_count, 1);
    assert_eq!(sim.amounts().await?, [10, 10]);
    billing.stop().await
}

#[tokio::test]
async fn an_account_is_looked_at_once_in_a_run() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let mut settings = config(&db, &sim.base);
    settings.overage_concurrency = 1;
    let billing = Billing::start_with(settings).await?;
    for eco_id in ["eco_0", "eco_1"] {
        sim.pro(&db, eco_id).await?;
        record(&db, eco_id, 100_100).await?;
    }
    sim.fault(json!({ "times": 1 })).await?;
    sim.fault(json!({ "hold": true })).await?;
    let run = begin(&billing);
    sim.read("/held").await?;
    // It has been charged in this run, and begins to owe again.
    record(&db, "eco_0", 100).await?;
    until(&db, "select not exists (select from eco_usage_changes)").await?;
    sim.admin("/release", json!({})).await?;
    let run = run.await??;
    assert_eq!((run.processed_count, run.charged_count, run.total_micros), (2, 2, 200_000));
    assert_eq!(billing.run_all().await?.total_micros, 100_000);
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
    // A period long over in which nothing was owed: settled by a run that looks at its account.
    seed::account(&db.pool, "eco_2", Plan::Pro, Utc::now() - TimeDelta::days(70)).await?;
    let first = sqlx::query_scalar("select anchor_time from eco_subscriptions where eco_id = 'eco_2'");
    record_at(&db, "eco_2", first.fetch_one(&db.pool).await?, 5).await?;
    until(&db, "select exists (select from eco_usage_records where eco_id = 'eco_2')").await?;
    let settled = "select settled_time is not null from eco_usage_records where eco_id = 'eco_2'";
    assert_eq!(billing.run(only("eco_1")).await?.charged_count, 1);
    ensure!(!sqlx::query_scalar::<_, bool>(settled).fetch_one(&db.pool).await?, "it was not to be looked at");
    assert_eq!(sim.items().await?[0]["metadata"]["eco_id"], json!("eco_1"));
    assert_eq!(billing.run_all().await?.charged_count, 1);
    assert_eq!(sim.items().await?[1]["metadata"]["eco_id"], json!("eco_0"));
    ensure!(sqlx::query_scalar::<_, bool>(settled).fetch_one(&db.pool).await?);
    billing.stop().await
}
