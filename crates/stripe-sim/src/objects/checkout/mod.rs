//! Checkout sessions, for subscriptions: created by request, completed as a customer would. `form` is
//! the JSON form.

mod form;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::http::error::ApiError;
use crate::http::forms::{MetadataChange, Params};
use crate::http::lists::{Page, list as list_form, page_of};
use crate::objects::customers::{self, Customer};
use crate::objects::money::UnitAmount;
use crate::objects::prices::Price;
use crate::objects::subscriptions::{self, Offer, Subscription};
use crate::objects::{Resource as _, announced, named, referenced, saved};
use crate::state::State;
use crate::tx::Tx;

const SHORTEST_SECONDS: i64 = 30 * 60;
const LONGEST_SECONDS: i64 = 24 * 3600;
/// A customer who gives no address.
const SOMEONE: &str = "customer@example.com";
const MAX_LINE_ITEMS: usize = 20;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CheckoutSession {
    id: String,
    created: i64,
    expires_at: i64,
    status: Status,
    customer: Option<String>,
    customer_email: Option<String>,
    client_reference_id: Option<String>,
    success_url: Option<String>,
    cancel_url: Option<String>,
    /// The page where a person completes it; none once it is over.
    url: Option<String>,
    currency: String,
    items: Vec<LineItem>,
    /// The parameters of `subscription_data`, as they came.
    subscription_data: BTreeMap<String, String>,
    subscription: Option<String>,
    invoice: Option<String>,
    metadata: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct LineItem {
    id: String,
    price: String,
    quantity: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Open,
    Complete,
    Expired,
}

impl LineItem {
    fn take(tx: &mut Tx<'_>, mut params: Params) -> Result<Self, ApiError> {
        let item = Self {
            id: tx.ids().next("li"),
            price: params.required("price")?,
            quantity: params.integer_within("quantity", 0..=999_999_999)?.unwrap_or(1),
        };
        params.finish()?;
        Ok(item)
    }

    fn amount(&self, state: &State) -> i64 {
        let price = state.get::<Price>(&self.price);
        let unit = price.and_then(|price| UnitAmount::parse(&price.unit_amount_decimal));
        let quantity = u64::try_from(self.quantity).unwrap_or(0);
        let amount = unit.and_then(|unit| unit.times(quantity)).unwrap_or(0);
        i64::try_from(amount).unwrap_or(i64::MAX)
    }
}

impl CheckoutSession {
    fn offer(&self) -> Result<Offer, ApiError> {
        let items = self.items.iter().map(|item| (item.price.clone(), item.quantity)).collect();
        let data: Vec<(String, String)> =
            self.subscription_data.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        Offer::of_checkout(items, Params::parse(&data)?)
    }

    fn check_open(&self) -> Result<(), ApiError> {
        if self.status == Status::Open {
            return Ok(());
        }
        Err(ApiError::refused("Only Checkout Sessions with a status in [\"open\"] can be changed."))
    }

    pub(crate) fn is_open(&self) -> bool {
        self.status == Status::Open
    }

    /// Where the customer goes next.
    pub(crate) fn next_url(&self) -> Option<String> {
        let url = match self.status {
            Status::Complete => self.success_url.as_ref()?,
            Status::Open | Status::Expired => self.cancel_url.as_ref()?,
        };
        Some(url.replace("{CHECKOUT_SESSION_ID}", &self.id))
    }
}

pub(crate) fn create(tx: &mut Tx<'_>, mut params: Params) -> Result<Value, ApiError> {
    match params.one_of("mode", &["payment", "setup", "subscription"])?.as_deref() {
        Some("subscription") => {}
        Some(_) => return Err(params.wrong("mode", "The stand-in has only mode=subscription.")),
        None => return Err(params.missing("mode")),
    }
    params.one_of("ui_mode", &["hosted_page"])?;
    params.one_of("payment_method_collection", &["always"])?;
    let customer = params.text("customer")?;
    let customer_email = params.text("customer_email")?;
    if customer.is_some() && customer_email.is_some() {
        return Err(params.exclusive(&["customer", "customer_email"]));
    }
    let client_reference_id = params.text("client_reference_id")?;
    let success_url = params.required("success_url")?;
    let cancel_url = params.text("cancel_url")?;
    let expires_at = params.timestamp("expires_at")?;
    let asked = params.hashes("line_items")?;
    if asked.is_empty() {
        return Err(params.missing("line_items"));
    }
    if asked.len() > MAX_LINE_ITEMS {
        return Err(params.wrong("line_items", format!("There can be up to {MAX_LINE_ITEMS} line items.")));
    }
    let subscription_data = params.hash("subscription_data")?.map(|data| data.pairs()).unwrap_or_default();
    let metadata: MetadataChange = params.metadata()?;
    params.finish()?;

    if let Some(id) = &customer {
        Customer::referenced(tx, id)?;
    }
    let mut items = Vec::new();
    for item in asked {
        items.push(LineItem::take(tx, item)?);
    }
    let first = items.first().map(|item| item.price.clone()).unwrap_or_default();
    let currency = referenced::<Price>(tx, &first, "line_items[0][price]")?.currency;
    let now = tx.now();
    let expires_at = expires_at.unwrap_or(now + LONGEST_SECONDS);
    if !(now + SHORTEST_SECONDS..=now + LONGEST_SECONDS).contains(&expires_at) {
        let message = "expires_at must be between 30 minutes and 24 hours from now.";
        return Err(ApiError::refused(message).param("expires_at"));
    }
    let id = format!("cs_test_{}", tx.ids().letters(58));
    let host = tx.request().and_then(|request| request.host.as_deref()).unwrap_or("localhost");
    let mut session = CheckoutSession {
        url: Some(format!("http://{host}/checkout/{id}")),
        id,
        created: now,
        expires_at,
        status: Status::Open,
        customer,
        customer_email,
        client_reference_id,
        success_url: Some(success_url),
        cancel_url,
        currency,
        items,
        subscription_data,
        subscription: None,
        invoice: None,
        metadata: BTreeMap::new(),
    };
    metadata.apply(&mut session.metadata)?;
    // What the subscription would be refused for is refused here already.
    let offer = session.offer()?;
    offer.check(tx)?;
    // Stripe has no event for this.
    Ok(saved(tx, session))
}

/// The customer pays: there is a subscription now, and a customer if there was none.
///
/// # Errors
/// When the session is over, or the card is declined: the customer can try again then.
pub(crate) fn complete(
    tx: &mut Tx<'_>,
    id: &str,
    email: Option<String>,
    declined: bool,
) -> Result<Value, ApiError> {
    let mut session: CheckoutSession = named(tx, id)?;
    session.check_open()?;
    if declined {
        return Err(ApiError::card_declined());
    }
    let customer = match &session.customer {
        Some(id) => Customer::referenced(tx, id)?,
        None => {
            let email = email.or_else(|| session.customer_email.clone());
            customers::from_checkout(tx, email.unwrap_or_else(|| SOMEONE.to_owned()))
        }
    };
    session.customer = Some(customer.id().to_owned());
    let subscription = subscriptions::start(tx, customer, session.offer()?)?;
    session.invoice = named::<Subscription>(tx, &subscription)?.latest_invoice().map(str::to_owned);
    session.subscription = Some(subscription);
    session.status = Status::Complete;
    session.url = None;
    Ok(announced(tx, session, "checkout.session.completed"))
}

pub(crate) fn expire(tx: &mut Tx<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish()?;
    let session: CheckoutSession = named(tx, id)?;
    session.check_open()?;
    expire_now(tx, session);
    Ok(named::<CheckoutSession>(tx, id)?.render(tx.state()))
}

pub(crate) fn expire_now(tx: &mut Tx<'_>, mut session: CheckoutSession) {
    session.status = Status::Expired;
    session.url = None;
    announced(tx, session, "checkout.session.expired");
}

pub(crate) fn retrieve(tx: &mut Tx<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish()?;
    Ok(named::<CheckoutSession>(tx, id)?.render(tx.state()))
}

pub(crate) fn update(tx: &mut Tx<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let metadata = params.metadata()?;
    params.finish()?;
    let mut session: CheckoutSession = named(tx, id)?;
    metadata.apply(&mut session.metadata)?;
    Ok(saved(tx, session))
}

pub(crate) fn line_items(tx: &mut Tx<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::take(&mut params)?;
    params.finish()?;
    let session: CheckoutSession = named(tx, id)?;
    let state = tx.state();
    let items: Vec<Value> = session.items.iter().map(|item| item.render(state)).collect();
    let (items, has_more) = page.cut(items, "item", |item| item["id"].as_str().unwrap_or(""))?;
    Ok(list_form(&format!("/v1/checkout/sessions/{id}/line_items"), items, has_more))
}

pub(crate) fn list(tx: &mut Tx<'_>, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::take(&mut params)?;
    let customer = params.text("customer")?;
    let subscription = params.text("subscription")?;
    let status = params.one_of("status", &["complete", "expired", "open"])?;
    let created = params.time_range("created")?;
    params.finish()?;
    page_of::<CheckoutSession>(tx.state(), &page, customer.as_deref(), |session| {
        created.contains(session.created)
            && (subscription.is_none() || session.subscription == subscription)
            && status.as_ref().is_none_or(|status| json!(session.status) == status.as_str())
    })
}
