//! What operators hear of: each occurrence once over all replicas, at least once over crashes.

use anyhow::Result;
use nexus_billing::{
    config::Config,
    domain::reconciliation::{Difference, Findings, Kind},
};
use nexus_core::{money::Micros, plan::Plan};
use nexus_testkit::{db::TestDb, seed};
use sqlx::types::Json;

use crate::{
    receiver::{Answer, Receiver},
    support::{Billing, anchor, config, until},
    webhook_support::{NO_STRIPE, execute},
};

const ALL_TOLD: &str = "select count(*) > 0 and bool_and(status = 'sent') from eco_operator_notices";
const WAITS: &str =
    "select exists (select from eco_operator_notices where error is not null and lease_end_time is null)";
const FAILED: &str = "with run as (
        insert into eco_overage_runs (run_id, status, processed, charged, failed, finished_time)
        values ('0197a000-0000-7000-8000-000000000001', 'failed', 7, 5, 2, now()) returning run_id)
    insert into eco_overage_run_accounts (run_id, eco_id, reason, message)
    select run_id, 'eco_a', 'CARD', '<!channel> & co' from run
    union all select run_id, 'eco_b', null, null from run";

fn settings(db: &TestDb, slack: &Receiver) -> Config {
    let mut settings = config(db, NO_STRIPE);
    settings.notify.slack_webhook_url = Some(slack.url.clone().into());
    settings
}

#[tokio::test]
async fn a_run_that_failed_is_told_once_by_all_replicas() -> Result<()> {
    let db = TestDb::new().await?;
    let mut slack = Receiver::start().await?;
    let replicas = [
        Billing::start_with(settings(&db, &slack)).await?,
        Billing::start_with(settings(&db, &slack)).await?,
    ];
    execute(&db, FAILED).await?;
    let told = slack.next().await?;
    assert_eq!(told.header("content-type")?, "application/json");
    let text = told.json()?["text"].as_str().unwrap_or_default().to_owned();
    assert!(text.contains("0197a000-0000-7000-8000-000000000001") && text.contains("7 accounts"), "{text}");
    assert!(text.ends_with("eco_a: CARD: &lt;!channel&gt; &amp; co"), "{text}");
    until(&db, ALL_TOLD).await?;

    // It goes on, fails once more, and this is another occurrence; one that ends well is none.
    let again =
        "update eco_overage_runs set started_time = clock_timestamp(), finished_time = clock_timestamp()";
    execute(&db, again).await?;
    slack.next().await?;
    execute(&db, "update eco_overage_runs set status = 'finished', started_time = clock_timestamp()").await?;
    execute(&db, "insert into eco_overage_runs (run_id, status) values (gen_random_uuid(), 'running')")
        .await?;
    until(&db, ALL_TOLD).await?;
    for replica in replicas {
        replica.stop().await?;
    }
    assert!(slack.rest().is_empty());
    let notices: i64 =
        sqlx::query_scalar("select count(*) from eco_operator_notices").fetch_one(&db.pool).await?;
    assert_eq!(notices, 2);
    Ok(())
}

#[tokio::test]
async fn a_run_whose_process_is_gone_is_told_and_not_again_when_the_next_run_finds_it() -> Result<()> {
    let db = TestDb::new().await?;
    let mut slack = Receiver::start().await?;
    let billing = Billing::start_with(settings(&db, &slack)).await?;
    execute(
        &db,
        "insert into eco_overage_runs (run_id, status, heartbeat_time)
         values (gen_random_uuid(), 'running', now() - interval '6 minutes')",
    )
    .await?;
    let told = slack.next().await?.body;
    assert!(told.contains("gives no sign of life"), "{told}");
    billing.run_all().await?;
    until(&db, "select exists (select from eco_overage_runs where status = 'failed')").await?;
    // Another one, so that it is seen that the watch has come by.
    execute(&db, FAILED).await?;
    assert!(slack.next().await?.body.contains("0197a000-0000-7000-8000-000000000001"));
    until(&db, ALL_TOLD).await?;
    assert!(slack.rest().is_empty());
    billing.stop().await
}

/// Has the gap before the first run begin earlier, and what was told of it be of that gap: time passes. Between two looks:
/// one that had seen the gap as it was would not find it among what was told, and tell it again. A look begins with the
/// runs.
async fn move_gap(db: &TestDb, hours: i32) -> Result<u64> {
    let mut transaction = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query("lock table eco_overage_runs in access exclusive mode").execute(&mut *transaction).await?;
    let sql = "with moved as (
                   update eco_identities set created_time = created_time - make_interval(hours => $1)
                   returning created_time)
               update eco_operator_notices
               set subject = (select (extract(epoch from min(created_time)) * 1000000)::bigint || ' 1' from moved)
               where kind = 'run_overdue'";
    let moved = sqlx::query(sql).bind(hours).execute(&mut *transaction).await?.rows_affected();
    transaction.commit().await?;
    Ok(moved)
}

#[tokio::test]
async fn runs_that_stay_away_are_told_each_time_too_long_has_passed_once_more() -> Result<()> {
    let db = TestDb::new().await?;
    let mut slack = Receiver::start().await?;
    let billing = Billing::start_with(settings(&db, &slack)).await?;
    seed::account(&db.pool, "eco_a", Plan::Pro, anchor()).await?;
    // A run of some accounts, one that failed and one at work are no finished runs over all accounts.
    execute(
        &db,
        "insert into eco_overage_runs (run_id, status, account_ids, finished_time) values
         (gen_random_uuid(), 'finished', '{eco_a}', now()), (gen_random_uuid(), 'running', null, null)",
    )
    .await?;
    execute(&db, "update eco_identities set created_time = now() - interval '27 hours'").await?;
    let told = slack.next().await?.body;
    assert!(told.contains("ProcessOverage is overdue"), "{told}");
    until(&db, ALL_TOLD).await?;
    assert_eq!(move_gap(&db, 24).await?, 1);
    execute(&db, FAILED).await?;
    let told = slack.next().await?.body;
    assert!(told.contains("run of ProcessOverage failed"), "after 51 hours there is nothing new: {told}");
    until(&db, ALL_TOLD).await?;
    assert_eq!(move_gap(&db, 2).await?, 1);
    assert!(slack.next().await?.body.contains("ProcessOverage is overdue"), "after 53 hours");
    until(&db, ALL_TOLD).await?;
    execute(
        &db,
        "insert into eco_overage_runs (run_id, status, finished_time)
         values (gen_random_uuid(), 'finished', now() - interval '25 hours')",
    )
    .await?;
    execute(&db, "update eco_overage_runs set finished_time = now() - interval '27 hours' where account_ids is null and status = 'finished'").await?;
    assert!(slack.next().await?.body.contains("overdue"), "the next gap");
    until(&db, ALL_TOLD).await?;
    let notices: i64 =
        sqlx::query_scalar("select count(*) from eco_operator_notices").fetch_one(&db.pool).await?;
    assert_eq!(notices, 4, "25 hours are no gap");
    assert!(slack.rest().is_empty());
    billing.stop().await
}

#[tokio::test]
async fn drift_that_a_reconciliation_leaves_is_told_once_for_each() -> Result<()> {
    let db = TestDb::new().await?;
    let mut slack = Receiver::start().await?;
    let billing = Billing::start_with(settings(&db, &slack)).await?;
    let difference = |kind, repaired| Difference {
        eco_id: "eco_a".to_owned(),
        kind,
        message: "the ledger has <1,000>".to_owned(),
        amount: Micros(0),
        currency: "USD".to_owned(),
        period_start: None,
        charge_id: String::new(),
        item_id: String::new(),
        repaired,
    };
    let mut repaired = Findings::default();
    repaired.add(difference(Kind::ItemExtra, true));
    let mut left = repaired.clone();
    left.add(difference(Kind::ItemMissing, false));
    for findings in [Findings::default(), repaired, left.clone(), left] {
        sqlx::query(
            "insert into eco_reconciliations (reconciliation_id, repair, status, drift, differences, finished_time)
             values (gen_random_uuid(), false, 'finished', $1, $2, now())",
        )
        .bind(Json(findings.drift))
        .bind(Json(findings.differences))
        .execute(&db.pool)
        .await?;
    }
    for _ in 0..2 {
        let told = slack.next().await?.json()?;
        let text = told["text"].as_str().unwrap_or_default();
        assert!(text.contains("leaves 1 differences: ITEM_MISSING 1."), "{text}");
        assert!(text.ends_with("\n• eco_a: ITEM_MISSING: the ledger has &lt;1,000&gt;"), "{text}");
        assert!(!text.contains("ITEM_EXTRA"), "{text}");
    }
    until(&db, ALL_TOLD).await?;
    billing.stop().await?;
    assert!(slack.rest().is_empty());
    Ok(())
}

#[tokio::test]
async fn what_could_not_be_told_or_was_cut_off_is_told_again() -> Result<()> {
    let db = TestDb::new().await?;
    let mut slack = Receiver::start().await?;
    slack.answer(Answer::Status(500));
    slack.answer(Answer::Hang);
    execute(&db, FAILED).await?;
    let billing = Billing::start_with(settings(&db, &slack)).await?;
    let first = slack.next().await?;
    until(&db, WAITS).await?;
    execute(&db, "update eco_operator_notices set due_time = now()").await?;
    assert_eq!(slack.next().await?.body, first.body);
    billing.kill().await?;
    let billing = Billing::start_with(settings(&db, &slack)).await?;
    assert_eq!(
        execute(&db, "update eco_operator_notices set lease_end_time = now() where lease_end_time > now()")
            .await?,
        1
    );
    assert_eq!(slack.next().await?.body, first.body);
    until(&db, ALL_TOLD).await?;
    billing.stop().await
}

#[tokio::test]
async fn a_webhook_that_is_no_url_ends_the_start_and_is_never_shown() -> Result<()> {
    let db = TestDb::new().await?;
    let mut settings = config(&db, NO_STRIPE);
    settings.notify.slack_webhook_url = Some("hooks.slack.example/T0/B0/secret-part".into());
    assert!(!format!("{settings:?}").contains("secret-part"));
    let listeners = nexus_kit::serve::Listeners::bind(settings.grpc_addr, settings.metrics_addr).await?;
    let shutdown = tokio_util::sync::CancellationToken::new();
    let error = nexus_billing::serve(settings, listeners, shutdown).await.err().map(|e| e.to_string());
    let error = error.unwrap_or_default();
    assert!(error.starts_with("SLACK_WEBHOOK_URL") && !error.contains("secret-part"), "{error}");
    Ok(())
}
