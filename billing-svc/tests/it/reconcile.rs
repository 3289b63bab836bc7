//! Reconcile: each side altered, in flight, repaired, followed.

use anyhow::{Context, Result, ensure};
use chrono::{TimeDelta, Utc};
use nexus_billing::{domain::reconciliation::Scope, store::stripe_books};
use nexus_client::CallOptions;
use nexus_core::plan::Plan;
use nexus_kit::{auth::Scope as TokenScope, status::reason};
use nexus_proto::{
    billing::v1::{AdjustUsageRequest, ChangePlanRequest, ListChargesRequest, ReconcileRequest},
    common::v1::Plan as PlanName,
};
use nexus_testkit::{db::TestDb, seed, settings};
use serde_json::json;
use sqlx::AssertSqlSafe;
use tonic::Code;

use crate::support::{Billing, Sim, anchor, fields, meter, record, runner, user};

pub(crate) async fn sql(db: &TestDb, statement: &str) -> Result<()> {
    let done = sqlx::query(AssertSqlSafe(statement.to_owned())).execute(&db.pool).await?;
    ensure!(done.rows_affected() > 0, "nothing changed: {statement}");
    Ok(())
}

pub(crate) fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(eco_id, kind)| ((*eco_id).to_owned(), (*kind).to_owned())).collect()
}

/// Accounts that used 100 units beyond what is included, and were charged for them.
pub(crate) async fn charged(db: &TestDb, sim: &Sim, accounts: &[&str]) -> Result<Billing> {
    for eco_id in accounts {
        sim.pro(db, eco_id).await?;
        meter(db, eco_id, 100_100).await?;
    }
    let billing = Billing::start(db, &sim.base).await?;
    let run = billing.run_all().await?;
    assert_eq!(run.charged_count, accounts.len() as i32);
    Ok(billing)
}

/// A day's use of one account after another, with a charge each.
async fn charged_again(db: &TestDb, billing: &Billing, eco_id: &str) -> Result<()> {
    meter(db, eco_id, 50).await?;
    ensure!(billing.run_all().await?.charged_count == 1);
    Ok(())
}

#[tokio::test]
async fn counts_that_were_altered_are_named_and_what_is_computed_is_repaired() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let accounts = ["eco_a", "eco_b", "eco_c", "eco_d", "eco_e", "eco_f"];
    let billing = charged(&db, &sim, &accounts).await?;
    ensure!(billing.differences(false).await?.is_empty());
    sql(&db, "update eco_usage_counters set recorded_units = recorded_units + 7 where eco_id = 'eco_a'")
        .await?;
    sql(&db, "delete from eco_api_usage where eco_id = 'eco_b'").await?;
    sql(&db, "update eco_usage_records set api_calls = 5 where eco_id = 'eco_c'").await?;
    sql(&db, "update eco_usage_records set billed_micros = 5 where eco_id = 'eco_d'").await?;
    sql(&db, "update eco_usage_counters set test_units = 3 where eco_id = 'eco_e'").await?;
    sql(
        &db,
        "insert into eco_usage_segments (eco_id, period_start, segment, plan, plan_version, closed_time, recorded_units,
                                         overage_units)
         select eco_id, period_start, 0, plan, plan_version, now(), api_calls - 1, overage_units
         from eco_usage_records where eco_id = 'eco_f'",
    )
    .await?;
    let expected = |repaired| {
        let mut expected = vec![
            ("eco_a", "COUNTERS_SUMMARY_DIFFER"),
            ("eco_a", "EVENTS_COUNTERS_DIFFER"),
            ("eco_b", "EVENTS_COUNTERS_DIFFER"),
            ("eco_c", "COUNTERS_SUMMARY_DIFFER"),
            ("eco_d", "LEDGER_SUM_DIFFERS"),
            ("eco_e", "EVENTS_COUNTERS_DIFFER"),
            ("eco_f", "SEGMENT_COUNTERS_DIFFER"),
        ];
        if repaired {
            expected.retain(|(_, kind)| !matches!(*kind, "COUNTERS_SUMMARY_DIFFER" | "LEDGER_SUM_DIFFERS"));
        }
        pairs(&expected)
    };
    let found = async |repair| {
        let mut found = billing.differences(repair).await?;
        // The segment that ends one unit before the count has one more unit beyond it.
        found.retain(|(eco_id, kind)| eco_id != "eco_f" || kind == "SEGMENT_COUNTERS_DIFFER");
        found.sort();
        anyhow::Ok(found)
    };
    assert_eq!(found(false).await?, expected(false));
    let metrics = billing.metrics().await?;
    for line in [
        "nexus_billing_drift_count{kind=\"EVENTS_COUNTERS_DIFFER\"} 3",
        "nexus_billing_drift_count{kind=\"LEDGER_SUM_DIFFERS\"} 1",
        "nexus_billing_drift_count{kind=\"ITEM_MISSING\"} 0",
    ] {
        ensure!(metrics.contains(line), "{line}: {metrics}");
    }
    let repaired = billing.reconcile(ReconcileRequest { repair: true, ..Default::default() }).await?;
    ensure!(repaired.repaired_count >= 3, "{repaired:?}");
    for difference in &repaired.differences {
        let is_computed = ["COUNTERS_SUMMARY_DIFFER", "LEDGER_SUM_DIFFERS"].contains(&&*difference.kind);
        assert_eq!(difference.repaired, is_computed, "{difference:?}");
    }
    assert_eq!(found(false).await?, expected(true));
    let kept: (String, i64) = sqlx::query_as(
        "select status, difference_count from eco_reconciliations where reconciliation_id = $1",
    )
    .bind(repaired.reconciliation_id.parse::<uuid::Uuid>()?)
    .fetch_one(&db.pool)
    .await?;
    assert_eq!(kept, ("finished".to_owned(), repaired.differences_count));
    billing.stop().await
}

#[tokio::test]
async fn a_raw_log_that_is_not_whole_is_no_difference_unless_it_has_too_much() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a", "eco_b"]).await?;
    sql(&db, "update eco_usage_retention set raw_complete_from = (now() at time zone 'UTC')::date").await?;
    sql(&db, "delete from eco_api_usage where eco_id = 'eco_a'").await?;
    ensure!(billing.differences(false).await?.is_empty());
    sql(&db, "update eco_api_usage set units_count = units_count + 1 where eco_id = 'eco_b'").await?;
    assert_eq!(billing.differences(false).await?, pairs(&[("eco_b", "EVENTS_COUNTERS_DIFFER")]));
    billing.stop().await
}

#[tokio::test]
async fn usage_that_goes_on_meanwhile_raises_no_alarm() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a", "eco_b"]).await?;
    let flushes = async {
        for _ in 0..40 {
            for eco_id in ["eco_a", "eco_b"] {
                meter(&db, eco_id, 10).await?;
            }
        }
        Ok(())
    };
    let runs = async {
        for _ in 0..5 {
            billing.run_all().await?;
        }
        Ok(())
    };
    let reconciliations = async {
        for _ in 0..5 {
            let found = billing.differences(false).await?;
            ensure!(found.is_empty(), "{found:?}");
        }
        anyhow::Ok(())
    };
    futures::future::try_join3(flushes, runs, reconciliations).await?;
    billing.stop().await
}

#[tokio::test]
async fn corrections_of_usage_raise_no_alarm_and_count_with_their_segment() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a"]).await?;
    let adjust = AdjustUsageRequest {
        eco_id: "eco_a".to_owned(),
        delta_count: -60,
        reason: "counted twice".to_owned(),
        request_id: "00000000-0000-4000-8000-000000000001".to_owned(),
        ..Default::default()
    };
    billing.client.clone().adjust_usage(user(settings::ADMIN)?.request(adjust)).await?;
    ensure!(billing.run_all().await?.charged_count == 1);
    ensure!(billing.differences(false).await?.is_empty());
    let change = ChangePlanRequest {
        eco_id: "eco_a".to_owned(),
        plan: PlanName::Enterprise.into(),
        ..ChangePlanRequest::default()
    };
    billing.change(change).await??;
    // The next refreshes the summary.
    billing.run_all().await?;
    ensure!(billing.differences(false).await?.is_empty());
    sql(&db, "update eco_usage_adjustments set units = units + 1").await?;
    assert_eq!(
        billing.differences(false).await?,
        pairs(&[("eco_a", "COUNTERS_SUMMARY_DIFFER"), ("eco_a", "SEGMENT_COUNTERS_DIFFER")])
    );
    billing.stop().await
}

#[tokio::test]
async fn a_settled_period_that_owes_something_else_is_named() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a"]).await?;
    sql(&db, "update eco_usage_records set settled_time = now(), overage_micros = overage_micros").await?;
    ensure!(billing.differences(false).await?.is_empty());
    sql(&db, "update eco_overage_charges set amount_micros = 90000, amount_minor = 9").await?;
    sql(&db, "update eco_usage_records set billed_micros = 90000").await?;
    assert_eq!(
        billing.differences(false).await?,
        pairs(&[("eco_a", "SETTLED_DIFFERS"), ("eco_a", "ITEM_AMOUNT_DIFFERS")])
    );
    billing.stop().await
}

#[tokio::test]
async fn what_is_in_doubt_or_to_be_rechecked_raises_no_alarm() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a", "eco_b", "eco_c"]).await?;
    let items = sim.items().await?;
    let of =
        |eco_id: &str| items.iter().find(|item| item["metadata"]["eco_id"] == *eco_id).context("an item");
    // Whether Stripe has them is not known: the one it has, the other it has not.
    sql(
        &db,
        "update eco_overage_charges set status = 'pending', stripe_invoice_item_id = null
         where eco_id in ('eco_a', 'eco_c')",
    )
    .await?;
    let path = format!("/v1/invoiceitems/{}", of("eco_c")?["id"].as_str().context("an id")?);
    sim.call(hyper::Method::DELETE, &path, "application/x-www-form-urlencoded", String::new()).await?;
    ensure!(billing.differences(true).await?.is_empty());
    // An attempt that was replaced, and took effect after all.
    sql(
        &db,
        "insert into eco_overage_charges (charge_id, attempt, eco_id, period_start, period_end, sequence, units_from,
                units_to, amount_micros, amount_minor, currency_code, status, idempotency_key, payload, recheck_time)
         select charge_id, 2, eco_id, period_start, period_end, sequence, units_from, units_to, amount_micros,
                amount_minor, currency_code, 'superseded', 'k', payload, now()
         from eco_overage_charges where eco_id = 'eco_b'",
    )
    .await?;
    copy(&sim, of("eco_b")?, &[]).await?;
    ensure!(billing.differences(true).await?.is_empty());
    sql(&db, "update eco_overage_charges set recheck_time = null where eco_id = 'eco_b'").await?;
    assert_eq!(billing.differences(false).await?, pairs(&[("eco_b", "ITEM_DUPLICATED")]));
    billing.stop().await
}

/// Makes an item like this one, with some of its parameters changed; returns its id.
pub(crate) async fn copy(sim: &Sim, item: &serde_json::Value, changed: &[(&str, &str)]) -> Result<String> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let mut form = vec![
        ("customer".to_owned(), text(&item["customer"])),
        ("amount".to_owned(), item["amount"].to_string()),
        ("currency".to_owned(), text(&item["currency"])),
    ];
    for (key, value) in item["metadata"].as_object().context("metadata")? {
        form.push((format!("metadata[{key}]"), text(value)));
    }
    for (key, value) in changed {
        let field = form.iter_mut().find(|(known, _)| known == key).context("a known parameter")?;
        field.1 = (*value).to_owned();
    }
    let encoded: Vec<String> =
        form.iter().map(|(key, value)| format!("{}={}", encode(key), encode(value))).collect();
    sim.create("invoiceitems", &encoded.join("&")).await
}

fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[tokio::test]
async fn rows_that_the_ledger_has_lost_are_found_and_taken_in_so_that_nothing_is_charged_again() -> Result<()>
{
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a", "eco_b"]).await?;
    charged_again(&db, &billing, "eco_a").await?;
    charged_again(&db, &billing, "eco_a").await?;
    let charges = async || -> Result<_> {
        let request = ListChargesRequest { eco_id: "eco_a".to_owned(), ..Default::default() };
        let list = billing.client.clone().list_charges(runner()?.request(request)).await?.into_inner();
        let mut charges = list.charges;
        charges.sort_by_key(|charge| charge.sequence);
        Ok(charges
            .into_iter()
            .map(|c| {
                (c.charge_id, c.sequence, c.from_count, c.to_count, c.amount_micros, c.stripe_invoice_item_id)
            })
            .collect::<Vec<_>>())
    };
    let before = (charges().await?, sim.amounts().await?);
    sql(&db, "delete from eco_overage_charges where eco_id = 'eco_a' and sequence > 1").await?;
    sql(&db, "update eco_usage_records set billed_micros = 100000 where eco_id = 'eco_a'").await?;
    let lost = pairs(&[("eco_a", "ITEM_EXTRA"), ("eco_a", "ITEM_EXTRA")]);
    assert_eq!(billing.differences(false).await?, lost);
    assert_eq!(billing.differences(true).await?, lost);
    ensure!(billing.differences(false).await?.is_empty());
    assert_eq!(billing.run_all().await?.charged_count, 0);
    assert_eq!((charges().await?, sim.amounts().await?), before);
    billing.stop().await
}

/// A subscription of a later day has cut the period: what its item says of the end is not so any more.
#[tokio::test]
async fn an_item_of_a_period_that_was_cut_is_taken_in() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a"]).await?;
    let before = sim.amounts().await?;
    sql(&db, "update eco_usage_records set period_end = now(), settle_time = now() + interval '1 day'")
        .await?;
    sql(&db, "delete from eco_overage_charges").await?;
    sql(&db, "update eco_usage_records set billed_micros = 0").await?;
    assert_eq!(billing.differences(true).await?, pairs(&[("eco_a", "ITEM_EXTRA")]));
    ensure!(billing.differences(false).await?.is_empty());
    assert_eq!(billing.run_all().await?.charged_count, 0);
    assert_eq!(sim.amounts().await?, before);
    let ends: (bool, bool) = sqlx::query_as(
        "select h.period_end > r.period_end, h.period_start = r.period_start
         from eco_overage_charges h join eco_usage_records r on r.eco_id = h.eco_id",
    )
    .fetch_one(&db.pool)
    .await?;
    assert_eq!(ends, (true, true), "the charge keeps the end that its item says");
    billing.stop().await
}

#[tokio::test]
async fn a_charge_that_was_made_after_all_is_made_and_a_second_item_is_taken_away() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a", "eco_b", "eco_c"]).await?;
    sql(
        &db,
        "update eco_overage_charges set status = 'failed', failure_reason = 'X', stripe_invoice_item_id = null
         where eco_id = 'eco_a'",
    )
    .await?;
    sql(&db, "update eco_usage_records set billed_micros = 0, parked_reason = 'X' where eco_id = 'eco_a'")
        .await?;
    let items = sim.items().await?;
    let of =
        |eco_id: &str| items.iter().find(|item| item["metadata"]["eco_id"] == *eco_id).context("an item");
    let extra = copy(&sim, of("eco_b")?, &[]).await?;
    sim.invoice(of("eco_c")?["customer"].as_str().context("a customer")?).await?;
    copy(&sim, of("eco_c")?, &[]).await?;
    sim.invoice(of("eco_c")?["customer"].as_str().context("a customer")?).await?;
    let mut found = billing.differences(true).await?;
    found.sort();
    assert_eq!(
        found,
        pairs(&[("eco_a", "ITEM_EXTRA"), ("eco_b", "ITEM_DUPLICATED"), ("eco_c", "ITEM_DUPLICATED")])
    );
    ensure!(sim.items().await?.iter().all(|item| item["id"] != extra));
    // What was invoiced twice the next run credits.
    ensure!(billing.differences(true).await?.is_empty());
    let run = billing.run_all().await?;
    assert_eq!((run.charged_count, run.total_micros), (1, -100_000));
    ensure!(billing.overage("eco_a").await?.invoiced);
    billing.stop().await
}

#[tokio::test]
async fn items_on_no_invoice_that_counts_are_named() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a", "eco_b"]).await?;
    let items = sim.items().await?;
    for (item, void) in items.iter().zip([true, false]) {
        let customer = item["customer"].as_str().context("a customer")?;
        let form = format!("customer={customer}&pending_invoice_items_behavior=include");
        let invoice = sim.create("invoices", &form).await?;
        sim.create(&format!("invoices/{invoice}/finalize"), "").await?;
        if void {
            sim.create(&format!("invoices/{invoice}/void"), "").await?;
        }
    }
    let voided = items[0]["metadata"]["eco_id"].as_str().context("an account")?;
    assert_eq!(billing.differences(false).await?, pairs(&[(voided, "ITEM_ON_NO_FINALISED_INVOICE")]));
    billing.stop().await?;

    // By the times of the listing: how long an item may wait.
    let mut connection = nexus_kit::db::acquire(&db.pool).await?;
    let item = items[0]["id"].as_str().context("an id")?;
    let cases = [
        ("pending for a month", 30, None, None, false),
        ("pending for longer", 36, None, None, true),
        ("its subscription has just ended", 3, None, Some(1), false),
        ("its subscription ended", 3, None, Some(3), true),
        ("on a fresh draft", 3, Some(("draft", 1)), None, false),
        ("on an old draft", 5, Some(("draft", 4)), None, true),
        ("on a final invoice", 90, Some(("finalised", 60)), None, false),
    ];
    sql(&db, "update eco_overage_charges set payload = payload || '{\"subscription\": \"sub_x\"}'").await?;
    for (case, age, invoice, ended, waits) in cases {
        stripe_books::clear(&mut connection).await?;
        let ago = |days: i64| Utc::now() - TimeDelta::days(days);
        sqlx::query("update eco_subscriptions set stripe_subscription_id = 'sub_x', ended_time = $1 where eco_id = $2")
            .bind(ended.map(ago))
            .bind(voided)
            .execute(&mut *connection)
            .await?;
        sqlx::query(
            "insert into eco_stripe_items (item_id, customer, amount_minor, currency_code, invoice_id, created_time)
             values ($1, 'cus_x', 10, 'USD', $2, $3)",
        )
        .bind(item)
        .bind(invoice.map(|_| "in_1"))
        .bind(ago(age))
        .execute(&mut *connection)
        .await?;
        if let Some((status, made)) = invoice {
            sqlx::query("insert into eco_stripe_invoices values ('in_1', $1, $2)")
                .bind(status)
                .bind(ago(made))
                .execute(&mut *connection)
                .await?;
        }
        let found = stripe_books::waiting(&mut connection, &Scope::default(), None, 10).await?;
        assert_eq!(!found.is_empty(), waits, "{case}");
    }
    Ok(())
}

#[tokio::test]
async fn only_the_accounts_and_periods_asked_for_are_compared() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a", "eco_b"]).await?;
    sql(&db, "update eco_usage_records set billed_micros = 1").await?;
    sql(&db, "update eco_overage_charges set amount_minor = 11").await?;
    let ask = async |accounts: &[&str], period_time| {
        let account_ids = accounts.iter().map(|id| (*id).to_owned()).collect();
        let found =
            billing.reconcile(ReconcileRequest { account_ids, period_time, ..Default::default() }).await?;
        let kinds: Vec<_> = found.differences.into_iter().map(|d| (d.eco_id, d.kind)).collect();
        anyhow::Ok((found.accounts_count, found.items_count, kinds))
    };
    let of_b = pairs(&[("eco_b", "LEDGER_SUM_DIFFERS"), ("eco_b", "ITEM_AMOUNT_DIFFERS")]);
    assert_eq!(ask(&["eco_b"], None).await?, (1, 1, of_b.clone()));
    let at = |days| Some(nexus_kit::convert::timestamp(Utc::now() + TimeDelta::days(days)));
    assert_eq!(ask(&["eco_b"], at(0)).await?, (1, 1, of_b));
    assert_eq!(ask(&["eco_b"], at(-20)).await?, (0, 1, Vec::new()));
    assert_eq!(ask(&[], at(0)).await?.2.len(), 4);
    billing.stop().await
}

#[tokio::test]
async fn a_long_reconciliation_goes_on_without_its_caller_and_a_repeat_has_the_first_answer() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a"]).await?;
    sql(&db, "update eco_usage_records set billed_micros = 1").await?;
    sim.admin("/faults", json!({ "method": "GET", "path": "/v1/invoiceitems", "hold": true })).await?;
    let request = ReconcileRequest {
        request_id: "0b9c0bd4-55a6-4a2e-8a3f-9d1d4c1a7f11".to_owned(),
        ..Default::default()
    };
    let token = settings::service_token(&[TokenScope::BillingRun])?;
    // Long enough that a machine which others use, too, has compared the database and answers before its end.
    let hurried = CallOptions::bearer(&token, std::time::Duration::from_secs(8))?;
    let first = billing.client.clone().reconcile(hurried.request(request.clone())).await?.into_inner();
    ensure!(first.running && first.differences_count == 1, "{first:?}");
    let other = billing.reconcile(ReconcileRequest::default()).await?;
    ensure!(other.already_running && !other.running && other.reconciliation_id.is_empty());
    sim.read("/held").await?;
    sim.admin("/release", json!({})).await?;
    // One that ends while it is asked for may be told of as it was just before.
    let end = billing.reconciled(request.clone()).await?;
    ensure!(end.reconciliation_id == first.reconciliation_id, "{end:?}");
    assert_eq!((end.differences_count, end.items_count), (1, 1));
    sql(&db, "update eco_usage_records set billed_micros = 100000").await?;
    let again = billing.reconcile(request).await?;
    assert_eq!((again.differences, again.reconciliation_id), (end.differences, end.reconciliation_id));
    ensure!(billing.differences(false).await?.is_empty());
    billing.stop().await
}

#[tokio::test]
async fn a_reconciliation_that_cannot_read_stripe_fails_and_begins_again() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a"]).await?;
    let fault = json!({ "method": "GET", "path": "/v1/invoiceitems",
                        "outcome": { "kind": "error", "status": 401 } });
    sim.admin("/faults", fault).await?;
    let request = ReconcileRequest {
        request_id: "0b9c0bd4-55a6-4a2e-8a3f-9d1d4c1a7f12".to_owned(),
        ..Default::default()
    };
    let refused = billing.client.clone().reconcile(runner()?.request(request.clone())).await.err();
    let refused = refused.context("Stripe could not be read")?;
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "RECONCILIATION_FAILED"));
    // What passes is asked for again.
    let fault =
        json!({ "method": "GET", "path": "/v1/invoices", "outcome": { "kind": "error", "status": 503 } });
    sim.admin("/faults", fault).await?;
    let end = billing.reconcile(request).await?;
    assert_eq!((end.running, end.differences_count, end.items_count), (false, 0, 1));
    billing.stop().await
}

#[tokio::test]
async fn callers_without_the_scope_and_malformed_requests_are_refused() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    seed::account(&db.pool, "eco_a", Plan::Pro, anchor()).await?;
    record(&db, "eco_a", 1).await?;
    let billing = Billing::start(&db, &sim.base).await?;
    let refused = billing.client.clone().reconcile(user("eco_a")?.request(ReconcileRequest::default())).await;
    assert_eq!(refused.err().map(|status| status.code()), Some(Code::PermissionDenied));
    let request = ReconcileRequest {
        request_id: "x".to_owned(),
        account_ids: vec!["eco_a".to_owned(), "b".to_owned()],
        period_time: Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }),
        repair: false,
    };
    let refused =
        billing.client.clone().reconcile(runner()?.request(request)).await.err().context("refused")?;
    assert_eq!(fields(&refused), ["request_id", "account_ids[1]", "period_time"]);
    billing.stop().await
}
