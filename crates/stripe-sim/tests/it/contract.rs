//! async-stripe reads every answer.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail, ensure};
use futures::TryStreamExt as _;
use serde_json::json;
use stripe::{IdempotencyKey, RequestStrategy, StripeRequest as _};
use stripe_billing::invoice::{
    CreateInvoice, CreateInvoicePendingInvoiceItemsBehavior, FinalizeInvoiceInvoice, ListInvoice, PayInvoice,
    RetrieveInvoice, UpdateInvoice, VoidInvoiceInvoice,
};
use stripe_billing::invoice_item::{
    CreateInvoiceItem, DeleteInvoiceItem, ListInvoiceItem, RetrieveInvoiceItem, UpdateInvoiceItem,
};
use stripe_billing::subscription::{
    CancelSubscription, CreateSubscription, CreateSubscriptionItems, ListSubscription, RetrieveSubscription,
    UpdateSubscription,
};
use stripe_client_core::{RequestBuilder, StripeMethod};
use stripe_core::customer::{
    CreateCustomer, DeleteCustomer, ListCustomer, RetrieveCustomer, RetrieveCustomerReturned, UpdateCustomer,
};
use stripe_shared::{Customer, InvoiceLineItem, InvoiceStatus, Price, Product, SubscriptionStatus};
use stripe_types::{Currency, Expandable, List};

use crate::contract_errors::stripe_error;
use crate::harness::Sim;

fn metadata(entries: &[(&str, &str)]) -> HashMap<String, String> {
    entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

async fn customer(client: &stripe::Client) -> Result<Customer> {
    Ok(CreateCustomer::new().email("a@example.com").send(client).await?)
}

async fn price(client: &stripe::Client) -> Result<Price> {
    let form = json!({
        "currency": "usd",
        "unit_amount": 4900,
        "recurring": { "interval": "month" },
        "product_data": { "name": "Pro" },
    });
    let request = RequestBuilder::new(StripeMethod::Post, "/prices").form(&form);
    Ok(request.customize::<Price>().send(client).await?)
}

#[tokio::test]
async fn customers() -> Result<()> {
    let sim = Sim::start().await?;
    let client = sim.stripe()?;

    let created = CreateCustomer::new()
        .email("a@example.com")
        .name("Ada")
        .metadata(metadata(&[("eco_id", "eco_1"), ("plan", "pro")]))
        .send(&client)
        .await?;
    ensure!(created.id.as_str().starts_with("cus_"));
    assert_eq!(created.email.as_deref(), Some("a@example.com"));
    assert_eq!(created.metadata, Some(metadata(&[("eco_id", "eco_1"), ("plan", "pro")])));
    ensure!(!created.livemode);

    let updated = UpdateCustomer::new(created.id.clone())
        .metadata(metadata(&[("plan", "")]))
        .description("first")
        .send(&client)
        .await?;
    assert_eq!(updated.metadata, Some(metadata(&[("eco_id", "eco_1")])));
    assert_eq!(updated.description.as_deref(), Some("first"));

    let listed = ListCustomer::new().email("a@example.com").send(&client).await?;
    assert_eq!(listed.data.iter().map(|it| &it.id).collect::<Vec<_>>(), [&created.id]);

    let deleted = DeleteCustomer::new(created.id.clone()).send(&client).await?;
    assert_eq!(deleted.id, created.id);
    match RetrieveCustomer::new(created.id.clone()).send(&client).await? {
        RetrieveCustomerReturned::DeletedCustomer(deleted) => assert_eq!(deleted.id, created.id),
        RetrieveCustomerReturned::Customer(_) => bail!("the customer should be deleted"),
    }
    sim.stop().await
}

#[tokio::test]
async fn products_and_prices() -> Result<()> {
    let sim = Sim::start().await?;
    let client = sim.stripe()?;
    let price = price(&client).await?;
    assert_eq!((price.unit_amount, price.currency.clone()), (Some(4900), Currency::USD));
    let product = price.product.id().clone();

    let path = format!("/products/{product}");
    let product: Product = RequestBuilder::new(StripeMethod::Get, path).customize().send(&client).await?;
    assert_eq!(product.name, "Pro");

    let path = format!("/prices/{}", price.id);
    let fetched: Price = RequestBuilder::new(StripeMethod::Get, path).customize().send(&client).await?;
    assert_eq!(fetched.id, price.id);

    let prices: List<Price> = RequestBuilder::new(StripeMethod::Get, "/prices")
        .query(&json!({ "product": product.id, "active": true }))
        .customize()
        .send(&client)
        .await?;
    assert_eq!(prices.data.len(), 1);
    let products: List<Product> =
        RequestBuilder::new(StripeMethod::Get, "/products").customize().send(&client).await?;
    assert_eq!(products.data.len(), 1);
    sim.stop().await
}

#[tokio::test]
async fn subscriptions() -> Result<()> {
    let sim = Sim::start().await?;
    let client = sim.stripe()?;
    let customer = customer(&client).await?;
    let price = price(&client).await?;
    let mut item = CreateSubscriptionItems::new();
    item.price = Some(price.id.to_string());
    let created = CreateSubscription::new()
        .customer(customer.id.to_string())
        .items(vec![item])
        .metadata(metadata(&[("eco_id", "eco_1")]))
        .send(&client)
        .await?;
    assert_eq!(created.status, SubscriptionStatus::Active);
    assert_eq!(created.customer.id(), &customer.id);
    let item = created.items.data.first().context("an item")?;
    assert_eq!((&item.price.id, item.quantity), (&price.id, Some(1)));
    assert_eq!(item.current_period_start, created.created);
    ensure!(item.current_period_end > item.current_period_start);

    let updated =
        UpdateSubscription::new(created.id.clone()).cancel_at_period_end(true).send(&client).await?;
    assert_eq!(updated.cancel_at, Some(item.current_period_end));

    let expanded = RetrieveSubscription::new(created.id.clone())
        .expand(vec!["customer".to_owned()])
        .send(&client)
        .await?;
    match expanded.customer {
        Expandable::Object(it) => assert_eq!(it.id, customer.id),
        Expandable::Id(_) => bail!("the customer should be expanded"),
    }

    let listed = ListSubscription::new().customer(customer.id.to_string()).send(&client).await?;
    assert_eq!(listed.data.len(), 1);

    let canceled = CancelSubscription::new(created.id).send(&client).await?;
    assert_eq!(canceled.status, SubscriptionStatus::Canceled);
    ensure!(canceled.ended_at.is_some());
    sim.stop().await
}

#[tokio::test]
async fn invoice_items() -> Result<()> {
    let sim = Sim::start().await?;
    let client = sim.stripe()?;
    let customer = customer(&client).await?;
    let customer_id = customer.id.to_string();
    let subscription = sim.subscription(&customer_id).await?;
    let subscription = subscription["id"].as_str().context("id")?;

    let created = CreateInvoiceItem::new()
        .customer(customer_id.as_str())
        .subscription(subscription)
        .amount(500)
        .currency(Currency::USD)
        .description("API overage: 5,000 calls beyond 100k limit")
        .metadata(metadata(&[("charge_id", "c-1"), ("overage_calls", "5000")]))
        .customize()
        .request_strategy(RequestStrategy::Idempotent(IdempotencyKey::new("c-1-1")?))
        .send(&client)
        .await?;
    ensure!(created.id.as_str().starts_with("ii_"));
    assert_eq!((created.amount, created.quantity), (500, 1));
    assert_eq!(created.currency, Currency::USD);
    ensure!(created.invoice.is_none());
    let parent = created.parent.context("a parent")?.subscription_details.context("details")?;
    assert_eq!(parent.subscription, subscription);
    let pricing = created.pricing.context("pricing")?;
    assert_eq!(pricing.unit_amount_decimal.as_deref(), Some("500"));

    let credit = CreateInvoiceItem::new()
        .customer(customer_id.as_str())
        .currency(Currency::USD)
        .unit_amount_decimal("-0.1")
        .quantity(5_000u64)
        .send(&client)
        .await?;
    assert_eq!((credit.amount, credit.quantity), (-500, 5_000));

    let fetched = RetrieveInvoiceItem::new(created.id.clone()).send(&client).await?;
    assert_eq!(fetched.metadata, Some(metadata(&[("charge_id", "c-1"), ("overage_calls", "5000")])));

    let updated = UpdateInvoiceItem::new(created.id.clone()).amount(700).send(&client).await?;
    assert_eq!((updated.id.as_str(), updated.amount), (created.id.as_str(), 700));

    let request = ListInvoiceItem::new().customer(customer_id).pending(true).limit(1);
    let all: Vec<_> = request.paginate().stream(&client).try_collect().await?;
    assert_eq!(all.iter().map(|it| it.amount).collect::<Vec<_>>(), [-500, 700]);

    let deleted = DeleteInvoiceItem::new(credit.id.clone()).send(&client).await?;
    assert_eq!(deleted.id, credit.id);
    let (status, _) = stripe_error(RetrieveInvoiceItem::new(credit.id).send(&client).await)?;
    assert_eq!(status, 404);
    sim.stop().await
}

#[tokio::test]
async fn invoices() -> Result<()> {
    let sim = Sim::start().await?;
    let client = sim.stripe()?;
    let customer = customer(&client).await?;
    sim.item(customer.id.as_str(), "500", &[]).await?;

    let draft = CreateInvoice::new()
        .customer(customer.id.to_string())
        .pending_invoice_items_behavior(CreateInvoicePendingInvoiceItemsBehavior::Include)
        .send(&client)
        .await?;
    let invoice = draft.id.clone().context("an id")?;
    assert_eq!((draft.status, draft.total), (Some(InvoiceStatus::Draft), 500));
    let line = draft.lines.data.first().context("a line")?;
    assert_eq!((line.amount, line.invoice.as_deref()), (500, Some(invoice.as_str())));

    let updated = UpdateInvoice::new(invoice.clone()).description("June").send(&client).await?;
    assert_eq!(updated.description.as_deref(), Some("June"));

    let open = FinalizeInvoiceInvoice::new(invoice.clone()).send(&client).await?;
    assert_eq!((open.status, open.amount_remaining), (Some(InvoiceStatus::Open), 500));
    ensure!(open.number.is_some());

    let paid = PayInvoice::new(invoice.clone()).send(&client).await?;
    assert_eq!((paid.status, paid.amount_remaining), (Some(InvoiceStatus::Paid), 0));

    let fetched = RetrieveInvoice::new(invoice.clone()).send(&client).await?;
    ensure!(fetched.status_transitions.paid_at.is_some());
    let listed = ListInvoice::new().status(InvoiceStatus::Paid).send(&client).await?;
    assert_eq!(listed.data.len(), 1);
    let path = format!("/invoices/{invoice}/lines");
    let lines: List<InvoiceLineItem> =
        RequestBuilder::new(StripeMethod::Get, path).customize().send(&client).await?;
    assert_eq!(lines.data.len(), 1);

    let second = sim.create("/v1/invoices", &[("customer", customer.id.as_str())]).await?;
    let second = second["id"].as_str().context("an id")?;
    sim.item(customer.id.as_str(), "100", &[("invoice", second)]).await?;
    FinalizeInvoiceInvoice::new(second).send(&client).await?;
    let void = VoidInvoiceInvoice::new(second).send(&client).await?;
    assert_eq!(void.status, Some(InvoiceStatus::Void));
    sim.stop().await
}
