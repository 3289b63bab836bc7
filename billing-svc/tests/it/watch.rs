//! Runs are followed and listed: on the replica that works on one, and on any other.

use anyhow::{Context, Result, ensure};
use nexus_kit::status::reason;
use nexus_proto::billing::v1::{
    GetOverageRunRequest, ListOverageRunErrorsRequest, ListOverageRunsRequest, OverageRun, OverageRunStatus,
    ProcessOverageRequest, WatchOverageRunRequest, WatchOverageRunResponse,
};
use nexus_testkit::{db::TestDb, settings};
use serde_json::json;
use tonic::{Code, Streaming};

use crate::support::{Billing, Sim, fields, record, runner, user};

async fn watch(billing: &Billing, run_id: &str) -> Result<Streaming<WatchOverageRunResponse>> {
    let request = runner()?.endless(WatchOverageRunRequest { run_id: run_id.to_owned() });
    Ok(billing.client.clone().watch_overage_run(request).await?.into_inner())
}

/// The figures of a look: of how many, done, charged, failed.
fn figures(look: &WatchOverageRunResponse) -> (i32, i32, i32, i32) {
    (look.accounts_count, look.processed_count, look.charged_count, look.failed_count)
}

async fn begin_at_once(billing: &Billing) -> Result<String> {
    let answer = billing.run(ProcessOverageRequest { return_at_once: true, ..Default::default() }).await?;
    ensure!(answer.running, "it waited for the end: {answer:?}");
    Ok(answer.run_id)
}

#[tokio::test]
async fn a_run_is_followed_to_its_end_on_every_replica_by_several() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let one = Billing::start(&db, &sim.base).await?;
    let two = Billing::start(&db, &sim.base).await?;
    for eco_id in ["eco_a", "eco_b"] {
        sim.pro(&db, eco_id).await?;
        record(&db, eco_id, 100_100).await?;
    }
    sim.fault(json!({ "times": 2, "hold": true })).await?;
    let run_id = begin_at_once(&one).await?;
    sim.read("/held?at_least=2").await?;
    let other = one.run_all().await?;
    assert_eq!((other.already_running, other.other_run_id.as_str()), (true, run_id.as_str()));
    let mut watchers =
        vec![watch(&one, &run_id).await?, watch(&one, &run_id).await?, watch(&two, &run_id).await?];
    // One that goes away changes nothing for the others.
    drop(watch(&one, &run_id).await?);
    for watcher in &mut watchers {
        let first = watcher.message().await?.context("a look")?;
        ensure!(first.running && first.status() == OverageRunStatus::Running, "{first:?}");
    }
    sim.admin("/release", json!({})).await?;
    for mut watcher in watchers {
        let mut last = None;
        while let Some(look) = watcher.message().await? {
            ensure!(
                last.is_none_or(|last: WatchOverageRunResponse| last.running),
                "it went on after its end"
            );
            last = Some(look);
        }
        let last = last.context("a look")?;
        assert_eq!((last.running, last.status()), (false, OverageRunStatus::Finished));
        assert_eq!((figures(&last), last.total_micros), ((2, 2, 2, 0), 200_000));
    }
    // What has ended is told at once, and nothing more.
    let mut late = watch(&two, &run_id).await?;
    assert_eq!(late.message().await?.map(|look| figures(&look)), Some((2, 2, 2, 0)));
    ensure!(late.message().await?.is_none());
    one.stop().await?;
    two.stop().await
}

#[tokio::test]
async fn a_run_of_which_nothing_is_heard_ends_for_who_watches_it() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    let run_id = "0b9c0bd4-55a6-4a2e-8a3f-9d1d4c1a7f00";
    let insert = "insert into eco_overage_runs (run_id, status, processed, heartbeat_time)
                  values ($1::uuid, 'running', 7, now() - make_interval(secs => $2))";
    sqlx::query(insert).bind(run_id).bind(0_f64).execute(&db.pool).await?;
    let mut looks = watch(&billing, run_id).await?;
    let first = looks.message().await?.context("a look")?;
    assert_eq!((first.running, first.processed_count), (true, 7));
    sqlx::query("update eco_overage_runs set heartbeat_time = now() - interval '31 seconds'")
        .execute(&db.pool)
        .await?;
    let last = looks.message().await?.context("its end")?;
    assert_eq!((last.running, last.status()), (false, OverageRunStatus::Silent));
    ensure!(looks.message().await?.is_none());
    billing.stop().await
}

#[tokio::test]
async fn a_server_that_stops_says_so_to_who_watches() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    // As another replica's.
    sqlx::query("insert into eco_overage_runs (run_id, status) values (gen_random_uuid(), 'running')")
        .execute(&db.pool)
        .await?;
    let run_id: String =
        sqlx::query_scalar("select run_id::text from eco_overage_runs").fetch_one(&db.pool).await?;
    let mut looks = watch(&billing, &run_id).await?;
    ensure!(looks.message().await?.is_some());
    billing.shutdown.cancel();
    let error = looks.message().await.err().context("an error")?;
    assert_eq!((error.code(), reason(&error).as_str()), (Code::Unavailable, "STOPPING"));
    billing.stop().await
}

async fn listed(billing: &Billing) -> Result<Vec<OverageRun>> {
    let mut request = ListOverageRunsRequest { page_size: 1, ..Default::default() };
    let mut runs = Vec::new();
    loop {
        let call = runner()?.request(request.clone());
        let page = billing.client.clone().list_overage_runs(call).await?.into_inner();
        runs.extend(page.runs);
        if page.next_page_token.is_empty() {
            return Ok(runs);
        }
        request.page_token = page.next_page_token;
    }
}

#[tokio::test]
async fn every_run_is_kept_and_told_with_all_its_errors() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    let ids = ["eco_a", "eco_b", "eco_c"];
    for eco_id in ids {
        let customer = sim.pro(&db, eco_id).await?;
        sim.admin(&format!("/customers/{customer}"), json!({ "declined": true })).await?;
        record(&db, eco_id, 100_100).await?;
    }
    let first = billing.run_all().await?;
    assert_eq!((first.failed_count, first.errors.len()), (3, 3));
    let second = billing.run_all().await?;
    let runs = listed(&billing).await?;
    let told: Vec<_> = runs.iter().map(|run| (run.run_id.as_str(), run.failed_count)).collect();
    assert_eq!(told, [(second.run_id.as_str(), 0), (first.run_id.as_str(), 3)]);
    let request = GetOverageRunRequest { run_id: first.run_id.clone() };
    let got = billing.client.clone().get_overage_run(runner()?.request(request)).await?.into_inner().run;
    let got = got.context("a run")?;
    assert_eq!((got.status(), got.accounts_count, got.processed_count), (OverageRunStatus::Finished, 3, 3));
    ensure!(got.end_time.is_some() && got.start_time.is_some() && !got.limited);

    let mut request =
        ListOverageRunErrorsRequest { run_id: first.run_id.clone(), page_size: 2, ..Default::default() };
    let mut failed = Vec::new();
    loop {
        let call = runner()?.request(request.clone());
        let page = billing.client.clone().list_overage_run_errors(call).await?.into_inner();
        failed.extend(page.errors.into_iter().map(|error| (error.eco_id, error.reason)));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    let expected: Vec<_> = ids.iter().map(|id| ((*id).to_owned(), "CARD_DECLINED".to_owned())).collect();
    assert_eq!(failed, expected);
    billing.stop().await
}

#[tokio::test]
async fn runs_are_for_admins_and_the_scheduler_and_bad_requests_are_told() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    let mut client = billing.client.clone();
    let refused = client.list_overage_runs(user("eco_a")?.request(Default::default())).await;
    assert_eq!(refused.map(|_| ()).map_err(|s| s.code()), Err(Code::PermissionDenied));
    let admin = nexus_client::CallOptions::bearer(&settings::admin_token()?, crate::support::DEADLINE)?;
    ensure!(client.list_overage_runs(admin.request(Default::default())).await?.into_inner().runs.is_empty());
    let bad =
        client.get_overage_run(runner()?.request(Default::default())).await.err().context("an error")?;
    assert_eq!((bad.code(), fields(&bad)), (Code::InvalidArgument, vec!["run_id".to_owned()]));
    let unknown = WatchOverageRunRequest { run_id: "0b9c0bd4-55a6-4a2e-8a3f-9d1d4c1a7f00".into() };
    let unknown = client.watch_overage_run(runner()?.request(unknown)).await.err().context("an error")?;
    assert_eq!((unknown.code(), reason(&unknown).as_str()), (Code::NotFound, "RUN_NOT_FOUND"));
    let bad = ListOverageRunErrorsRequest { page_size: -1, page_token: "x".into(), ..Default::default() };
    let bad = client.list_overage_run_errors(runner()?.request(bad)).await.err().context("an error")?;
    assert_eq!(fields(&bad), ["run_id", "page_size", "page_token"]);
    billing.stop().await
}
