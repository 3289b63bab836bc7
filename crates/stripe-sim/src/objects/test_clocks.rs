//! Test clocks: customers of their own time, which stands still until it is moved.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::http::error::ApiError;
use crate::http::forms::Params;
use crate::http::lists::{Page, page_of};
use crate::objects::checkout::{self, CheckoutSession};
use crate::objects::customers::{self, Customer};
use crate::objects::subscriptions::Subscription;
use crate::objects::{Kind, Object, Resource, announced, events, fall_due, named};
use crate::state::State;
use crate::tx::Tx;

const DAY: i64 = 86_400;
const KEPT_SECONDS: i64 = 30 * DAY;
/// How far a clock without subscriptions can be moved at once.
const LONGEST_ADVANCE_SECONDS: i64 = 2 * 365 * DAY;
/// How many customers can go by one clock.
const MAX_CUSTOMERS: usize = 3;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TestClock {
    id: String,
    created: i64,
    name: Option<String>,
    pub(crate) frozen_time: i64,
}

impl Resource for TestClock {
    const KIND: Kind = Kind::TestClock;

    fn from_object(object: &Object) -> Option<&Self> {
        Self::variant_of(object)
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn due(&self) -> Option<i64> {
        Some(self.deletes_after())
    }

    fn render(&self, _: &State) -> Value {
        json!({
            "id": self.id,
            "object": "test_helpers.test_clock",
            "created": self.created,
            "deletes_after": self.deletes_after(),
            "frozen_time": self.frozen_time,
            "livemode": false,
            "name": self.name,
            "status": "ready",
            "status_details": {},
        })
    }
}

impl TestClock {
    /// By the clock of all.
    fn deletes_after(&self) -> i64 {
        self.created + KEPT_SECONDS
    }
}

pub(crate) fn create(tx: &mut Tx<'_>, mut params: Params) -> Result<Value, ApiError> {
    let frozen_time = params.timestamp("frozen_time")?.ok_or_else(|| params.missing("frozen_time"))?;
    let name = params.text("name")?;
    params.finish()?;
    let clock = TestClock { id: tx.ids().next("clock"), created: tx.common_time(), name, frozen_time };
    Ok(announced(tx, clock, "test_helpers.test_clock.created"))
}

pub(crate) fn retrieve(tx: &mut Tx<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish()?;
    Ok(named::<TestClock>(tx, id)?.render(tx.state()))
}

pub(crate) fn list(tx: &mut Tx<'_>, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::take(&mut params)?;
    params.finish()?;
    page_of::<TestClock>(tx.state(), &page, None, |_| true)
}

/// What is due to its customers until then happens, each thing at its own time. It is over when
/// the request is answered.
pub(crate) fn advance(tx: &mut Tx<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let frozen_time = params.timestamp("frozen_time")?.ok_or_else(|| params.missing("frozen_time"))?;
    params.finish()?;
    let mut clock: TestClock = named(tx, id)?;
    let farthest = clock.frozen_time + farthest_advance(tx, &clock);
    if frozen_time <= clock.frozen_time || frozen_time > farthest {
        let message = "frozen_time must be after the clock's own, and at most two intervals of its \
                       shortest subscription (two years without one) later.";
        return Err(ApiError::refused(message).param("frozen_time"));
    }
    let mut advancing = clock.render(tx.state());
    advancing["status"] = json!("advancing");
    events::emit(tx, "test_helpers.test_clock.advancing", &advancing, None);
    let key = Some(id.to_owned());
    while let Some((at, object)) = tx.state().first_due(key.as_ref(), frozen_time) {
        // An object that was due before the clock began is due now.
        clock.frozen_time = at.max(clock.frozen_time);
        tx.put(clock.clone());
        tx.set_now(clock.frozen_time);
        fall_due(tx, object);
    }
    clock.frozen_time = frozen_time;
    tx.set_now(frozen_time);
    Ok(announced(tx, clock, "test_helpers.test_clock.ready"))
}

fn farthest_advance(tx: &Tx<'_>, clock: &TestClock) -> i64 {
    let shortest = customers_of(tx, clock.id())
        .iter()
        .flat_map(|customer| tx.state().of_customer::<Subscription>(customer.id()))
        .filter(|subscription| !subscription.is_over())
        .map(|subscription| subscription.two_intervals_from(clock.frozen_time))
        .min();
    shortest.unwrap_or(LONGEST_ADVANCE_SECONDS)
}

fn customers_of(tx: &Tx<'_>, clock: &str) -> Vec<Customer> {
    let customers = tx.state().all::<Customer>().filter(|it| it.test_clock.as_deref() == Some(clock));
    customers.filter(|it| !it.is_deleted()).cloned().collect()
}

pub(crate) fn check_room(tx: &Tx<'_>, clock: &str) -> Result<(), ApiError> {
    if customers_of(tx, clock).len() < MAX_CUSTOMERS {
        return Ok(());
    }
    let message = format!("Up to {MAX_CUSTOMERS} customers can go by one test clock.");
    Err(ApiError::refused(message).param("test_clock"))
}

pub(crate) fn delete(tx: &mut Tx<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish()?;
    let clock: TestClock = named(tx, id)?;
    remove(tx, &clock);
    Ok(json!({ "id": id, "object": "test_helpers.test_clock", "deleted": true }))
}

/// Its customers go with it, and their subscriptions and sessions.
pub(crate) fn remove(tx: &mut Tx<'_>, clock: &TestClock) {
    tx.go_by(Some(clock.id()));
    let form = clock.render(tx.state());
    for customer in customers_of(tx, clock.id()) {
        let sessions: Vec<CheckoutSession> = tx
            .state()
            .of_customer::<CheckoutSession>(customer.id())
            .filter(|it| it.is_open())
            .cloned()
            .collect();
        for session in sessions {
            checkout::expire_now(tx, session);
        }
        customers::remove(tx, customer);
    }
    tx.remove::<TestClock>(clock.id());
    events::emit(tx, "test_helpers.test_clock.deleted", &form, None);
}
