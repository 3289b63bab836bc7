//! Customers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::http::error::ApiError;
use crate::http::forms::{MetadataChange, Params};
use crate::http::lists::{Page, page_of};
use crate::objects::invoices::Invoice;
use crate::objects::subscriptions::{self, Subscription};
use crate::objects::test_clocks::{self, TestClock};
use crate::objects::{Kind, Object, Resource, announced, changed, events, named, referenced, saved};
use crate::state::State;
use crate::tx::Tx;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Customer {
    id: String,
    created: i64,
    email: Option<String>,
    name: Option<String>,
    phone: Option<String>,
    description: Option<String>,
    metadata: BTreeMap<String, String>,
    /// Set by the first invoice item, invoice or subscription.
    currency: Option<String>,
    invoice_prefix: String,
    next_invoice_sequence: u32,
    pub(crate) deleted: bool,
    /// Negative: a credit towards the next invoices. Positive: owed with the next one.
    #[serde(default)]
    pub(crate) balance: i64,
    #[serde(default)]
    pub(crate) test_clock: Option<String>,
    /// A fault: payments of invoices fail, all else goes on.
    #[serde(default)]
    payment_fails: bool,
    /// A fault: whatever would charge the customer is answered with `card_declined`.
    declined: bool,
}

impl Resource for Customer {
    const KIND: Kind = Kind::Customer;

    fn from_object(object: &Object) -> Option<&Self> {
        Self::variant_of(object)
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn render(&self, state: &State) -> Value {
        if self.deleted {
            return json!({ "id": self.id, "object": "customer", "deleted": true });
        }
        let delinquent = state.of_customer::<Invoice>(&self.id).any(Invoice::is_overdue);
        json!({
            "id": self.id,
            "object": "customer",
            "address": null,
            "balance": self.balance,
            "created": self.created,
            "currency": self.currency,
            "default_source": null,
            "delinquent": delinquent,
            "description": self.description,
            "discount": null,
            "email": self.email,
            "invoice_prefix": self.invoice_prefix,
            "invoice_settings": {
                "custom_fields": null,
                "default_payment_method": null,
                "footer": null,
                "rendering_options": null,
            },
            "livemode": false,
            "metadata": self.metadata,
            "name": self.name,
            "next_invoice_sequence": self.next_invoice_sequence,
            "phone": self.phone,
            "preferred_locales": [],
            "shipping": null,
            "tax_exempt": "none",
            "test_clock": self.test_clock,
        })
    }
}

impl Customer {
    /// The customer a parameter names. A deleted one is as good as missing.
    pub(crate) fn referenced(tx: &Tx<'_>, id: &str) -> Result<Self, ApiError> {
        let found = tx.state().get::<Self>(id).filter(|customer| !customer.deleted);
        found.cloned().ok_or_else(|| ApiError::missing("customer", id, "customer"))
    }

    pub(crate) fn check_not_declined(&self) -> Result<(), ApiError> {
        if self.declined { Err(ApiError::card_declined()) } else { Ok(()) }
    }

    pub(crate) fn currency(&self) -> Option<&str> {
        self.currency.as_deref()
    }

    /// Binds the customer to `currency`, or refuses when it is bound to another.
    pub(crate) fn bind_currency(&mut self, tx: &mut Tx<'_>, currency: &str) -> Result<(), ApiError> {
        match &self.currency {
            Some(bound) if bound == currency => Ok(()),
            Some(bound) => Err(ApiError::refused(format!(
                "You cannot combine currencies on a single customer. This customer has had a \
                 subscription, invoice or invoice item in {bound}."
            ))
            .param("currency")),
            None => {
                self.currency = Some(currency.to_owned());
                changed(tx, self.clone(), "customer.updated");
                Ok(())
            }
        }
    }

    /// Whether payments of invoices succeed.
    pub(crate) fn pays(&self) -> bool {
        !self.declined && !self.payment_fails && !self.deleted
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.deleted
    }

    pub(crate) fn email(&self) -> Option<&str> {
        self.email.as_deref()
    }

    /// The next invoice number of this customer.
    pub(crate) fn next_invoice_number(&mut self) -> String {
        let number = format!("{}-{:04}", self.invoice_prefix, self.next_invoice_sequence);
        self.next_invoice_sequence += 1;
        number
    }
}

/// The fields both create and update take.
struct Fields {
    email: Option<Option<String>>,
    name: Option<Option<String>>,
    phone: Option<Option<String>>,
    description: Option<Option<String>>,
    metadata: MetadataChange,
}

impl Fields {
    fn take(mut params: Params) -> Result<Self, ApiError> {
        let fields = Self {
            email: params.clearable("email")?,
            name: params.clearable("name")?,
            phone: params.clearable("phone")?,
            description: params.clearable("description")?,
            metadata: params.metadata()?,
        };
        if let Some(Some(email)) = &fields.email
            && !email.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty())
        {
            let message = format!("Invalid email address: {email}");
            return Err(ApiError::invalid("email_invalid", "email", message));
        }
        params.finish()?;
        Ok(fields)
    }

    fn apply(self, customer: &mut Customer) -> Result<(), ApiError> {
        self.metadata.apply(&mut customer.metadata)?;
        let texts = [
            (self.email, &mut customer.email),
            (self.name, &mut customer.name),
            (self.phone, &mut customer.phone),
            (self.description, &mut customer.description),
        ];
        for (given, field) in texts {
            if let Some(given) = given {
                *field = given;
            }
        }
        Ok(())
    }
}

pub(crate) fn create(tx: &mut Tx<'_>, mut params: Params) -> Result<Value, ApiError> {
    let test_clock = params.text("test_clock")?;
    let balance = params.integer("balance")?.unwrap_or(0);
    let fields = Fields::take(params)?;
    if let Some(id) = &test_clock {
        referenced::<TestClock>(tx, id, "test_clock")?;
        test_clocks::check_room(tx, id)?;
    }
    let mut customer = new(tx);
    customer.test_clock = test_clock;
    customer.balance = balance;
    fields.apply(&mut customer)?;
    Ok(announced(tx, customer, "customer.created"))
}

fn new(tx: &mut Tx<'_>) -> Customer {
    Customer {
        id: tx.ids().next("cus"),
        created: tx.now(),
        invoice_prefix: tx.ids().letters(8).to_uppercase(),
        next_invoice_sequence: 1,
        ..Customer::default()
    }
}

/// The customer that a checkout session makes.
pub(crate) fn from_checkout(tx: &mut Tx<'_>, email: String) -> Customer {
    let customer = Customer { email: Some(email), ..new(tx) };
    announced(tx, customer.clone(), "customer.created");
    customer
}

pub(crate) fn retrieve(tx: &mut Tx<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish()?;
    Ok(named::<Customer>(tx, id)?.render(tx.state()))
}

pub(crate) fn update(tx: &mut Tx<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let balance = params.integer("balance")?;
    let fields = Fields::take(params)?;
    let mut customer = existing(tx, id)?;
    customer.balance = balance.unwrap_or(customer.balance);
    fields.apply(&mut customer)?;
    Ok(changed(tx, customer, "customer.updated"))
}

/// Deleting a customer ends its subscriptions at once; its invoices and items stay.
pub(crate) fn delete(tx: &mut Tx<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish()?;
    let customer = existing(tx, id)?;
    Ok(remove(tx, customer))
}

/// Answers with what is left of it.
pub(crate) fn remove(tx: &mut Tx<'_>, customer: Customer) -> Value {
    let active: Vec<Subscription> = tx
        .state()
        .of_customer::<Subscription>(customer.id())
        .filter(|subscription| !subscription.is_over())
        .cloned()
        .collect();
    for subscription in active {
        subscriptions::end(tx, subscription, "cancellation_requested");
    }
    let form = customer.render(tx.state());
    let deleted = saved(tx, Customer { deleted: true, ..customer });
    events::emit(tx, "customer.deleted", &form, None);
    deleted
}

fn existing(tx: &Tx<'_>, id: &str) -> Result<Customer, ApiError> {
    let customer: Customer = named(tx, id)?;
    if customer.deleted { Err(ApiError::not_found("customer", id)) } else { Ok(customer) }
}

pub(crate) fn list(tx: &mut Tx<'_>, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::take(&mut params)?;
    let email = params.text("email")?;
    let created = params.time_range("created")?;
    let test_clock = params.text("test_clock")?;
    params.finish()?;
    page_of::<Customer>(tx.state(), &page, None, |customer| {
        !customer.deleted
            && customer.test_clock == test_clock
            && created.contains(customer.created)
            && (email.is_none() || customer.email == email)
    })
}

/// What `/_sim/customers/{id}` can do to a customer.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Poison {
    Declined(bool),
    PaymentFails(bool),
    Deleted(bool),
    /// Binds the customer to a currency, perhaps to another than it has.
    Currency(String),
}

pub(crate) fn poison(tx: &mut Tx<'_>, id: &str, poison: Poison) -> Result<Value, ApiError> {
    let mut customer = existing(tx, id)?;
    match poison {
        Poison::Declined(declined) => customer.declined = declined,
        Poison::PaymentFails(fails) => customer.payment_fails = fails,
        Poison::Currency(currency) => customer.currency = Some(currency.to_lowercase()),
        Poison::Deleted(true) => return delete(tx, id, Params::default()),
        Poison::Deleted(false) => return Err(ApiError::refused("A deleted customer stays deleted.")),
    }
    Ok(saved(tx, customer))
}
