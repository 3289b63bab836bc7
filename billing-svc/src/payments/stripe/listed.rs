//! Pages of subscriptions, and of their changes. Nobody can delete either, so that the next page is always found.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use miniserde::Deserialize;
use stripe_billing::subscription::{ListSubscription, ListSubscriptionStatus};
use stripe_client_core::StripeRequest;
use stripe_core::event::ListEvent;
use stripe_types::{List, RangeBoundsTs, RangeQueryTs};

use super::{
    HttpClient, RequestError,
    books::{next, time},
    reading::Reading,
};
use crate::{
    domain::stripe_objects::{ECO_ID, Price, Subscription},
    payments::books::{Listing, Page, Place},
};

/// Entries a page has at most.
const PAGE: i64 = 100;

/// As much of a subscription as decides about ours: one that cannot be read would hide all others.
#[derive(Deserialize)]
struct Listed {
    id: String,
    customer: String,
    status: String,
    items: Items,
    billing_cycle_anchor: i64,
    created: i64,
    ended_at: Option<i64>,
    cancel_at: Option<i64>,
    cancel_at_period_end: bool,
    metadata: Option<HashMap<String, String>>,
}

#[derive(Deserialize)]
struct Items {
    data: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    id: String,
    price: ItemPrice,
    current_period_end: Option<i64>,
}

#[derive(Deserialize)]
struct ItemPrice {
    id: String,
    lookup_key: Option<String>,
}

#[derive(Deserialize)]
struct Event {
    id: String,
    created: i64,
    data: EventData,
}

#[derive(Deserialize)]
struct EventData {
    object: EventObject,
}

#[derive(Deserialize)]
struct EventObject {
    id: Option<String>,
}

pub(super) async fn subscriptions(
    client: &HttpClient,
    listing: &Listing,
) -> Result<Page<Subscription>, RequestError> {
    let mut request = ListSubscription::new().status(ListSubscriptionStatus::All).limit(PAGE);
    if let Some(customer) = &listing.customer {
        request = request.customer(customer);
    }
    if let Some(created) = since(listing) {
        request = request.created(created);
    }
    if let Some(after) = &listing.after {
        request = request.starting_after(&after.id);
    }
    let page = Reading::<_, List<Listed>>::of(request).customize().send(client).await?;
    let last = page.data.last().map(|last| place(&last.id, last.created)).transpose()?;
    let entries = page.data.into_iter().filter_map(|listed| subscription(listed).transpose());
    Ok(Page { entries: entries.collect::<Result<_, _>>()?, next: next(page.has_more, last)? })
}

pub(super) async fn changes(client: &HttpClient, listing: &Listing) -> Result<Page<String>, RequestError> {
    let mut request = ListEvent::new().type_("customer.subscription.*").limit(PAGE);
    if let Some(created) = since(listing) {
        request = request.created(created);
    }
    if let Some(after) = &listing.after {
        request = request.starting_after(&after.id);
    }
    let page = Reading::<_, List<Event>>::of(request).customize().send(client).await?;
    let last = page.data.last().map(|last| place(&last.id, last.created)).transpose()?;
    let entries = page.data.into_iter().filter_map(|event| event.data.object.id).collect();
    Ok(Page { entries, next: next(page.has_more, last)? })
}

fn since(listing: &Listing) -> Option<RangeQueryTs> {
    let from = listing.created_from?;
    Some(RangeQueryTs::Bounds(RangeBoundsTs { gte: Some(from.timestamp()), ..RangeBoundsTs::default() }))
}

fn place(id: &str, created: i64) -> Result<Place, RequestError> {
    Ok(Place { id: id.to_owned(), created: time(created)? })
}

/// `None`: it is in a state that is not known here.
fn subscription(listed: Listed) -> Result<Option<Subscription>, RequestError> {
    let Ok(status) = listed.status.parse() else {
        tracing::warn!(
            subscription = listed.id,
            status = listed.status,
            "a subscription is in a state that is not known"
        );
        return Ok(None);
    };
    let times = |seconds: Option<i64>| -> Result<Option<DateTime<Utc>>, RequestError> {
        seconds.map(time).transpose()
    };
    // As where one is read by itself.
    let period_end = listed.items.data.first().and_then(|item| item.current_period_end);
    let cancel_at = listed.cancel_at.or(period_end.filter(|_| listed.cancel_at_period_end));
    let prices = listed.items.data.into_iter().map(|item| Price {
        id: item.price.id,
        lookup_key: item.price.lookup_key,
        item_id: item.id,
    });
    Ok(Some(Subscription {
        status,
        prices: prices.collect(),
        anchor: time(listed.billing_cycle_anchor)?,
        created: time(listed.created)?,
        ended: times(listed.ended_at)?,
        cancel_at: times(cancel_at)?,
        ends_by_date: listed.cancel_at.is_some() && !listed.cancel_at_period_end,
        eco_id: listed.metadata.and_then(|mut metadata| metadata.remove(ECO_ID)),
        customer: listed.customer,
        id: listed.id,
    }))
}
