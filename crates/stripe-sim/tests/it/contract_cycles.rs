//! async-stripe reads what comes by itself: invoices of periods, events, sessions, test clocks.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use stripe_billing::invoice::{DeleteInvoice, ListInvoice, MarkUncollectibleInvoice, RetrieveInvoice};
use stripe_billing::subscription::{
    CreateSubscription, CreateSubscriptionItems, ResumeSubscription, RetrieveSubscription,
    UpdateSubscription, UpdateSubscriptionItems, UpdateSubscriptionProrationBehavior,
};
use stripe_client_core::{RequestBuilder, StripeMethod};
use stripe_shared::{
    CheckoutSession, CheckoutSessionPaymentStatus, CheckoutSessionStatus, Event, EventType,
    InvoiceBillingReason, InvoiceStatus, SubscriptionStatus, TestHelpersTestClock,
};
use stripe_types::List;

use crate::harness::{Sim, id};

fn get(path: String) -> RequestBuilder {
    RequestBuilder::new(StripeMethod::Get, path)
}

#[tokio::test]
async fn invoices_of_a_cycle() -> Result<()> {
    let sim = Sim::start().await?;
    let client = sim.stripe()?;
    let customer = sim.customer().await?;
    let mut item = CreateSubscriptionItems::new();
    item.price = Some(sim.price().await?);
    let created =
        CreateSubscription::new().customer(customer.as_str()).items(vec![item]).send(&client).await?;
    assert_eq!(created.status, SubscriptionStatus::Active);
    ensure!(created.latest_invoice.is_some());
    let item = created.items.data.first().context("an item")?;
    sim.item(&customer, "100", &[("subscription", created.id.as_str())]).await?;
    sim.admin("/clock", json!({ "to": item.current_period_end })).await?;

    let drafts = ListInvoice::new().status(InvoiceStatus::Draft).customer(customer.as_str());
    let drafts = drafts.send(&client).await?;
    let draft = drafts.data.first().context("a draft")?;
    assert_eq!(draft.billing_reason, Some(InvoiceBillingReason::SubscriptionCycle));
    assert_eq!((draft.total, draft.lines.data.len()), (5000, 2));
    let line = draft.lines.data.get(1).and_then(|line| line.parent.as_ref()).context("a line")?;
    ensure!(line.subscription_item_details.is_some());
    let parent = draft.parent.as_ref().and_then(|parent| parent.subscription_details.as_ref());
    assert_eq!(parent.context("a parent")?.subscription.id(), &created.id);
    ensure!(draft.automatically_finalizes_at.is_some());
    sim.advance(3600).await?;
    let invoice = draft.id.clone().context("an id")?;
    let paid = RetrieveInvoice::new(invoice).send(&client).await?;
    assert_eq!((paid.status, paid.amount_paid), (Some(InvoiceStatus::Paid), 5000));

    let mut change = UpdateSubscriptionItems::new();
    change.id = Some(item.id.to_string());
    change.quantity = Some(2);
    let changed = UpdateSubscription::new(created.id.clone())
        .items(vec![change])
        .proration_behavior(UpdateSubscriptionProrationBehavior::None)
        .send(&client)
        .await?;
    assert_eq!(changed.items.data.first().and_then(|item| item.quantity), Some(2));

    for (status, read) in [
        ("past_due", SubscriptionStatus::PastDue),
        ("unpaid", SubscriptionStatus::Unpaid),
        ("trialing", SubscriptionStatus::Trialing),
        ("paused", SubscriptionStatus::Paused),
    ] {
        sim.admin(&format!("/subscriptions/{}", created.id), json!({ "status": status })).await?;
        let now = RetrieveSubscription::new(created.id.clone()).send(&client).await?;
        assert_eq!(now.status, read);
    }
    let resumed = ResumeSubscription::new(created.id.clone()).send(&client).await?;
    assert_eq!(resumed.status, SubscriptionStatus::Active);

    let draft = id(&sim.create("/v1/invoices", &[("customer", &customer)]).await?)?;
    let deleted = DeleteInvoice::new(draft).send(&client).await?;
    ensure!(deleted.id.as_str().starts_with("in_"));
    let open = id(&sim.create("/v1/invoices", &[("customer", &customer)]).await?)?;
    sim.item(&customer, "100", &[("invoice", &open)]).await?;
    sim.create(&format!("/v1/invoices/{open}/finalize"), &[]).await?;
    let lost = MarkUncollectibleInvoice::new(open).send(&client).await?;
    assert_eq!(lost.status, Some(InvoiceStatus::Uncollectible));
    sim.stop().await
}

#[tokio::test]
async fn events() -> Result<()> {
    let sim = Sim::start().await?;
    let client = sim.stripe()?;
    let customer = sim.customer().await?;
    sim.subscription(&customer).await?;
    let events: List<Event> =
        get("/events".to_owned()).query(&json!({ "limit": 100 })).customize().send(&client).await?;
    let types: Vec<&EventType> = events.data.iter().rev().map(|event| &event.type_).collect();
    assert_eq!(types.first(), Some(&&EventType::CustomerCreated));
    ensure!(types.contains(&&EventType::InvoicePaid));
    ensure!(!types.iter().any(|it| matches!(it, EventType::Unknown(_))), "{types:?}");
    let first = events.data.last().context("an event")?;
    let event: Event = get(format!("/events/{}", first.id)).customize().send(&client).await?;
    assert_eq!((event.created, event.pending_webhooks), (first.created, 0));
    sim.stop().await
}

#[tokio::test]
async fn checkout_sessions() -> Result<()> {
    let sim = Sim::start().await?;
    let client = sim.stripe()?;
    let form = json!({
        "mode": "subscription",
        "success_url": "http://localhost/done",
        "line_items": [{ "price": sim.price().await?, "quantity": 1 }],
        "subscription_data": { "metadata": { "eco_id": "eco_1" } },
    });
    let created: CheckoutSession = RequestBuilder::new(StripeMethod::Post, "/checkout/sessions")
        .form(&form)
        .customize()
        .send(&client)
        .await?;
    assert_eq!(created.status, Some(CheckoutSessionStatus::Open));
    sim.admin(&format!("/checkout/{}/complete", created.id), json!({ "email": "ada@example.com" })).await?;
    let path = format!("/checkout/sessions/{}", created.id);
    let completed: CheckoutSession = get(path).customize().send(&client).await?;
    assert_eq!(completed.status, Some(CheckoutSessionStatus::Complete));
    assert_eq!(completed.payment_status, CheckoutSessionPaymentStatus::Paid);
    let subscription = completed.subscription.context("a subscription")?;
    let subscription = RetrieveSubscription::new(subscription.id().clone()).send(&client).await?;
    assert_eq!(subscription.metadata.get("eco_id").map(String::as_str), Some("eco_1"));
    sim.stop().await
}

#[tokio::test]
async fn test_clocks() -> Result<()> {
    let sim = Sim::start().await?;
    let client = sim.stripe()?;
    let clock: TestHelpersTestClock = RequestBuilder::new(StripeMethod::Post, "/test_helpers/test_clocks")
        .form(&json!({ "frozen_time": 1_800_000_000 }))
        .customize()
        .send(&client)
        .await?;
    let path = format!("/test_helpers/test_clocks/{}/advance", clock.id);
    let moved: TestHelpersTestClock = RequestBuilder::new(StripeMethod::Post, path)
        .form(&json!({ "frozen_time": 1_800_086_400 }))
        .customize()
        .send(&client)
        .await?;
    assert_eq!(moved.frozen_time, 1_800_086_400);
    sim.stop().await
}
