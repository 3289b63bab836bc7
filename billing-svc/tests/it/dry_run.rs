//! What a dry run says is what the next run does.

use anyhow::{Result, ensure};
use chrono::{TimeDelta, Utc};
use nexus_core::plan::Plan;
use nexus_proto::billing::v1::{ProcessOverageRequest, ProcessOverageResponse, ReconcileRequest};
use nexus_testkit::{db::TestDb, seed, settings::ADMIN};
use serde_json::json;
use tonic::{Code, Response};

use crate::support::{Billing, Sim, record, record_at, until, user};

async fn dry(billing: &Billing) -> Result<ProcessOverageResponse> {
    billing.run(ProcessOverageRequest { dry_run: true, ..Default::default() }).await
}

#[tokio::test]
async fn a_dry_run_says_what_would_be_charged_and_touches_nothing() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    // Nothing is refreshed meanwhile: a dry run sees what the summary does not have yet.
    let mut refresher = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query("select pg_advisory_xact_lock(1853383273, 1)").execute(&mut *refresher).await?;
    let billing = Billing::start(&db, &sim.base).await?;
    sim.pro(&db, "eco_a").await?;
    seed::account(&db.pool, "eco_none", Plan::Pro, Utc::now() - TimeDelta::days(3)).await?;
    record(&db, "eco_a", 100_507).await?;
    record(&db, "eco_none", 100_100).await?;
    let before = contents(&db).await?;
    let plan = dry(&billing).await?;
    assert_eq!(contents(&db).await?, before);
    assert_eq!(sim.read("/requests?path=/v1/invoiceitems").await?["requests"], json!([]));
    assert_eq!(
        (plan.run_id.as_str(), plan.processed_count, plan.charged_count, plan.total_micros),
        ("", 2, 1, 500_000)
    );
    assert_eq!((plan.errors.len(), plan.errors[0].reason.as_str()), (1, "NO_STRIPE_CUSTOMER"));
    assert_eq!(plan.planned_charges.len(), 1);
    let planned = &plan.planned_charges[0];
    assert_eq!(
        (planned.eco_id.as_str(), planned.api_calls_count, planned.included_count),
        ("eco_a", 100_507, 100_000)
    );
    assert_eq!((planned.overage_count, planned.price_micros, planned.price_per_count), (507, 1_000, 1));
    assert_eq!((planned.due_micros, planned.billed_micros, planned.charge_micros), (500_000, 0, 500_000));
    // And that is what a run does.
    refresher.rollback().await?;
    assert_eq!(billing.run_all().await?.total_micros, plan.total_micros);
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

/// An admin may look at all that a run and a comparison tell, and cause neither a charge nor a repair; a user may not
/// even look.
#[tokio::test]
async fn admins_may_look_and_users_may_not() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    sim.pro(&db, "eco_a").await?;
    record(&db, "eco_a", 100_100).await?;
    let run = async |caller: &str, dry_run| {
        let request = ProcessOverageRequest { dry_run, ..Default::default() };
        let answer = billing.client.clone().process_overage(user(caller)?.request(request)).await;
        anyhow::Ok(answer.map(Response::into_inner).map_err(|refused| refused.code()))
    };
    let compare = async |caller: &str, repair| {
        let request = ReconcileRequest { repair, ..Default::default() };
        let answer = billing.client.clone().reconcile(user(caller)?.request(request)).await;
        anyhow::Ok(answer.map(Response::into_inner).map_err(|refused| refused.code()))
    };
    let denied = Code::PermissionDenied;
    until(&db, "select not exists (select from eco_usage_changes)").await?;
    let before = contents(&db).await?;
    let planned = run(ADMIN, true).await?.map(|planned| planned.total_micros);
    assert_eq!(planned, Ok(100_000));
    let compared = compare(ADMIN, false).await?.map(|compared| (compared.running, compared.accounts_count));
    assert_eq!(compared, Ok((false, 1)));
    assert_eq!(run(ADMIN, false).await?.err(), Some(denied), "an admin's run");
    assert_eq!(compare(ADMIN, true).await?.err(), Some(denied), "an admin's repair");
    for (dry_run, repair) in [(true, false), (false, true)] {
        assert_eq!(run("eco_a", dry_run).await?.err(), Some(denied), "a user's run, dry: {dry_run}");
        assert_eq!(
            compare("eco_a", repair).await?.err(),
            Some(denied),
            "a user's comparison, repair: {repair}"
        );
    }
    assert_eq!(contents(&db).await?, before);
    assert_eq!(sim.read("/requests?path=/v1/invoiceitems&method=POST").await?["requests"], json!([]));
    billing.stop().await
}

#[tokio::test]
async fn parked_for_want_of_a_price_and_priced_it_is_planned_as_it_is_charged() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    sim.pro(&db, "eco_a").await?;
    sqlx::query("update eco_identities set currency_code = 'EUR'").execute(&db.pool).await?;
    record(&db, "eco_a", 100_100).await?;
    assert_eq!(dry(&billing).await?.errors, billing.run_all().await?.errors);
    let parked = dry(&billing).await?;
    assert_eq!((parked.processed_count, parked.errors.len(), parked.planned_charges.len()), (0, 0, 0));

    let price = "insert into eco_plan_prices (plan, version, currency_code, monthly_micros, overage_micros)
                 values ('pro', 1, 'EUR', 45000000, 2000)";
    sqlx::query(price).execute(&db.pool).await?;
    let plan = dry(&billing).await?;
    let run = billing.run_all().await?;
    assert_eq!((plan.processed_count, plan.charged_count), (run.processed_count, run.charged_count));
    assert_eq!((run.charged_count, plan.errors.len()), (1, 0));
    let micros: Vec<_> = plan.planned_charges.iter().map(|charge| charge.charge_micros).collect();
    assert_eq!((micros, sim.amounts().await?), (vec![200_000], vec![20]));
    billing.stop().await
}

#[tokio::test]
async fn what_was_told_or_refused_before_is_not_told_again() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    // Parked without a customer, and told; then a later period owes, too.
    seed::account(&db.pool, "eco_told", Plan::Pro, Utc::now() - TimeDelta::days(70)).await?;
    let first = sqlx::query_scalar("select anchor_time from eco_subscriptions where eco_id = 'eco_told'");
    record_at(&db, "eco_told", first.fetch_one(&db.pool).await?, 100_100).await?;
    assert_eq!(billing.run_all().await?.errors.len(), 1);
    record(&db, "eco_told", 100_100).await?;
    // Refused for good, and used further.
    let customer = sim.pro(&db, "eco_refused").await?;
    sim.admin(&format!("/customers/{customer}"), json!({ "declined": true })).await?;
    record(&db, "eco_refused", 100_100).await?;
    let plan = dry(&billing).await?;
    assert_eq!((plan.processed_count, plan.planned_charges.len(), plan.errors.len()), (2, 1, 0));
    assert_eq!(plan.planned_charges[0].eco_id, "eco_refused", "Stripe alone knows that it refuses");
    let run = billing.run_all().await?;
    assert_eq!((run.processed_count, run.charged_count, run.errors.len()), (2, 0, 1));
    assert_eq!(run.errors[0].reason, "CARD_DECLINED");
    record(&db, "eco_refused", 100).await?;
    for answer in [dry(&billing).await?, billing.run_all().await?] {
        assert_eq!((answer.processed_count, answer.charged_count, answer.errors.len()), (0, 0, 0));
    }
    billing.stop().await
}

#[tokio::test]
async fn an_account_goes_no_further_than_its_first_error() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    // The first period has no price, the second one has.
    let anchor = Utc::now() - TimeDelta::days(70);
    seed::account(&db.pool, "eco_error", Plan::Pro, anchor).await?;
    seed::stripe_ids(&db.pool, "eco_error", &sim.customer().await?, None).await?;
    let first = sqlx::query_scalar("select anchor_time from eco_subscriptions where eco_id = 'eco_error'");
    record_at(&db, "eco_error", first.fetch_one(&db.pool).await?, 100_100).await?;
    until(&db, "select exists (select from eco_usage_records where eco_id = 'eco_error')").await?;
    sqlx::query("update eco_usage_records set currency_code = 'EUR' where eco_id = 'eco_error'")
        .execute(&db.pool)
        .await?;
    record(&db, "eco_error", 100_100).await?;
    for (answer, what) in [(dry(&billing).await?, "planned"), (billing.run_all().await?, "done")] {
        assert_eq!((answer.processed_count, answer.charged_count, answer.errors.len()), (1, 0, 1), "{what}");
        assert_eq!(answer.errors[0].reason, "NO_PRICE_IN_CURRENCY", "{what}");
        ensure!(answer.planned_charges.is_empty(), "{what}");
    }
    billing.stop().await
}
