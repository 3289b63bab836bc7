//! ProcessOverage against a stand-in Stripe over HTTP: what is charged, and what goes wrong.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use chrono::{TimeDelta, Utc};
use nexus_core::{period::Period, plan::Plan};
use nexus_proto::billing::v1::{ChargeStatus, ListChargesRequest};
use nexus_testkit::{db::TestDb, seed};
use serde_json::json;

use crate::support::{Billing, Sim, only, record, record_at, user};

/// An error that Stripe asks not to be tried again now: the charge stays in doubt until the next run.
fn later() -> serde_json::Value {
    json!({ "outcome": { "kind": "error", "status": 500, "should_retry": false } })
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
async fn an_account_whose_plan_has_no_price_in_its_currency_is_parked_until_there_is_one() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    sim.pro(&db, "eco_a").await?;
    sqlx::query("update eco_identities set currency_code = 'EUR'").execute(&db.pool).await?;
    record(&db, "eco_a", 100_100).await?;
    let run = billing.run_all().await?;
    assert_eq!((run.charged_count, run.errors.len()), (0, 1));
    assert_eq!(run.errors[0].reason, "NO_PRICE_IN_CURRENCY");
    assert_eq!(run.errors[0].message, "The plan of eco_a has no price in EUR");
    let again = billing.run_all().await?;
    assert_eq!((again.processed_count, again.errors.len()), (0, 0));

    let price = "insert into eco_plan_prices (plan, version, currency_code, monthly_micros, overage_micros)
                 values ('pro', 1, 'EUR', 45000000, 2000)";
    sqlx::query(price).execute(&db.pool).await?;
    let run = billing.run_all().await?;
    // Charged, though not in the dollars that the sum is in.
    assert_eq!((run.charged_count, run.total_micros, run.errors.len()), (1, 0, 0));
    let item = &sim.items().await?[0];
    assert_eq!((&item["amount"], &item["currency"]), (&json!(20), &json!("eur")));
    billing.stop().await
}

#[tokio::test]
async fn charges_are_listed_newest_first_page_by_page() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    sim.pro(&db, "eco_a").await?;
    record(&db, "eco_a", 100_000).await?;
    for _ in 0..3 {
        record(&db, "eco_a", 10).await?;
        assert_eq!(billing.run_all().await?.charged_count, 1);
    }
    let mut request = ListChargesRequest { page_size: 2, ..Default::default() };
    let mut sequences = Vec::new();
    loop {
        let page =
            billing.client.clone().list_charges(user("eco_a")?.request(request.clone())).await?.into_inner();
        sequences.extend(page.charges.iter().map(|charge| charge.sequence));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(sequences, [3, 2, 1]);
    billing.stop().await
}
