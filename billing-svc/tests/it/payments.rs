//! What every implementation of the port must do: the one in memory, and Stripe's over HTTP.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    time::{Duration, Instant},
};

use anyhow::{Context, Error, Result, anyhow, ensure};
use chrono::{TimeDelta, Utc};
use nexus_billing::{
    config::StripeArgs,
    domain::{charge::InvoiceItem, invoice::NewInvoice},
    payments::{
        Advice, FoundInvoice, FoundItem, Outcome, Payments, Place,
        pace::Pace,
        stripe::{Stripe, StripeConfigError},
    },
};
use serde_json::json;
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::{
    memory::{Fault, Memory},
    proxy::Proxy,
    support::{STRIPE_KEY, Sim},
};

fn item(customer: &str, charge_id: Uuid, amount_minor: i64) -> InvoiceItem {
    InvoiceItem {
        customer: customer.to_owned(),
        subscription: None,
        invoice: None,
        amount_minor,
        currency: "USD".to_owned(),
        description: "API overage: 5,000 calls beyond 100k limit".to_owned(),
        metadata: [
            ("charge_id".to_owned(), charge_id.to_string()),
            ("eco_id".to_owned(), "eco_a".to_owned()),
        ]
        .into(),
    }
}

/// One that lets everybody pass.
fn pace() -> Pace {
    Pace::new(NonZeroU32::MAX)
}

async fn create(payments: &dyn Payments, item: &InvoiceItem, key: &str) -> Result<String> {
    done(payments.create_invoice_item(item, key).await)
}

fn done(outcome: Outcome) -> Result<String> {
    match outcome {
        Outcome::Succeeded { id, .. } => Ok(id),
        other => anyhow::bail!("{other:?}"),
    }
}

fn refused(outcome: Outcome) -> Result<String> {
    match outcome {
        Outcome::FailedForGood(refusal) => Ok(refusal.reason),
        other => anyhow::bail!("{other:?}"),
    }
}

/// An item that is on no invoice.
fn pending(item_id: &str, amount_minor: i64) -> FoundItem {
    FoundItem { item_id: item_id.to_owned(), amount_minor, is_invoiced: false }
}

/// `customer` and `other` exist, `cus_nobody` does not.
async fn contract(payments: &dyn Payments, customer: &str, other: &str) -> Result<()> {
    let [first, second, never] = [1, 2, 3].map(Uuid::from_u128);
    let id = create(payments, &item(customer, first, 500), "k1").await?;
    // The same key: the same item. Another key: another item.
    let again = payments.create_invoice_item(&item(customer, first, 500), "k1").await;
    assert_eq!(again, Outcome::Succeeded { id: id.clone(), replayed: true });
    let credit = create(payments, &item(customer, second, -20), "k2").await?;
    assert_ne!(credit, id);
    let gone = payments.create_invoice_item(&item(customer, never, 7), "k0").await;
    let Outcome::Succeeded { id: gone, replayed: false } = gone else { anyhow::bail!("{gone:?}") };
    assert_eq!(payments.has_item(&gone).await, Ok(true));
    assert_eq!(payments.delete_item(&gone).await, Ok(()));
    assert_eq!(payments.has_item(&gone).await, Ok(false));
    // Its key says that it was made.
    let again = payments.create_invoice_item(&item(customer, never, 7), "k0").await;
    assert_eq!(again, Outcome::Succeeded { id: gone, replayed: true });
    assert_eq!(payments.find_items(customer, first, &pace()).await, Ok(vec![pending(&id, 500)]));
    assert_eq!(payments.find_items(customer, second, &pace()).await, Ok(vec![pending(&credit, -20)]));
    assert_eq!(payments.find_items(customer, never, &pace()).await, Ok(vec![]));
    assert_eq!(payments.find_items(other, first, &pace()).await, Ok(vec![]));
    // The same key with something else: neither made nor refused.
    match payments.create_invoice_item(&item(customer, never, 1), "k1").await {
        Outcome::Unknown(doubt) => assert_eq!(doubt.advice, Advice::Look),
        other => anyhow::bail!("{other:?}"),
    }
    assert_eq!(payments.find_items(customer, never, &pace()).await, Ok(vec![]));
    // Nobody to charge.
    match payments.create_invoice_item(&item("cus_nobody", never, 1), "k3").await {
        Outcome::FailedForGood(refusal) => {
            assert_eq!(refusal.reason, "RESOURCE_MISSING");
            ensure!(!refusal.message.is_empty());
        }
        other => anyhow::bail!("{other:?}"),
    }
    // One of many.
    for i in 0..150 {
        create(payments, &item(other, Uuid::from_u128(1_000 + i), 1), &format!("many-{i}")).await?;
    }
    for i in [0, 75, 149] {
        let found = payments.find_items(other, Uuid::from_u128(1_000 + i), &pace()).await;
        ensure!(found.as_ref().is_ok_and(|items| items.len() == 1), "{i}: {found:?}");
    }
    Ok(())
}

/// All items of a charge are found, and one that is on no invoice can be deleted. `invoice` puts a customer's
/// items on an invoice.
async fn extra_items(
    payments: &dyn Payments,
    customer: &str,
    invoice: impl AsyncFn() -> Result<()>,
) -> Result<()> {
    let [charge, other] = [1, 2].map(Uuid::from_u128);
    let on_invoice = create(payments, &item(customer, charge, 500), "a1").await?;
    invoice().await?;
    let extra = create(payments, &item(customer, charge, 500), "a2").await?;
    let more = create(payments, &item(customer, other, 500), "b1").await?;
    let invoiced = FoundItem { is_invoiced: true, ..pending(&on_invoice, 500) };
    let ids = |mut items: Vec<FoundItem>| {
        items.sort_by_key(|item| item.is_invoiced);
        items
    };
    let all = payments.find_items(customer, charge, &pace()).await;
    assert_eq!(all.map(ids), Ok(vec![pending(&extra, 500), invoiced.clone()]));
    // Deleted, and deleted again.
    for _ in 0..2 {
        assert_eq!(payments.delete_item(&extra).await, Ok(()));
        assert_eq!(payments.find_items(customer, charge, &pace()).await, Ok(vec![invoiced.clone()]));
    }
    let refused = payments.delete_item(&on_invoice).await;
    assert_eq!(refused.map_err(|doubt| doubt.advice), Err(Advice::Later));
    assert_eq!(payments.find_items(customer, charge, &pace()).await, Ok(vec![invoiced.clone()]));
    assert_eq!(payments.find_items(customer, other, &pace()).await, Ok(vec![pending(&more, 500)]));
    assert_eq!(payments.find_items(customer, Uuid::from_u128(3), &pace()).await, Ok(vec![]));
    // All of many, on more than one page.
    for i in 0..120 {
        create(payments, &item(customer, Uuid::from_u128(4), 500), &format!("c{i}")).await?;
    }
    let many = payments.find_items(customer, Uuid::from_u128(4), &pace()).await;
    assert_eq!(many.map(|items| items.len()), Ok(120));
    // An item made later has an id of its own.
    assert_ne!(create(payments, &item(customer, charge, 500), "a3").await?, extra);
    Ok(())
}

fn new_invoice(customer: &str, settlement_id: Uuid) -> NewInvoice {
    NewInvoice {
        customer: customer.to_owned(),
        subscription: None,
        currency: "USD".to_owned(),
        description: "Final settlement".to_owned(),
        metadata: [("settlement_id".to_owned(), settlement_id.to_string())].into(),
    }
}

/// An invoice is made for given items alone, and takes nothing once it is finalised.
async fn invoices(payments: &dyn Payments, customer: &str, other: &str) -> Result<()> {
    let [settlement, another] = [21, 22].map(Uuid::from_u128);
    let [first, second, third] = [31, 32, 33].map(Uuid::from_u128);
    let pending = create(payments, &item(customer, first, 500), "i1").await?;
    let stays = create(payments, &item(customer, second, 20), "i2").await?;
    let foreign = create(payments, &item(other, first, 9), "i3").await?;
    let is_pending = async |id: &String| {
        let places = payments.places(customer, &pace()).await.map_err(|e| anyhow!("{e:?}"))?;
        Ok::<_, Error>(places.get(id) == Some(&Place::Pending))
    };
    ensure!(is_pending(&pending).await? && is_pending(&stays).await? && !is_pending(&foreign).await?);

    // The same key: the same draft. It has taken nothing.
    let new = new_invoice(customer, settlement);
    let invoice = done(payments.create_invoice(&new, "in1").await)?;
    assert_eq!(done(payments.create_invoice(&new, "in1").await)?, invoice);
    ensure!(is_pending(&pending).await? && is_pending(&stays).await?);
    let found = |is_draft| Ok(vec![FoundInvoice { invoice_id: invoice.clone(), is_draft }]);
    assert_eq!(payments.find_invoices(customer, settlement, &pace()).await, found(true));
    assert_eq!(payments.find_invoices(customer, another, &pace()).await, Ok(vec![]));
    assert_eq!(payments.find_invoices(other, settlement, &pace()).await, Ok(vec![]));
    match payments.create_invoice(&new_invoice(customer, another), "in1").await {
        Outcome::Unknown(doubt) => assert_eq!(doubt.advice, Advice::Look),
        other => anyhow::bail!("{other:?}"),
    }
    assert_eq!(
        refused(payments.create_invoice(&new_invoice("cus_nobody", another), "in2").await)?,
        "RESOURCE_MISSING"
    );

    // Items that wait are put on it, all or none; a new one may name it.
    refused(payments.add_items(&invoice, &[pending.clone(), foreign], "add0").await)?;
    ensure!(is_pending(&pending).await?);
    let items = [pending.clone()];
    for _ in 0..2 {
        assert_eq!(done(payments.add_items(&invoice, &items, "add1").await)?, invoice);
    }
    refused(payments.add_items(&invoice, &items, "add2").await)?;
    let on_draft = InvoiceItem { invoice: Some(invoice.clone()), ..item(customer, third, 7) };
    let named = create(payments, &on_draft, "i4").await?;
    ensure!(!is_pending(&pending).await? && is_pending(&stays).await? && !is_pending(&named).await?);
    let is_invoiced = FoundItem { item_id: named.clone(), amount_minor: 7, is_invoiced: true };
    assert_eq!(payments.find_items(customer, third, &pace()).await, Ok(vec![is_invoiced]));

    for _ in 0..2 {
        assert_eq!(done(payments.finalize_invoice(&invoice, "fin1").await)?, invoice);
    }
    assert_eq!(payments.find_invoices(customer, settlement, &pace()).await, found(false));
    assert_eq!(refused(payments.finalize_invoice(&invoice, "fin2").await)?, "INVOICE_NOT_EDITABLE");
    assert_eq!(refused(payments.create_invoice_item(&on_draft, "i5").await)?, "INVOICE_NOT_EDITABLE");
    refused(payments.add_items(&invoice, std::slice::from_ref(&stays), "add3").await)?;
    ensure!(is_pending(&stays).await?);
    assert_eq!(payments.delete_item(&named).await.map_err(|doubt| doubt.advice), Err(Advice::Later));
    Ok(())
}

/// Where a customer's items are: `draft` makes a draft of the subscription with what is pending, `invoice` a final one.
async fn places(
    payments: &dyn Payments,
    customer: &str,
    subscription: &str,
    draft: impl AsyncFn() -> Result<()>,
    invoice: impl AsyncFn() -> Result<()>,
) -> Result<()> {
    let places = async || payments.places(customer, &pace()).await;
    assert_eq!(places().await, Ok(HashMap::new()));
    let on = |id| InvoiceItem {
        subscription: Some(subscription.to_owned()),
        ..item(customer, Uuid::from_u128(id), 5)
    };
    let on_draft = create(payments, &on(51), "ab1").await?;
    assert_eq!(places().await, Ok([(on_draft.clone(), Place::Pending)].into()));
    draft().await?;
    let of_settlement = create(payments, &on(52), "ab2").await?;
    let new = NewInvoice {
        subscription: Some(subscription.to_owned()),
        ..new_invoice(customer, Uuid::from_u128(53))
    };
    let made = done(payments.create_invoice(&new, "ab3").await)?;
    done(payments.add_items(&made, std::slice::from_ref(&of_settlement), "ab4").await)?;
    let invoiced = create(payments, &item(customer, Uuid::from_u128(54), 5), "ab5").await?;
    invoice().await?;
    let pending = create(payments, &on(55), "ab6").await?;
    let since = Utc::now() - TimeDelta::hours(1);
    let draft = |is_ours| Place::Draft {
        subscription: Some(subscription.to_owned()),
        goes_on: false,
        is_ours,
        created: since,
    };
    let expected = [
        (on_draft, draft(false)),
        (of_settlement, draft(true)),
        (invoiced, Place::Final),
        (pending, Place::Pending),
    ];
    let mut found = places().await.map_err(|e| anyhow!("{e:?}"))?;
    for place in found.values_mut() {
        if let Place::Draft { created, .. } = place {
            ensure!(*created > since, "{created} is not just now");
            *created = since;
        }
    }
    assert_eq!(found, expected.into());
    assert_eq!(payments.places("cus_nobody", &pace()).await, Ok(HashMap::new()));
    Ok(())
}

/// What changes an invoice is in doubt as an item is: `fault` lets the next such request lose its answer.
async fn invoices_in_doubt(
    payments: &dyn Payments,
    customer: &str,
    lose_answer: impl AsyncFn(&str) -> Result<()>,
) -> Result<()> {
    let settlement = Uuid::from_u128(41);
    let doubt = |outcome: Outcome| match outcome {
        Outcome::Unknown(doubt) => Ok(doubt.advice),
        other => Err(anyhow!("{other:?}")),
    };
    let new = new_invoice(customer, settlement);
    lose_answer("/v1/invoices").await?;
    assert_eq!(doubt(payments.create_invoice(&new, "d1").await)?, Advice::Again);
    let invoice = done(payments.create_invoice(&new, "d1").await)?;
    let found = payments.find_invoices(customer, settlement, &pace()).await;
    assert_eq!(found, Ok(vec![FoundInvoice { invoice_id: invoice.clone(), is_draft: true }]));

    let items = [create(payments, &item(customer, Uuid::from_u128(42), 5), "d2").await?];
    lose_answer(&format!("/v1/invoices/{invoice}/add_lines")).await?;
    assert_eq!(doubt(payments.add_items(&invoice, &items, "d3").await)?, Advice::Again);
    assert_eq!(done(payments.add_items(&invoice, &items, "d3").await)?, invoice);

    lose_answer(&format!("/v1/invoices/{invoice}/finalize")).await?;
    assert_eq!(doubt(payments.finalize_invoice(&invoice, "d4").await)?, Advice::Again);
    assert_eq!(done(payments.finalize_invoice(&invoice, "d4").await)?, invoice);
    Ok(())
}

/// An answer is lost after the effect, a request is lost before it, an error is stored for its key.
async fn faults(
    payments: &dyn Payments,
    customer: &str,
    fault: impl AsyncFn(Fault) -> Result<()>,
) -> Result<()> {
    for (n, kind, there) in [
        (10, Fault::AnswerLost, true),
        (11, Fault::Lost, false),
        (12, Fault::StoredError, false),
        (13, Fault::StoredErrorAfterEffect, true),
    ] {
        let charge = Uuid::from_u128(n);
        let (item, key) = (item(customer, charge, 7), format!("fault-{n}"));
        fault(kind).await?;
        match payments.create_invoice_item(&item, &key).await {
            Outcome::Unknown(doubt) => assert_eq!(doubt.advice, Advice::Again, "{kind:?}"),
            other => anyhow::bail!("{kind:?}: {other:?}"),
        }
        let found = payments.find_items(customer, charge, &pace()).await;
        assert_eq!(found.map(|items| !items.is_empty()), Ok(there), "{kind:?}");
        match payments.create_invoice_item(&item, &key).await {
            Outcome::Succeeded { .. } => ensure!(matches!(kind, Fault::Lost | Fault::AnswerLost)),
            Outcome::Unknown(doubt) => {
                ensure!(matches!(kind, Fault::StoredError | Fault::StoredErrorAfterEffect));
                assert_eq!(doubt.advice, Advice::Look);
            }
            other => anyhow::bail!("{kind:?}: {other:?}"),
        }
    }
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
    let memory = Memory::new();
    memory.add_customer("cus_1");
    memory.add_customer("cus_2");
    contract(&memory, "cus_1", "cus_2").await?;
    let fault = async |kind| {
        memory.fail_next(kind);
        Ok(())
    };
    faults(&memory, "cus_1", fault).await?;
    memory.add_customer("cus_3");
    let invoice = async || {
        memory.invoice("cus_3");
        Ok(())
    };
    extra_items(&memory, "cus_3", invoice).await?;
    memory.add_customer("cus_4");
    invoices(&memory, "cus_4", "cus_1").await?;
    let lose_answer = async |_: &str| {
        memory.fail_next(Fault::AnswerLost);
        Ok(())
    };
    invoices_in_doubt(&memory, "cus_4", lose_answer).await?;
    memory.add_customer("cus_5");
    let draft = async || {
        memory.draft("cus_5", "sub_5");
        Ok(())
    };
    let invoice = async || {
        memory.invoice("cus_5");
        Ok(())
    };
    places(&memory, "cus_5", "sub_5", draft, invoice).await
}

#[tokio::test]
async fn at_stripe() -> Result<()> {
    let sim = Sim::start().await?;
    let (customer, other) = (sim.customer().await?, sim.customer().await?);
    let stripe = Stripe::new(&args(&sim.base))?;
    contract(&stripe, &customer, &other).await?;
    let fault = async |kind| {
        let outcome = match kind {
            Fault::Lost => json!({ "kind": "drop", "effect": false }),
            Fault::AnswerLost => json!({ "kind": "drop" }),
            Fault::StoredError => json!({ "kind": "stored_error" }),
            Fault::StoredErrorAfterEffect => json!({ "kind": "stored_error", "effect": true }),
            Fault::None | Fault::NoAnswer | Fault::LateAnswer => anyhow::bail!("not in this test"),
        };
        sim.fault(json!({ "outcome": outcome })).await
    };
    faults(&stripe, &customer, fault).await?;
    let customer = sim.customer().await?;
    extra_items(&stripe, &customer, async || sim.invoice(&customer).await).await?;
    let customer = sim.customer().await?;
    invoices(&stripe, &customer, &other).await?;
    let lose_answer = async |path: &str| {
        let fault = json!({ "method": "POST", "path": path, "outcome": { "kind": "drop" } });
        sim.admin("/faults", fault).await.map(drop)
    };
    invoices_in_doubt(&stripe, &customer, lose_answer).await?;
    let customer = sim.customer().await?;
    let subscription = sim.subscription(&customer).await?;
    let draft = async || {
        let form = format!("customer={customer}&subscription={subscription}");
        sim.create("invoices", &form).await.map(drop)
    };
    places(&stripe, &customer, &subscription, draft, async || sim.invoice(&customer).await).await
}

#[tokio::test]
async fn stripes_errors_mean_what_their_headers_say() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    let stripe = Stripe::new(&args(&sim.base))?;
    let cases = [
        (json!({ "status": 429, "retry_after": 7 }), Advice::Again, Some(7)),
        (json!({ "status": 409, "should_retry": true }), Advice::Again, None),
        (json!({ "status": 500 }), Advice::Again, None),
        (json!({ "status": 503, "retry_after": 2 }), Advice::Again, Some(2)),
        (json!({ "status": 400, "should_retry": true }), Advice::Again, None),
        (json!({ "status": 500, "should_retry": false }), Advice::Later, None),
        (json!({ "status": 401 }), Advice::Later, None),
        (json!({ "status": 403 }), Advice::Later, None),
    ];
    for (mut outcome, advice, retry_after) in cases {
        outcome["kind"] = "error".into();
        let told = outcome.to_string();
        sim.fault(json!({ "outcome": outcome })).await?;
        match stripe.create_invoice_item(&item(&customer, Uuid::nil(), 1), "k").await {
            Outcome::Unknown(doubt) => {
                assert_eq!(doubt.advice, advice, "{told}");
                assert_eq!(doubt.retry_after, retry_after.map(Duration::from_secs), "{told}");
            }
            other => anyhow::bail!("{told}: {other:?}"),
        }
    }
    for status in [400, 402, 404] {
        sim.fault(json!({ "outcome": { "kind": "error", "status": status } })).await?;
        let outcome = stripe.create_invoice_item(&item(&customer, Uuid::nil(), 1), "k").await;
        ensure!(matches!(outcome, Outcome::FailedForGood(_)), "{status}: {outcome:?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_error_that_is_not_stripes_refuses_nobody() -> Result<()> {
    for status in ["400 Bad Request", "402 Payment Required", "404 Not Found"] {
        for body in ["<html>Not here</html>", r#"{"error":{}}"#, r#"{"error":"no such route"}"#] {
            let proxy = Proxy::with_answer(&format!("{status}\r\ncontent-type: text/html"), body).await?;
            let stripe = Stripe::new(&args(&proxy.base))?;
            match stripe.create_invoice_item(&item("cus_1", Uuid::nil(), 1), "k").await {
                Outcome::Unknown(doubt) => assert_eq!(doubt.advice, Advice::Later, "{status} {body}"),
                other => anyhow::bail!("{status} {body}: {other:?}"),
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_listing_keeps_the_pace_page_by_page_and_ends() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    let stripe = Stripe::new(&args(&sim.base))?;
    for i in 0..101 {
        create(&stripe, &item(&customer, Uuid::from_u128(i), 1), &format!("k{i}")).await?;
    }
    // One call in half a second, and the first is taken: after `started`, or the half second would begin before it.
    let pace = Pace::new(NonZeroU32::MIN.saturating_add(1));
    let started = Instant::now();
    pace.wait().await;
    let found = stripe.find_items(&customer, Uuid::from_u128(0), &pace).await;
    assert_eq!(found.map(|items| items.len()), Ok(1));
    ensure!(started.elapsed() >= Duration::from_millis(400), "{:?}", started.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_listing_without_end_is_given_up() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    let (there, absent) = (Uuid::from_u128(1), Uuid::from_u128(2));
    create(&Stripe::new(&args(&sim.base))?, &item(&customer, there, 1), "k").await?;
    let proxy = Proxy::with_endless_listing(&sim).await?;
    let stripe = Stripe::new(&args(&proxy.base))?;
    // Neither absent, nor all there is.
    for (charge, requests) in [(absent, 100), (there, 200)] {
        let found = stripe.find_items(&customer, charge, &pace()).await;
        assert_eq!(found.map_err(|doubt| doubt.advice), Err(Advice::Later));
        assert_eq!(proxy.answered(), requests);
    }
    let nothing = json!({ "object": "list", "url": "/v1/invoiceitems", "has_more": true, "data": [] });
    let proxy = Proxy::with_answer("200 OK\r\ncontent-type: application/json", &nothing.to_string()).await?;
    let found = Stripe::new(&args(&proxy.base))?.find_items(&customer, absent, &pace()).await;
    assert_eq!(found.map_err(|doubt| doubt.advice), Err(Advice::Again));
    Ok(())
}

#[tokio::test]
async fn a_stripe_that_is_away_or_silent_leaves_a_doubt() -> Result<()> {
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let mut short = args(&format!("http://{}", silent.local_addr()?));
    short.stripe_timeout = Duration::from_millis(50);
    let away = args("http://127.0.0.1:1");
    for (args, message) in [(short, "no answer from Stripe in time"), (away, "no answer from Stripe")] {
        let stripe = Stripe::new(&args)?;
        match stripe.create_invoice_item(&item("cus_1", Uuid::nil(), 1), "k").await {
            Outcome::Unknown(doubt) => {
                assert_eq!((doubt.advice, doubt.message.as_str()), (Advice::Again, message))
            }
            other => anyhow::bail!("{other:?}"),
        }
    }
    Ok(())
}

#[test]
fn settings_that_cannot_be_used_are_named_and_the_key_is_never_shown() -> Result<()> {
    for base in ["api.stripe.com", "ftp://api.stripe.com/", "http://x/?a=b", "not a url"] {
        let error = Stripe::new(&args(base)).err();
        ensure!(matches!(error, Some(StripeConfigError::Base(_))), "{base}: {error:?}");
    }
    let mut live = args("http://localhost:12111/");
    live.stripe_secret_key = "sk_live_x".into();
    ensure!(matches!(Stripe::new(&live), Err(StripeConfigError::Base(_))));
    for key in ["sk_test_\n", "", "foo", "pk_test_billing"] {
        let mut broken = args("https://api.stripe.com/");
        broken.stripe_secret_key = key.into();
        let error = Stripe::new(&broken).err().with_context(|| format!("{key:?} is no secret key"))?;
        ensure!(error.to_string().contains("STRIPE_SECRET_KEY"), "{error}");
    }
    let mut restricted = args("https://api.stripe.com/");
    restricted.stripe_secret_key = "rk_test_billing".into();
    Stripe::new(&restricted)?;
    let stripe = Stripe::new(&args("https://api.stripe.com"))?;
    ensure!(!format!("{stripe:?} {:?}", args("https://api.stripe.com")).contains(STRIPE_KEY));
    Ok(())
}
