//! Subscriptions renew: an invoice is drafted, finalised and collected as the clock moves.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::harness::{Sim, id, ids, read};

const HOUR: u32 = 3600;

/// A subscription of 4900 cents a month, and the end of its first period.
async fn subscribed(sim: &Sim) -> Result<(String, String, i64)> {
    let customer = sim.customer().await?;
    let subscription = sim.subscription(&customer).await?;
    let end = subscription["items"]["data"][0]["current_period_end"].as_i64().context("an end")?;
    Ok((customer, id(&subscription)?, end))
}

async fn newest_invoice(sim: &Sim, customer: &str) -> Result<Value> {
    let list = sim.read(&format!("/v1/invoices?customer={customer}&limit=1")).await?;
    Ok(list["data"][0].clone())
}

async fn status(sim: &Sim, subscription: &str) -> Result<Value> {
    Ok(sim.read(&format!("/v1/subscriptions/{subscription}")).await?["status"].clone())
}

/// The types of all events, oldest first.
async fn event_types(sim: &Sim) -> Result<Vec<String>> {
    let list = sim.read("/v1/events?limit=100").await?;
    let types = list["data"].as_array().context("data")?.iter().rev();
    types.map(|event| Ok(event["type"].as_str().context("a type")?.to_owned())).collect()
}

fn amounts(invoice: &Value) -> Result<Vec<i64>> {
    let lines = invoice["lines"]["data"].as_array().context("lines")?;
    lines.iter().map(|line| line["amount"].as_i64().context("an amount")).collect()
}

#[tokio::test]
async fn the_first_invoice_is_paid_at_once() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    sim.item(&customer, "100", &[]).await?;
    let subscription = sim.subscription(&customer).await?;
    assert_eq!(subscription["status"], "active");
    let invoice = newest_invoice(&sim, &customer).await?;
    assert_eq!(invoice["id"], subscription["latest_invoice"]);
    assert_eq!(invoice["billing_reason"], "subscription_create");
    assert_eq!((&invoice["status"], &invoice["amount_paid"]), (&json!("paid"), &json!(5000)));
    // What was pending comes first.
    assert_eq!(amounts(&invoice)?, [100, 4900]);
    let types = event_types(&sim).await?;
    let of_interest: Vec<&str> = types
        .iter()
        .map(String::as_str)
        .filter(|kind| kind.contains("subscription") || kind.starts_with("invoice."))
        .collect();
    assert_eq!(
        of_interest,
        [
            "customer.subscription.created",
            "invoice.created",
            "customer.subscription.updated",
            "invoice.finalized",
            "invoice.paid",
            "invoice.payment_succeeded",
            "customer.subscription.updated",
        ]
    );
    sim.stop().await
}

#[tokio::test]
async fn a_renewal_drafts_an_invoice_that_is_collected_an_hour_later() -> Result<()> {
    let sim = Sim::start().await?;
    let (customer, subscription, end) = subscribed(&sim).await?;
    let other = id(&sim
        .create(
            "/v1/subscriptions",
            &[
                ("customer", &customer),
                ("items[0][price]", &sim.price().await?),
                ("billing_cycle_anchor", &(end - 86_400).to_string()),
            ],
        )
        .await?)?;
    sim.item(&customer, "7", &[("subscription", &other)]).await?;
    sim.item(&customer, "100", &[("subscription", &subscription)]).await?;
    sim.item(&customer, "200", &[]).await?;
    // The other one draws first, and takes its own and what belongs to none.
    sim.admin("/clock", json!({ "to": end - 86_400 })).await?;
    assert_eq!(amounts(&newest_invoice(&sim, &customer).await?)?, [200, 7, 4900]);

    sim.admin("/clock", json!({ "to": end })).await?;
    let draft = newest_invoice(&sim, &customer).await?;
    assert_eq!((&draft["status"], &draft["billing_reason"]), (&json!("draft"), &json!("subscription_cycle")));
    assert_eq!(draft["period_end"], end);
    assert_eq!(draft["created"], end);
    assert_eq!(draft["automatically_finalizes_at"], end + 3600);
    assert_eq!(amounts(&draft)?, [100, 4900]);
    assert_eq!(draft["lines"]["data"][1]["period"]["start"], end);
    let renewed = sim.read(&format!("/v1/subscriptions/{subscription}")).await?;
    assert_eq!(renewed["latest_invoice"], draft["id"]);
    assert_eq!(renewed["items"]["data"][0]["current_period_start"], end);

    // Its hour: items are attached to the open draft, after the others.
    let invoice = id(&draft)?;
    sim.item(&customer, "50", &[("invoice", &invoice)]).await?;
    sim.advance(HOUR).await?;
    let paid = sim.read(&format!("/v1/invoices/{invoice}")).await?;
    assert_eq!((&paid["status"], &paid["amount_paid"]), (&json!("paid"), &json!(5050)));
    assert_eq!(paid["status_transitions"]["finalized_at"], end + 3600);
    assert_eq!(amounts(&paid)?, [100, 4900, 50]);
    sim.stop().await
}

#[tokio::test]
async fn months_that_pass_at_once_happen_one_after_the_other() -> Result<()> {
    let sim = Sim::start().await?;
    let (customer, _, end) = subscribed(&sim).await?;
    sim.admin("/clock", json!({ "to": end + 70 * 86_400 })).await?;
    let list = sim.read(&format!("/v1/invoices?customer={customer}")).await?;
    let invoices = list["data"].as_array().context("data")?;
    assert_eq!(invoices.len(), 4);
    let times: Vec<i64> = sim.read("/v1/events?limit=100").await?["data"]
        .as_array()
        .context("data")?
        .iter()
        .filter_map(|event| event["created"].as_i64())
        .collect();
    ensure!(times.is_sorted_by(|newer, older| newer >= older), "{times:?}");
    for invoice in invoices {
        assert_eq!(invoice["status"], "paid");
    }
    sim.stop().await
}

#[tokio::test]
async fn of_more_than_250_pending_items_the_rest_waits_for_the_next_invoice() -> Result<()> {
    let sim = Sim::start().await?;
    let (customer, subscription, end) = subscribed(&sim).await?;
    for _ in 0..252 {
        sim.item(&customer, "1", &[("subscription", &subscription)]).await?;
    }
    sim.admin("/clock", json!({ "to": end })).await?;
    assert_eq!(newest_invoice(&sim, &customer).await?["total"], 250 + 4900);
    let pending = sim.read(&format!("/v1/invoiceitems?customer={customer}&pending=true")).await?;
    assert_eq!(ids(&pending)?.len(), 2);
    sim.stop().await
}

#[tokio::test]
async fn a_failed_payment_makes_the_subscription_past_due_until_it_is_paid() -> Result<()> {
    let sim = Sim::start().await?;
    let (customer, subscription, end) = subscribed(&sim).await?;
    sim.admin(&format!("/customers/{customer}"), json!({ "payment_fails": true })).await?;
    sim.admin("/clock", json!({ "to": end + 3600 })).await?;
    let failed = newest_invoice(&sim, &customer).await?;
    assert_eq!((&failed["status"], &failed["attempt_count"]), (&json!("open"), &json!(1)));
    assert_eq!(failed["next_payment_attempt"], end + 3600 + 3 * 86_400);
    assert_eq!(status(&sim, &subscription).await?, "past_due");
    ensure!(event_types(&sim).await?.contains(&"invoice.payment_failed".to_owned()));
    assert_eq!(sim.read(&format!("/v1/customers/{customer}")).await?["delinquent"], true);

    let pay = format!("/v1/invoices/{}/pay", id(&failed)?);
    assert_eq!(sim.post(&pay, &[]).send().await?.status(), 402);
    // The attempt by request counts, although it was answered with an error.
    assert_eq!(newest_invoice(&sim, &customer).await?["attempt_count"], 2);
    sim.admin(&format!("/customers/{customer}"), json!({ "payment_fails": false })).await?;
    sim.create(&pay, &[]).await?;
    assert_eq!(status(&sim, &subscription).await?, "active");
    sim.stop().await
}

#[tokio::test]
async fn after_the_last_try_the_settings_decide() -> Result<()> {
    for (setting, expected) in [("cancel", "canceled"), ("unpaid", "unpaid"), ("past_due", "past_due")] {
        let sim = Sim::start().await?;
        sim.freeze().await?;
        sim.admin("/settings", json!({ "retry_days": [1, 1], "after_retries": setting })).await?;
        let (customer, subscription, end) = subscribed(&sim).await?;
        sim.admin(&format!("/customers/{customer}"), json!({ "payment_fails": true })).await?;
        sim.admin("/clock", json!({ "to": end + 3600 + 2 * 86_400 - 1 })).await?;
        assert_eq!(status(&sim, &subscription).await?, "past_due");
        sim.advance(1).await?;
        assert_eq!(status(&sim, &subscription).await?, expected);
        let invoice = newest_invoice(&sim, &customer).await?;
        assert_eq!((&invoice["attempt_count"], &invoice["next_payment_attempt"]), (&json!(3), &Value::Null));
        sim.stop().await?;
    }
    Ok(())
}

/// The documentation can be read either way.
#[tokio::test]
async fn a_draft_whose_subscription_ends_at_once_stops_or_goes_on() -> Result<()> {
    for (setting, expected) in [(None, "draft"), (Some("stop"), "draft"), (Some("go_on"), "paid")] {
        let sim = Sim::start().await?;
        sim.freeze().await?;
        if let Some(setting) = setting {
            sim.admin("/settings", json!({ "drafts_after_cancel": setting })).await?;
        }
        let (customer, subscription, end) = subscribed(&sim).await?;
        sim.admin("/clock", json!({ "to": end })).await?;
        let draft = newest_invoice(&sim, &customer).await?;
        assert_eq!((&draft["status"], &draft["auto_advance"]), (&json!("draft"), &json!(true)));
        assert_eq!(sim.delete(&format!("/v1/subscriptions/{subscription}")).send().await?.status(), 200);
        sim.advance(2 * HOUR).await?;
        let left = newest_invoice(&sim, &customer).await?;
        assert_eq!((&left["id"], &left["status"]), (&draft["id"], &json!(expected)));
        assert_eq!(left["auto_advance"], json!(false), "{expected}");
        sim.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_first_payment_that_fails_leaves_an_incomplete_subscription_that_expires() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    sim.admin(&format!("/customers/{customer}"), json!({ "payment_fails": true })).await?;
    let price = sim.price().await?;
    let form = [("customer", customer.as_str()), ("items[0][price]", price.as_str())];
    let refuse = [form[0], form[1], ("payment_behavior", "error_if_incomplete")];
    let (refused, _) = read(sim.post("/v1/subscriptions", &refuse).send().await?).await?;
    assert_eq!(refused, 402);
    assert_eq!(ids(&sim.read("/v1/subscriptions?status=all").await?)?.len(), 0);

    let first = id(&sim.create("/v1/subscriptions", &form).await?)?;
    let second = id(&sim.create("/v1/subscriptions", &form).await?)?;
    assert_eq!(status(&sim, &first).await?, "incomplete");
    sim.admin(&format!("/customers/{customer}"), json!({ "payment_fails": false })).await?;
    let invoice = sim.read(&format!("/v1/subscriptions/{first}?expand[]=latest_invoice")).await?;
    let invoice = id(&invoice["latest_invoice"])?;
    sim.create(&format!("/v1/invoices/{invoice}/pay"), &[]).await?;
    assert_eq!(status(&sim, &first).await?, "active");
    sim.advance(23 * HOUR).await?;
    assert_eq!(status(&sim, &second).await?, "incomplete_expired");
    assert_eq!(newest_invoice(&sim, &customer).await?["status"], "void");
    assert_eq!(status(&sim, &first).await?, "active");
    sim.stop().await
}

#[tokio::test]
async fn a_trial_costs_nothing_and_then_the_cycle_begins() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    let price = sim.price().await?;
    let form =
        [("customer", customer.as_str()), ("items[0][price]", price.as_str()), ("trial_period_days", "14")];
    let created = sim.create("/v1/subscriptions", &form).await?;
    let subscription = id(&created)?;
    assert_eq!(created["status"], "trialing");
    let first = newest_invoice(&sim, &customer).await?;
    assert_eq!((&first["status"], &first["total"]), (&json!("paid"), &json!(0)));
    let end = created["trial_end"].as_i64().context("trial_end")?;
    assert_eq!(created["billing_cycle_anchor"], end);
    sim.admin("/clock", json!({ "to": end })).await?;
    assert_eq!(status(&sim, &subscription).await?, "active");
    let draft = newest_invoice(&sim, &customer).await?;
    assert_eq!((&draft["status"], &draft["total"]), (&json!("draft"), &json!(4900)));
    sim.stop().await
}

#[tokio::test]
async fn at_its_planned_end_what_is_pending_is_invoiced() -> Result<()> {
    let sim = Sim::start().await?;
    let (customer, subscription, end) = subscribed(&sim).await?;
    sim.item(&customer, "30", &[("subscription", &subscription)]).await?;
    let path = format!("/v1/subscriptions/{subscription}");
    sim.create(&path, &[("cancel_at_period_end", "true")]).await?;
    sim.admin("/clock", json!({ "to": end })).await?;
    let ended = sim.read(&path).await?;
    assert_eq!((&ended["status"], &ended["ended_at"]), (&json!("canceled"), &json!(end)));
    assert_eq!(ended["cancel_at_period_end"], true);
    assert_eq!(amounts(&newest_invoice(&sim, &customer).await?)?, [30]);
    ensure!(event_types(&sim).await?.contains(&"customer.subscription.deleted".to_owned()));
    // Nothing comes after it.
    sim.advance(40 * 86_400).await?;
    let invoices = sim.read(&format!("/v1/invoices?customer={customer}")).await?;
    assert_eq!(ids(&invoices)?.len(), 2);
    sim.stop().await
}

#[tokio::test]
async fn another_price_counts_from_the_next_period_without_prorations() -> Result<()> {
    let sim = Sim::start().await?;
    let (customer, subscription, end) = subscribed(&sim).await?;
    let path = format!("/v1/subscriptions/{subscription}");
    let item = id(&sim.read(&path).await?["items"]["data"][0])?;
    let form = [
        ("currency", "usd"),
        ("unit_amount", "9900"),
        ("recurring[interval]", "month"),
        ("product_data[name]", "Max"),
    ];
    let price = id(&sim.create("/v1/prices", &form).await?)?;
    let change = [("items[0][id]", item.as_str()), ("items[0][price]", price.as_str())];
    let unprorated = [change[0], change[1], ("proration_behavior", "none")];
    let changed = sim.create(&path, &unprorated).await?;
    assert_eq!(changed["items"]["data"][0]["price"]["id"], price);
    assert_eq!(changed["items"]["data"][0]["id"], item);
    let event = sim.read("/v1/events?type=customer.subscription.updated&limit=1").await?;
    ensure!(event["data"][0]["data"]["previous_attributes"]["items"].is_object(), "{event}");
    sim.admin("/clock", json!({ "to": end })).await?;
    assert_eq!(newest_invoice(&sim, &customer).await?["total"], 9900);

    // Or from now on, with a period that begins now.
    let anew = [("billing_cycle_anchor", "now"), ("proration_behavior", "none")];
    sim.advance(86_400).await?;
    let now = sim.read("/_sim/clock").await?["now"].as_i64().context("now")?;
    let changed = sim.create(&path, &anew).await?;
    let start = changed["billing_cycle_anchor"].as_i64().context("an anchor")?;
    ensure!((now..now + 60).contains(&start), "{start} {now}");
    let invoice = newest_invoice(&sim, &customer).await?;
    assert_eq!(
        (&invoice["billing_reason"], &invoice["status"]),
        (&json!("subscription_update"), &json!("paid"))
    );
    sim.stop().await
}

#[tokio::test]
async fn a_paused_collection_keeps_drafts_and_a_paused_subscription_makes_none() -> Result<()> {
    let sim = Sim::start().await?;
    let (customer, subscription, end) = subscribed(&sim).await?;
    let path = format!("/v1/subscriptions/{subscription}");
    sim.create(&path, &[("pause_collection[behavior]", "keep_as_draft")]).await?;
    sim.admin("/clock", json!({ "to": end + 2 * 86_400 })).await?;
    let kept = newest_invoice(&sim, &customer).await?;
    assert_eq!((&kept["status"], &kept["auto_advance"]), (&json!("draft"), &json!(false)));
    assert_eq!(sim.create(&path, &[("pause_collection", "")]).await?["pause_collection"], Value::Null);

    sim.admin(&format!("/subscriptions/{subscription}"), json!({ "status": "paused" })).await?;
    let count = async || anyhow::Ok(ids(&sim.read("/v1/invoices?limit=100").await?)?.len());
    let before = count().await?;
    sim.advance(90 * 86_400).await?;
    assert_eq!(count().await?, before);
    let resumed = sim.create(&format!("{path}/resume"), &[("billing_cycle_anchor", "now")]).await?;
    assert_eq!(resumed["status"], "active");
    assert_eq!(count().await?, before + 1);
    ensure!(event_types(&sim).await?.contains(&"customer.subscription.resumed".to_owned()));
    sim.stop().await
}

#[tokio::test]
async fn a_negative_total_is_a_credit_for_the_next_invoice() -> Result<()> {
    let sim = Sim::start().await?;
    let (customer, _, end) = subscribed(&sim).await?;
    sim.item(&customer, "-6000", &[]).await?;
    sim.admin("/clock", json!({ "to": end + 3600 })).await?;
    let first = newest_invoice(&sim, &customer).await?;
    assert_eq!((&first["status"], &first["amount_due"]), (&json!("paid"), &json!(0)));
    assert_eq!((&first["total"], &first["ending_balance"]), (&json!(-1100), &json!(-1100)));
    assert_eq!(sim.read(&format!("/v1/customers/{customer}")).await?["balance"], -1100);
    sim.advance(32 * 86_400).await?;
    let second = newest_invoice(&sim, &customer).await?;
    assert_eq!((&second["starting_balance"], &second["amount_paid"]), (&json!(-1100), &json!(3800)));
    sim.stop().await
}

#[tokio::test]
async fn a_draft_can_be_deleted_only_if_it_was_made_by_request() -> Result<()> {
    let sim = Sim::start().await?;
    let (customer, _, end) = subscribed(&sim).await?;
    sim.item(&customer, "5", &[]).await?;
    let form = [("customer", customer.as_str()), ("pending_invoice_items_behavior", "include")];
    let draft = id(&sim.create("/v1/invoices", &form).await?)?;
    let deleted = sim.delete(&format!("/v1/invoices/{draft}")).send().await?;
    assert_eq!(read(deleted).await?.1["deleted"], true);
    let pending = sim.read(&format!("/v1/invoiceitems?customer={customer}&pending=true")).await?;
    assert_eq!(ids(&pending)?.len(), 1);
    sim.admin("/clock", json!({ "to": end })).await?;
    let cycle = id(&newest_invoice(&sim, &customer).await?)?;
    assert_eq!(sim.delete(&format!("/v1/invoices/{cycle}")).send().await?.status(), 400);
    sim.stop().await
}

#[tokio::test]
async fn invoices_of_a_subscription_are_limited_to_ten_a_minute() -> Result<()> {
    let sim = Sim::start().await?;
    // However long the ten take.
    sim.freeze().await?;
    let (customer, subscription, _) = subscribed(&sim).await?;
    let form = [
        ("customer", customer.as_str()),
        ("subscription", subscription.as_str()),
        ("pending_invoice_items_behavior", "exclude"),
    ];
    // One was made when it began.
    for _ in 0..9 {
        sim.create("/v1/invoices", &form).await?;
    }
    assert_eq!(sim.post("/v1/invoices", &form).send().await?.status(), 429);
    sim.advance(61).await?;
    sim.create("/v1/invoices", &form).await?;
    sim.stop().await
}

/// Halfway through a period: half of the old price back, half of the new one, on the next invoice or at once.
#[tokio::test]
async fn what_is_left_of_a_period_is_prorated() -> Result<()> {
    for behavior in [None, Some("create_prorations"), Some("always_invoice")] {
        let sim = Sim::start().await?;
        let (customer, subscription, end) = subscribed(&sim).await?;
        let path = format!("/v1/subscriptions/{subscription}");
        let before = sim.read(&path).await?;
        let item = id(&before["items"]["data"][0])?;
        let start = before["items"]["data"][0]["current_period_start"].as_i64().context("a start")?;
        let form = [
            ("currency", "usd"),
            ("unit_amount", "9900"),
            ("recurring[interval]", "month"),
            ("product_data[name]", "Max"),
        ];
        let price = id(&sim.create("/v1/prices", &form).await?)?;
        sim.admin("/clock", json!({ "to": (start + end) / 2 })).await?;
        let mut change = vec![("items[0][id]", item.as_str()), ("items[0][price]", price.as_str())];
        change.extend(behavior.map(|behavior| ("proration_behavior", behavior)));
        sim.create(&path, &change).await?;
        let items = sim.read(&format!("/v1/invoiceitems?customer={customer}")).await?;
        let items = items["data"].as_array().context("items")?;
        let amounts: Vec<_> = items.iter().filter_map(|item| item["amount"].as_i64()).collect();
        // The newest first; a clock may go on by a second or two between the two requests.
        ensure!(amounts.len() == 2 && (4948..=4950).contains(&amounts[0]), "{amounts:?}");
        ensure!((-2450..=-2448).contains(&amounts[1]), "{amounts:?}");
        for item in items {
            assert_eq!((&item["proration"], &item["discountable"]), (&json!(true), &json!(false)));
            assert_eq!(item["period"]["end"], end);
            assert_eq!(item["invoice"].is_null(), behavior != Some("always_invoice"));
        }
        let told = items[1]["description"].as_str().context("a description")?;
        ensure!(told.starts_with("Unused time on"), "{told}");
        if behavior == Some("always_invoice") {
            let invoice = newest_invoice(&sim, &customer).await?;
            assert_eq!(invoice["billing_reason"], "subscription_update");
            assert_eq!(
                (&invoice["status"], &invoice["total"]),
                (&json!("paid"), &json!(amounts[0] + amounts[1]))
            );
            sim.admin("/clock", json!({ "to": end })).await?;
            assert_eq!(newest_invoice(&sim, &customer).await?["total"], 9900);
        } else {
            sim.admin("/clock", json!({ "to": end })).await?;
            assert_eq!(newest_invoice(&sim, &customer).await?["total"], 9900 + amounts[0] + amounts[1]);
        }
        sim.stop().await?;
    }
    Ok(())
}
