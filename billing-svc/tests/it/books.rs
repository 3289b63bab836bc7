//! What every implementation of the port to Stripe's books must do: the one in memory, and Stripe's over HTTP.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use chrono::{TimeDelta, Utc};
use nexus_billing::{
    domain::{
        books::{BookItem, InvoiceStatus},
        charge::InvoiceItem,
    },
    payments::{
        Outcome, Payments,
        books::{Books, Listing},
        stripe::Stripe,
    },
};

use crate::{
    memory::Memory,
    support::{Sim, stripe_args},
};

fn item(customer: &str, n: i64) -> InvoiceItem {
    InvoiceItem {
        customer: customer.to_owned(),
        subscription: None,
        invoice: None,
        amount_minor: n,
        currency: "USD".to_owned(),
        description: format!("API overage: {n} calls"),
        metadata: BTreeMap::from([
            ("eco_id".to_owned(), "eco_a".to_owned()),
            ("n".to_owned(), n.to_string()),
        ]),
    }
}

/// All of a listing. `between` is called after the first page with its last entry.
async fn all(
    books: &dyn Books,
    listing: Listing,
    between: impl AsyncFn(&str) -> Result<()>,
) -> Result<Vec<BookItem>> {
    let (mut listing, mut found) = (listing, Vec::new());
    for turn in 0..10 {
        let page = books.items(&listing).await.map_err(|doubt| anyhow::anyhow!(doubt.message))?;
        ensure!(page.entries.len() <= 100);
        found.extend(page.entries);
        let Some(next) = page.next else { return Ok(found) };
        if turn == 0 {
            between(&next.id).await?;
        }
        listing.after = Some(next);
    }
    anyhow::bail!("the listing has no end")
}

async fn nothing(_: &str) -> Result<()> {
    Ok(())
}

fn ids(items: &[BookItem]) -> Vec<&str> {
    items.iter().map(|item| item.item_id.as_str()).collect()
}

async fn contract<T: Books + Payments>(
    stripe: &T,
    [one, two]: [&str; 2],
    invoice: impl AsyncFn(&str) -> Result<()>,
) -> Result<()> {
    ensure!(all(stripe, Listing::default(), nothing).await?.is_empty());
    assert_eq!(stripe.has_had_customer(one).await, Ok(true));
    assert_eq!(stripe.has_had_customer("cus_nobody").await, Ok(false));
    let mut made = Vec::new();
    for n in 1..=230 {
        let customer = if n % 2 == 0 { one } else { two };
        match stripe.create_invoice_item(&item(customer, n), &format!("k{n}")).await {
            Outcome::Succeeded { id, .. } => made.push(id),
            other => anyhow::bail!("{other:?}"),
        }
    }
    let newest_first: Vec<&str> = made.iter().rev().map(String::as_str).collect();
    let found = all(stripe, Listing::default(), nothing).await?;
    assert_eq!(ids(&found), newest_first);
    let last = &found[0];
    assert_eq!((last.customer.as_str(), last.amount_minor, last.currency.as_str()), (one, 230, "USD"));
    assert_eq!((last.description.as_str(), last.metadata["n"].as_str()), ("API overage: 230 calls", "230"));
    assert_eq!((&last.invoice_id, &last.subscription), (&None, &None));
    assert_eq!(stripe.item(&last.item_id).await.ok().flatten().as_ref(), Some(last));

    let of_one = Listing { customer: Some(one.to_owned()), ..Listing::default() };
    let of_one = all(stripe, of_one, nothing).await?;
    ensure!(of_one.len() == 115 && of_one.iter().all(|item| item.customer == one));
    let since = |created_from| Listing { created_from: Some(created_from), ..Listing::default() };
    assert_eq!(all(stripe, since(last.created), nothing).await?.first(), Some(last));
    ensure!(all(stripe, since(Utc::now() + TimeDelta::days(1)), nothing).await?.is_empty());

    // An entry that is gone while the listing stands there loses no other.
    let deleted = async |id: &str| {
        let gone = stripe.delete_item(id).await;
        ensure!(gone.is_ok(), "{gone:?}");
        Ok(())
    };
    let again = all(stripe, Listing::default(), deleted).await?;
    for id in &newest_first {
        ensure!(ids(&again).contains(id), "{id} is not in the listing");
    }
    let gone = &newest_first[99];
    assert_eq!(stripe.item(gone).await, Ok(None));

    ensure!(stripe.invoices(&Listing::default()).await.is_ok_and(|page| page.entries.is_empty()));
    invoice(one).await?;
    let invoices = stripe.invoices(&Listing::default()).await.map_err(|d| anyhow::anyhow!(d.message))?;
    let [invoice] = &invoices.entries[..] else { anyhow::bail!("{invoices:?}") };
    assert_eq!((invoice.status, &invoices.next), (InvoiceStatus::Finalised, &None));
    assert_eq!(stripe.invoice(&invoice.invoice_id).await.ok().flatten().as_ref(), Some(invoice));
    assert_eq!(stripe.invoice("in_nobody").await, Ok(None));
    let on_it =
        all(stripe, Listing { customer: Some(one.to_owned()), ..Listing::default() }, nothing).await?;
    ensure!(on_it.iter().all(|item| item.invoice_id.as_ref() == Some(&invoice.invoice_id)), "{on_it:?}");
    let of_two = Listing { customer: Some(two.to_owned()), ..Listing::default() };
    ensure!(stripe.invoices(&of_two).await.is_ok_and(|page| page.entries.is_empty()));
    Ok(())
}

#[tokio::test]
async fn the_books_in_memory_keep_the_contract() -> Result<()> {
    let memory = Memory::new();
    for customer in ["cus_1", "cus_2"] {
        memory.add_customer(customer);
    }
    let invoice = async |customer: &str| {
        memory.invoice(customer);
        Ok(())
    };
    contract(&memory, ["cus_1", "cus_2"], invoice).await
}

#[tokio::test]
async fn stripes_books_keep_the_contract() -> Result<()> {
    let sim = Sim::start().await?;
    let (one, two) = (sim.customer().await?, sim.customer().await?);
    let stripe = Stripe::new(&stripe_args(&sim.base))?;
    contract(&stripe, [&one, &two], async |customer: &str| sim.invoice(customer).await).await?;
    sim.delete(&format!("customers/{one}")).await?;
    assert_eq!(
        stripe.has_had_customer(&one).await,
        Ok(true),
        "a deleted one is still told from one of another's"
    );
    Ok(())
}

#[tokio::test]
async fn books_that_cannot_be_read_are_a_doubt() -> Result<()> {
    let stripe = Stripe::new(&stripe_args("http://127.0.0.1:1"))?;
    let doubt = stripe.items(&Listing::default()).await.err().context("nobody is there")?;
    assert_eq!(doubt.message, "no answer from Stripe");
    ensure!(stripe.item("ii_1").await.is_err() && stripe.invoices(&Listing::default()).await.is_err());
    Ok(())
}
