//! Events: what happened, as it was told to the webhook endpoints.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::chance::Chance;
use crate::http::API_VERSION;
use crate::http::error::ApiError;
use crate::http::forms::Params;
use crate::http::lists::{Page, page_of};
use crate::objects::webhooks::WebhookEndpoint;
use crate::objects::{Kind, Object, Resource, invoices, named};
use crate::state::State;
use crate::tx::Tx;

const DAY: i64 = 86_400;
/// For how long an event can be retrieved.
const KEPT_SECONDS: i64 = 30 * DAY;
/// More are not kept either, once they are delivered.
const KEPT: usize = 20_000;

/// For how long a delivery is tried again.
const RETRIED_SECONDS: i64 = 3 * DAY;
const FIRST_RETRY_SECONDS: i64 = 60;
const LONGEST_RETRY_SECONDS: i64 = 12 * 3600;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Event {
    id: String,
    pub(crate) created: i64,
    /// When it was written down, by the clock of all: `created` may be by a test clock.
    recorded: i64,
    pub(crate) kind: String,
    /// The `data` field, as JSON text: it never changes.
    data: String,
    request_id: Option<String>,
    idempotency_key: Option<String>,
    /// What is still to be delivered, by endpoint.
    deliveries: BTreeMap<String, Delivery>,
    /// Whether every endpoint took it.
    delivered: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Delivery {
    /// When it is next tried, by the clock of all.
    at: i64,
    attempts: u32,
    first_attempt: Option<i64>,
    /// Whether the endpoint gets it once more after it took it.
    twice: bool,
}

/// How webhooks go wrong, by seed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Unreliable {
    pub(crate) seed: u64,
    /// The share of events that come twice.
    pub(crate) duplicate: f64,
    /// The share that comes late, and so out of order.
    pub(crate) delay: f64,
    /// How late at most, by the clock of the stand-in.
    pub(crate) max_delay_seconds: u32,
}

impl Unreliable {
    /// How the event of that number is delivered.
    fn delivery(&self, kind: &str, number: u64, now: i64) -> Delivery {
        let mut delivery = Delivery { at: now, attempts: 0, first_attempt: None, twice: false };
        if self.duplicate > 0.0 || self.delay > 0.0 {
            let chance = Chance::new(self.seed, &[kind, &number.to_string()]);
            delivery.twice = chance.strikes("duplicate", self.duplicate);
            if chance.strikes("delay", self.delay) {
                delivery.at += self.lateness(&chance, "late");
            }
        }
        delivery
    }

    fn lateness(&self, chance: &Chance, question: &str) -> i64 {
        chance.below(question, self.max_delay_seconds.saturating_add(1)).into()
    }
}

impl Resource for Event {
    const KIND: Kind = Kind::Event;

    fn from_object(object: &Object) -> Option<&Self> {
        Self::variant_of(object)
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn render(&self, _: &State) -> Value {
        json!({
            "id": self.id,
            "object": "event",
            "account": null,
            "api_version": API_VERSION,
            "context": null,
            "created": self.created,
            "data": self.data(),
            "livemode": false,
            "pending_webhooks": self.deliveries.len(),
            "request": { "id": self.request_id, "idempotency_key": self.idempotency_key },
            "type": self.kind,
        })
    }
}

impl Event {
    fn data(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_default()
    }

    /// The id of the object it is about.
    fn subject(&self) -> Option<String> {
        self.data()["object"]["id"].as_str().map(str::to_owned)
    }

    /// The first attempt that is still to come.
    pub(crate) fn next_delivery(&self) -> Option<i64> {
        self.deliveries.values().map(|delivery| delivery.at).min()
    }

    /// The endpoints that get it until `until`.
    pub(crate) fn endpoints(&self, until: i64) -> impl Iterator<Item = &str> {
        let due = self.deliveries.iter().filter(move |(_, delivery)| delivery.at <= until);
        due.map(|(endpoint, _)| endpoint.as_str())
    }
}

/// Writes an event down, with a delivery to every endpoint that wants its type.
pub(crate) fn emit(tx: &mut Tx<'_>, kind: &str, object: &Value, previous: Option<Map<String, Value>>) {
    forget_the_oldest(tx);
    let mut data = json!({ "object": object });
    if let Some(previous) = previous {
        data["previous_attributes"] = Value::Object(previous);
    }
    let id = tx.ids().next("evt");
    let delivery = tx.state().unreliable.delivery(kind, tx.state().events_so_far(), tx.common_time());
    let deliveries: BTreeMap<String, Delivery> = tx
        .state()
        .all::<WebhookEndpoint>()
        .filter(|endpoint| endpoint.wants(kind))
        .map(|endpoint| (endpoint.id().to_owned(), delivery.clone()))
        .collect();
    let request = tx.request();
    tx.put(Event {
        id,
        created: tx.now(),
        recorded: tx.common_time(),
        kind: kind.to_owned(),
        data: data.to_string(),
        request_id: request.map(|request| request.request_id.clone()),
        idempotency_key: request.and_then(|request| request.idempotency_key.clone()),
        delivered: deliveries.is_empty(),
        deliveries,
    });
}

fn forget_the_oldest(tx: &mut Tx<'_>) {
    let state = tx.state();
    let Some(oldest) = state.all::<Event>().next() else { return };
    let old = oldest.recorded < tx.common_time() - KEPT_SECONDS || state.count::<Event>() >= KEPT;
    if old && oldest.deliveries.is_empty() {
        let id = oldest.id.clone();
        tx.remove::<Event>(&id);
    }
}

/// The fields of `before` that `after` has otherwise.
pub(crate) fn previous_attributes(before: &Value, after: &Value) -> Map<String, Value> {
    let (Value::Object(before), Value::Object(after)) = (before, after) else {
        return Map::new();
    };
    let differs = |(field, value): &(&String, &Value)| after.get(*field) != Some(*value);
    before.iter().filter(differs).map(|(field, value)| (field.clone(), value.clone())).collect()
}

/// Notes how an attempt to deliver ended.
pub(crate) fn note_attempt(tx: &mut Tx<'_>, id: &str, endpoint: &str, taken: bool) {
    let Some(mut event) = tx.state().get::<Event>(id).cloned() else { return };
    let Some(mut delivery) = event.deliveries.remove(endpoint) else { return };
    let now = tx.common_time();
    let first = *delivery.first_attempt.get_or_insert(now);
    let wait = FIRST_RETRY_SECONDS.saturating_mul(4_i64.saturating_pow(delivery.attempts));
    delivery.attempts += 1;
    if taken && delivery.twice {
        // It counts as another attempt: the endpoint's answer was lost.
        delivery.twice = false;
        let unreliable = &tx.state().unreliable;
        delivery.at = now + unreliable.lateness(&Chance::new(unreliable.seed, &[id]), "again");
        event.deliveries.insert(endpoint.to_owned(), delivery);
    } else if !taken {
        // The last attempt is at the very end.
        let last = first + RETRIED_SECONDS;
        delivery.at = (now + wait.min(LONGEST_RETRY_SECONDS)).min(last);
        if now < last {
            event.deliveries.insert(endpoint.to_owned(), delivery);
        }
    }
    event.delivered = taken && event.deliveries.is_empty();
    note_progress(tx, &event);
    tx.put(event);
}

/// A draft that was told of everywhere, or wherever that could be done, waits no longer.
fn note_progress(tx: &mut Tx<'_>, event: &Event) {
    if event.deliveries.is_empty()
        && event.kind == "invoice.created"
        && let Some(invoice) = event.subject()
    {
        invoices::note_delivery(tx, &invoice);
    }
}

/// The endpoint is gone: nothing is delivered to it any more.
pub(crate) fn drop_endpoint(tx: &mut Tx<'_>, endpoint: &str) {
    let waiting: Vec<Event> = tx.state().due_deliveries(i64::MAX).cloned().collect();
    for mut event in waiting {
        if event.deliveries.remove(endpoint).is_some() {
            note_progress(tx, &event);
            tx.put(event);
        }
    }
}

pub(crate) fn retrieve(tx: &mut Tx<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish()?;
    let event: Event = named(tx, id)?;
    if event.recorded < tx.common_time() - KEPT_SECONDS {
        return Err(ApiError::not_found(Kind::Event.name(), id));
    }
    Ok(event.render(tx.state()))
}

pub(crate) fn list(tx: &mut Tx<'_>, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::take(&mut params)?;
    let kind = params.text("type")?;
    let kinds = params.texts("types")?;
    let delivered = params.boolean("delivery_success")?;
    let created = params.time_range("created")?;
    if kind.is_some() && !kinds.is_empty() {
        return Err(params.exclusive(&["type", "types"]));
    }
    params.finish()?;
    let wanted: Vec<String> = kind.into_iter().chain(kinds).collect();
    let oldest = tx.common_time() - KEPT_SECONDS;
    page_of::<Event>(tx.state(), &page, None, |event| {
        event.recorded >= oldest
            && created.contains(event.created)
            && delivered.is_none_or(|delivered| event.delivered == delivered)
            && (wanted.is_empty() || wanted.iter().any(|wanted| matches(wanted, &event.kind)))
    })
}

/// Whether a type is the one asked for: `invoice.paid`, `invoice.*` or `*`.
pub(crate) fn matches(wanted: &str, kind: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(prefix) => kind.starts_with(prefix),
        None => kind == wanted,
    }
}
