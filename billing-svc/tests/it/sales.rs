//! What every implementation of the port must do: the one in memory, and Stripe's over HTTP.

use std::num::NonZeroU32;

use anyhow::{Context, Result, ensure};
use chrono::{TimeDelta, Utc};
use nexus_billing::{
    domain::{
        stripe_change::{NewCheckout, SubscriptionChange, is_so},
        stripe_customer::NewCustomer,
        stripe_objects::{CheckoutState, Customer, Price, Subscription},
    },
    payments::{Advice, Outcome, pace::Pace, sales::Sales, stripe::Stripe, subscriptions::Subscriptions},
};
use nexus_core::{
    id::EcoId,
    plan::{Plan, SubscriptionStatus},
};

use crate::{
    memory_subscriptions::MemorySubscriptions,
    support::{Sim, stripe_args},
};

/// What a test had made.
struct Made {
    customer: String,
    /// In US dollars, with the lookup key `pro`.
    pro: String,
    /// Likewise, `enterprise`.
    enterprise: String,
    /// Of `pro`.
    subscription: String,
}

fn done(outcome: Outcome) -> Result<String> {
    match outcome {
        Outcome::Succeeded { id, .. } => Ok(id),
        other => anyhow::bail!("{other:?}"),
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

async fn contract<P: Sales + Subscriptions>(port: &P, made: &Made) -> Result<()> {
    customers(port).await?;
    prices(port, made).await?;
    checkouts(port, made).await?;
    changes(port, made).await
}

async fn customers<P: Sales + Subscriptions>(port: &P) -> Result<()> {
    let new = NewCustomer { eco_id: EcoId::parse("eco_a")?, email: Some("a@example.com".to_owned()) };
    let id = done(port.create_customer(&new, "m1").await)?;
    assert_eq!(done(port.create_customer(&new, "m1").await)?, id);
    let found = port.customer(&id).await.ok().flatten().context("a customer")?;
    assert_eq!(found, Customer { eco_id: Some("eco_a".to_owned()), currency: None });
    let nameless = NewCustomer { email: None, ..new };
    match port.create_customer(&nameless, "m1").await {
        Outcome::Unknown(doubt) => assert_eq!(doubt.advice, Advice::Look),
        other => anyhow::bail!("{other:?}"),
    }
    assert_ne!(done(port.create_customer(&nameless, "m2").await)?, id);
    Ok(())
}

async fn prices<P: Sales>(port: &P, made: &Made) -> Result<()> {
    for (asked, currency, expected) in [
        (names(&["pro"]), "USD", Some(&made.pro)),
        (names(&["other", "enterprise", "pro"]), "USD", Some(&made.enterprise)),
        (names(&[&made.pro]), "USD", Some(&made.pro)),
        (names(&["price_nobody", "other"]), "USD", None),
        (names(&["pro"]), "EUR", None),
        (names(&[]), "USD", None),
    ] {
        assert_eq!(port.price(&asked, currency).await, Ok(expected.cloned()), "{asked:?} {currency}");
    }
    Ok(())
}

async fn checkouts<P: Sales + Subscriptions>(port: &P, made: &Made) -> Result<()> {
    let checkout = NewCheckout {
        eco_id: "eco_a".to_owned(),
        customer: Some(made.customer.clone()),
        email: Some("a@example.com".to_owned()),
        price_id: made.pro.clone(),
        success_url: "https://example.com/?s={CHECKOUT_SESSION_ID}".to_owned(),
        cancel_url: "https://example.com/".to_owned(),
        expires: Utc::now() + TimeDelta::hours(22),
    };
    // The same key: the same session. Another key: another.
    let id = done(port.open_checkout(&checkout, "c1").await)?;
    assert_eq!(done(port.open_checkout(&checkout, "c1").await)?, id);
    let nameless = NewCheckout { customer: None, ..checkout.clone() };
    let other = done(port.open_checkout(&nameless, "c2").await)?;
    assert_ne!(other, id);
    match port.open_checkout(&nameless, "c1").await {
        Outcome::Unknown(doubt) => assert_eq!(doubt.advice, Advice::Look),
        other => anyhow::bail!("{other:?}"),
    }
    let missing = NewCheckout { price_id: "price_nobody".to_owned(), ..checkout };
    ensure!(matches!(port.open_checkout(&missing, "c3").await, Outcome::FailedForGood(_)));
    let session = port.checkout_session(&id).await.ok().flatten().context("a session")?;
    assert_eq!((session.state, session.eco_id.as_deref()), (CheckoutState::Open, Some("eco_a")));
    ensure!(session.subscription.is_none() && session.url.is_some(), "{session:?}");

    assert_eq!(done(port.end_checkout(&id, "e1").await)?, id);
    let session = port.checkout_session(&id).await.ok().flatten().context("a session")?;
    assert_eq!((session.state, session.url), (CheckoutState::Expired, None));
    ensure!(matches!(port.end_checkout(&id, "e2").await, Outcome::FailedForGood(_)));
    assert_eq!(port.checkout_session("cs_nobody").await, Ok(None));

    // They are found again: by whom they were opened, and when.
    let pace = Pace::new(NonZeroU32::MAX);
    let (day, now) = (TimeDelta::days(1), Utc::now());
    for (customer, opened, expected) in [
        (Some(&made.customer), now - day..now + day, vec![&id]),
        (None, now - day..now + day, vec![&id, &other]),
        (None, now - day * 2..now - day, Vec::new()),
        (Some(&"cus_nobody".to_owned()), now - day..now + day, Vec::new()),
    ] {
        let found = port.checkout_sessions(customer.map(String::as_str), opened, &pace).await;
        let mut found = found.map_err(|doubt| anyhow::anyhow!("{doubt:?}"))?;
        ensure!(found.iter().all(|session| session.eco_id.as_deref() == Some("eco_a")), "{found:?}");
        found.sort_by_key(|session| session.state != CheckoutState::Expired);
        let ids: Vec<_> = found.iter().map(|session| &session.id).collect();
        assert_eq!(ids, expected, "{customer:?}");
    }
    Ok(())
}

async fn changes<P: Sales + Subscriptions>(port: &P, made: &Made) -> Result<()> {
    let id = made.subscription.as_str();
    let found = async || port.subscription(id).await.ok().flatten().context("a subscription");
    let item_id = found().await?.prices.first().context("a price")?.item_id.clone();
    let to = |price_id: &str| SubscriptionChange::Price {
        plan: Plan::Pro,
        item_id: item_id.clone(),
        price_id: price_id.to_owned(),
        is_prorated: true,
        by_date: false,
    };
    let go_on = SubscriptionChange::GoOn { by_date: false };
    let steps = [
        ("s1", SubscriptionChange::EndWithPeriod),
        ("s2", go_on.clone()),
        ("s3", to(&made.enterprise)),
        ("s4", SubscriptionChange::EndWithPeriod),
        // Another price goes on.
        ("s5", to(&made.pro)),
        ("s6", SubscriptionChange::EndNow),
    ];
    for (key, change) in &steps {
        ensure!(!is_so(&found().await?, change), "{change:?}");
        for _ in 0..2 {
            assert_eq!(done(port.change_subscription(id, change, key).await)?, id);
            ensure!(is_so(&found().await?, change), "{change:?}: {:?}", found().await);
        }
    }
    // It is over: it can only be ended.
    assert_eq!(done(port.change_subscription(id, &SubscriptionChange::EndNow, "s7").await)?, id);
    let gone = port.change_subscription(id, &go_on, "s8").await;
    ensure!(matches!(gone, Outcome::FailedForGood(_)), "{gone:?}");
    assert_eq!(found().await?.status, SubscriptionStatus::Canceled);
    Ok(())
}

#[tokio::test]
async fn in_memory() -> Result<()> {
    let memory = MemorySubscriptions::default();
    memory.add_price("price_1", "pro", "usd");
    memory.add_price("price_2", "enterprise", "usd");
    let made = Made {
        customer: "cus_1".to_owned(),
        pro: "price_1".to_owned(),
        enterprise: "price_2".to_owned(),
        subscription: "sub_1".to_owned(),
    };
    let subscription = Subscription {
        id: made.subscription.clone(),
        customer: made.customer.clone(),
        status: SubscriptionStatus::Active,
        prices: vec![Price {
            id: made.pro.clone(),
            lookup_key: Some("pro".to_owned()),
            item_id: "si_1".to_owned(),
        }],
        anchor: Utc::now(),
        created: Utc::now(),
        ended: None,
        cancel_at: None,
        ends_by_date: false,
        eco_id: None,
    };
    memory.state().subscriptions.insert(subscription.id.clone(), subscription);
    contract(&memory, &made).await
}

#[tokio::test]
async fn at_stripe() -> Result<()> {
    let sim = Sim::start().await?;
    let (pro, enterprise) = (sim.price("pro").await?, sim.price("enterprise").await?);
    let customer = sim.customer().await?;
    let subscription =
        sim.create("subscriptions", &format!("customer={customer}&items[0][price]={pro}")).await?;
    let made = Made { customer, pro, enterprise, subscription };
    contract(&Stripe::new(&stripe_args(&sim.base))?, &made).await
}

#[tokio::test]
async fn a_date_is_taken_away_at_stripe_where_it_was_found_and_not_otherwise() -> Result<()> {
    let sim = Sim::start().await?;
    let (pro, enterprise) = (sim.price("pro").await?, sim.price("enterprise").await?);
    let customer = sim.customer().await?;
    let id = sim.create("subscriptions", &format!("customer={customer}&items[0][price]={pro}")).await?;
    let stripe = Stripe::new(&stripe_args(&sim.base))?;
    let found = async || stripe.subscription(&id).await.ok().flatten().context("a subscription");
    let item_id = found().await?.prices.first().context("a price")?.item_id.clone();
    let date = Utc::now() + TimeDelta::days(200);
    let go_on = SubscriptionChange::GoOn { by_date: false };
    let price = SubscriptionChange::Price {
        plan: Plan::Enterprise,
        item_id,
        price_id: enterprise,
        is_prorated: false,
        by_date: false,
    };
    for (turn, change) in [go_on, price].iter().enumerate() {
        sim.create(&format!("subscriptions/{id}"), &format!("cancel_at={}", date.timestamp())).await?;
        let dated = found().await?;
        ensure!(dated.ends_by_date && dated.cancel_at.is_some(), "{dated:?}");
        done(stripe.change_subscription(&id, change, &format!("without{turn}")).await)?;
        assert_eq!(found().await?.cancel_at, dated.cancel_at, "{change:?}");
        let change = change.clone().as_found(&dated);
        done(stripe.change_subscription(&id, &change, &format!("with{turn}")).await)?;
        ensure!(is_so(&found().await?, &change), "{change:?}: {:?}", found().await);
    }
    Ok(())
}
