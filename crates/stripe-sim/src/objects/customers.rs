//! Customers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::http::error::ApiError;
use crate::http::forms::{MetadataChange, Params};
use crate::http::lists::{Page, page_of};
use crate::objects::subscriptions::{self, Subscription};
use crate::objects::{Kind, Object, Resource, named, saved};
use crate::state::{Tx, View};

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
    deleted: bool,
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

    fn render(&self, _: &View<'_>) -> Value {
        if self.deleted {
            return json!({ "id": self.id, "object": "customer", "deleted": true });
        }
        json!({
            "id": self.id,
            "object": "customer",
            "address": null,
            "balance": 0,
            "created": self.created,
            "currency": self.currency,
            "default_source": null,
            "delinquent": false,
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
            "test_clock": null,
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
                tx.put(self.clone());
                Ok(())
            }
        }
    }

    /// The next invoice number of this customer.
    pub(crate) fn next_invoice_number(&mut self, tx: &mut Tx<'_>) -> String {
        let number = format!("{}-{:04}", self.invoice_prefix, self.next_invoice_sequence);
        self.next_invoice_sequence += 1;
        tx.put(self.clone());
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

pub(crate) fn create(tx: &mut Tx<'_>, params: Params) -> Result<Value, ApiError> {
    let fields = Fields::take(params)?;
    let mut customer = Customer {
        id: tx.ids().next("cus"),
        created: tx.now(),
        invoice_prefix: tx.ids().letters(8).to_uppercase(),
        next_invoice_sequence: 1,
        ..Customer::default()
    };
    fields.apply(&mut customer)?;
    Ok(saved(tx, customer))
}

pub(crate) fn retrieve(tx: &mut Tx<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish()?;
    Ok(named::<Customer>(tx, id)?.render(&tx.view()))
}

pub(crate) fn update(tx: &mut Tx<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    let fields = Fields::take(params)?;
    let mut customer = existing(tx, id)?;
    fields.apply(&mut customer)?;
    Ok(saved(tx, customer))
}

/// Deleting a customer ends its subscriptions at once; its invoices and items stay.
pub(crate) fn delete(tx: &mut Tx<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish()?;
    let customer = existing(tx, id)?;
    let active: Vec<Subscription> = tx
        .state()
        .all::<Subscription>()
        .filter(|subscription| subscription.is_of(id) && subscription.ended(tx.now()).is_none())
        .cloned()
        .collect();
    for subscription in active {
        subscriptions::end(tx, subscription);
    }
    Ok(saved(tx, Customer { deleted: true, ..customer }))
}

fn existing(tx: &Tx<'_>, id: &str) -> Result<Customer, ApiError> {
    let customer: Customer = named(tx, id)?;
    if customer.deleted { Err(ApiError::not_found("customer", id)) } else { Ok(customer) }
}

pub(crate) fn list(tx: &mut Tx<'_>, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::take(&mut params)?;
    let email = params.text("email")?;
    let created = params.time_range("created")?;
    params.finish()?;
    page_of::<Customer>(tx.view(), &page, |customer| {
        !customer.deleted
            && created.contains(customer.created)
            && (email.is_none() || customer.email == email)
    })
}

/// The fault of `/_sim/customers/{id}`.
pub(crate) fn set_declined(tx: &mut Tx<'_>, id: &str, declined: bool) -> Result<Value, ApiError> {
    let customer = existing(tx, id)?;
    Ok(saved(tx, Customer { declined, ..customer }))
}
