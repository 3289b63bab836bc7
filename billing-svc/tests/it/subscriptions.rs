//! What every implementation of the port must do: the one in memory, and Stripe's over HTTP.

use std::{collections::HashSet, num::NonZeroU32, time::Duration};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use hyper::Method;
use nexus_billing::{
    config::StripeArgs,
    domain::stripe_objects::{Customer, Invoice, Price, Subscription},
    payments::{Advice, books::Listing, stripe::Stripe, subscriptions::Subscriptions},
};
use nexus_core::plan::SubscriptionStatus;
use serde_json::json;

use crate::{
    memory_subscriptions::MemorySubscriptions,
    support::{STRIPE_KEY, Sim},
};

/// What a test had made.
struct Made {
    customer: String,
    deleted_customer: String,
    other_customer: String,
    price: String,
    subscription: String,
    ended: String,
    draft: String,
    around: DateTime<Utc>,
}

async fn contract(port: &dyn Subscriptions, made: &Made) -> Result<()> {
    let near = |at: DateTime<Utc>| (at - made.around).abs() < TimeDelta::minutes(5);
    let found = port.subscription(&made.subscription).await.ok().flatten().context("a subscription")?;
    ensure!(near(found.anchor) && near(found.created), "{found:?}");
    let expected = Subscription {
        id: made.subscription.clone(),
        customer: made.customer.clone(),
        status: SubscriptionStatus::Active,
        prices: vec![Price {
            id: made.price.clone(),
            lookup_key: Some("pro".to_owned()),
            item_id: found.prices.first().context("a price")?.item_id.clone(),
        }],
        eco_id: Some("eco_a".to_owned()),
        ended: None,
        cancel_at: None,
        ends_by_date: false,
        ..found
    };
    assert_eq!(port.subscription(&made.subscription).await, Ok(Some(expected)));
    let ended = port.subscription(&made.ended).await.ok().flatten().context("one that has ended")?;
    assert_eq!((ended.status, ended.eco_id), (SubscriptionStatus::Canceled, None));
    ensure!(ended.ended.is_some_and(near), "{:?}", ended.ended);

    // Listed as they are read one by one, those that have ended too.
    let listed =
        port.subscriptions(&Listing::default()).await.map_err(|doubt| anyhow::anyhow!(doubt.message))?;
    assert_eq!(listed.next, None);
    let ids: HashSet<&str> = listed.entries.iter().map(|found| found.id.as_str()).collect();
    assert_eq!(ids, HashSet::from([made.subscription.as_str(), made.ended.as_str()]));
    for found in &listed.entries {
        assert_eq!(port.subscription(&found.id).await.ok().flatten().as_ref(), Some(found));
    }
    let of_other = Listing { customer: Some(made.other_customer.clone()), ..Listing::default() };
    ensure!(port.subscriptions(&of_other).await.is_ok_and(|page| page.entries.is_empty()));
    let since = |from| Listing { created_from: Some(from), ..Listing::default() };
    let changes = port.changes(&since(made.around - TimeDelta::minutes(5))).await;
    let changed: HashSet<String> =
        changes.map_err(|d| anyhow::anyhow!(d.message))?.entries.into_iter().collect();
    assert_eq!(changed, HashSet::from([made.subscription.clone(), made.ended.clone()]));
    let none = port.changes(&since(made.around + TimeDelta::minutes(5))).await;
    ensure!(none.is_ok_and(|page| page.entries.is_empty()));

    let customer = Customer { eco_id: Some("eco_a".to_owned()), currency: Some("usd".to_owned()) };
    assert_eq!(port.customer(&made.customer).await, Ok(Some(customer)));
    assert_eq!(port.customer(&made.deleted_customer).await, Ok(None));

    let draft = port.invoice(&made.draft).await.ok().flatten().context("an invoice")?;
    ensure!(near(draft.period_end), "{draft:?}");
    let expected = Invoice {
        id: made.draft.clone(),
        subscription: Some(made.subscription.clone()),
        is_draft: true,
        goes_on: false,
        is_of_cycle: false,
        ..draft
    };
    assert_eq!(port.invoice(&made.draft).await, Ok(Some(expected)));

    assert_eq!(port.subscription("sub_nobody").await, Ok(None));
    assert_eq!(port.invoice("in_nobody").await, Ok(None));
    assert_eq!(port.customer("cus_nobody").await, Ok(None));
    Ok(())
}

fn args(base: &str) -> StripeArgs {
    StripeArgs {
        stripe_secret_key: STRIPE_KEY.into(),
        stripe_api_base: base.to_owned(),
        stripe_rate_per_second: NonZeroU32::MIN,
        stripe_timeout: Duration::from_secs(20),
        stripe_proration: nexus_billing::config::Proration::None,
    }
}

#[tokio::test]
async fn in_memory() -> Result<()> {
    let (memory, around) = (MemorySubscriptions::default(), Utc::now());
    let made = Made {
        customer: "cus_1".to_owned(),
        deleted_customer: "cus_2".to_owned(),
        other_customer: "cus_3".to_owned(),
        price: "price_1".to_owned(),
        subscription: "sub_1".to_owned(),
        ended: "sub_2".to_owned(),
        draft: "in_1".to_owned(),
        around,
    };
    let subscription = Subscription {
        id: made.subscription.clone(),
        customer: made.customer.clone(),
        status: SubscriptionStatus::Active,
        prices: vec![Price {
            id: made.price.clone(),
            lookup_key: Some("pro".to_owned()),
            item_id: "si_1".to_owned(),
        }],
        cancel_at: None,
        ends_by_date: false,
        anchor: around,
        created: around,
        ended: None,
        eco_id: Some("eco_a".to_owned()),
    };
    let ended = Subscription {
        id: made.ended.clone(),
        status: SubscriptionStatus::Canceled,
        ended: Some(around),
        eco_id: None,
        ..subscription.clone()
    };
    let invoice = Invoice {
        id: made.draft.clone(),
        subscription: Some(made.subscription.clone()),
        is_draft: true,
        goes_on: false,
        is_of_cycle: false,
        period_end: around,
    };
    let customer = Customer { eco_id: Some("eco_a".to_owned()), currency: Some("usd".to_owned()) };
    {
        let mut state = memory.state();
        state.subscriptions.extend([subscription, ended].map(|s| (s.id.clone(), s)));
        state.changes = [&made.subscription, &made.ended].map(|id| (around, id.clone())).into();
        state.invoices.insert(invoice.id.clone(), invoice);
        state.customers.insert(made.customer.clone(), customer);
    }
    contract(&memory, &made).await
}

#[tokio::test]
async fn at_stripe() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.create("customers", "email=a%40example.com&metadata[eco_id]=eco_a").await?;
    let price = sim
        .create(
            "prices",
            "currency=usd&unit_amount=4900&recurring[interval]=month&product_data[name]=Pro&lookup_key=pro",
        )
        .await?;
    let subscribe = format!("customer={customer}&items[0][price]={price}");
    let subscription = sim.create("subscriptions", &format!("{subscribe}&metadata[eco_id]=eco_a")).await?;
    let ended = sim.create("subscriptions", &subscribe).await?;
    let form = "application/x-www-form-urlencoded";
    sim.call(Method::DELETE, &format!("/v1/subscriptions/{ended}"), form, String::new()).await?;
    let deleted_customer = sim.customer().await?;
    sim.call(Method::DELETE, &format!("/v1/customers/{deleted_customer}"), form, String::new()).await?;
    let other_customer = sim.customer().await?;
    let item = format!("customer={customer}&subscription={subscription}&amount=500&currency=usd");
    sim.create("invoiceitems", &item).await?;
    let draft = sim.create("invoices", &format!("customer={customer}&subscription={subscription}")).await?;
    let around = Utc::now();
    let made = Made { customer, deleted_customer, other_customer, price, subscription, ended, draft, around };
    let stripe = Stripe::new(&args(&sim.base))?;
    contract(&stripe, &made).await?;

    // What cannot be read now is not taken for missing.
    for status in [404, 429, 500] {
        let fault =
            json!({ "method": "GET", "outcome": { "kind": "error", "status": status, "retry_after": 7 } });
        sim.admin("/faults", fault).await?;
        let doubt = stripe.subscription(&made.subscription).await.err().context("a doubt")?;
        assert_eq!(doubt.retry_after, Some(Duration::from_secs(7)), "{status}");
    }
    let away = Stripe::new(&args("http://127.0.0.1:1"))?;
    let doubt = away.subscription("sub_1").await.err().context("a doubt")?;
    assert_eq!(doubt.advice, Advice::Again);
    Ok(())
}
