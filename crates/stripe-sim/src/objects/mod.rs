//! The resources: what is kept of each, its rules, its JSON form.

pub(crate) mod customers;
pub(crate) mod invoice_items;
pub(crate) mod invoices;
pub(crate) mod money;
pub(crate) mod prices;
pub(crate) mod products;
pub(crate) mod subscriptions;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::http::error::ApiError;
use crate::state::{Tx, View};

use customers::Customer;
use invoice_items::InvoiceItem;
use invoices::Invoice;
use prices::Price;
use products::Product;
use subscriptions::Subscription;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Customer,
    Product,
    Price,
    Subscription,
    InvoiceItem,
    Invoice,
}

impl Kind {
    pub(crate) const ALL: [Kind; 6] =
        [Kind::Customer, Kind::Product, Kind::Price, Kind::Subscription, Kind::InvoiceItem, Kind::Invoice];

    /// As Stripe's `object` field and messages have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Customer => "customer",
            Kind::Product => "product",
            Kind::Price => "price",
            Kind::Subscription => "subscription",
            Kind::InvoiceItem => "invoiceitem",
            Kind::Invoice => "invoice",
        }
    }

    /// As Stripe's URLs have it.
    pub(crate) fn collection(self) -> &'static str {
        match self {
            Kind::Customer => "customers",
            Kind::Product => "products",
            Kind::Price => "prices",
            Kind::Subscription => "subscriptions",
            Kind::InvoiceItem => "invoiceitems",
            Kind::Invoice => "invoices",
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Object {
    Customer(Customer),
    Product(Product),
    Price(Price),
    Subscription(Subscription),
    InvoiceItem(InvoiceItem),
    Invoice(Invoice),
}

/// What every resource has in common.
pub(crate) trait Resource: Clone + Into<Object> + 'static {
    const KIND: Kind;

    fn from_object(object: &Object) -> Option<&Self>;
    fn id(&self) -> &str;
    /// Stripe's JSON form.
    fn render(&self, view: &View<'_>) -> Value;
}

impl Object {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Object::Customer(_) => Kind::Customer,
            Object::Product(_) => Kind::Product,
            Object::Price(_) => Kind::Price,
            Object::Subscription(_) => Kind::Subscription,
            Object::InvoiceItem(_) => Kind::InvoiceItem,
            Object::Invoice(_) => Kind::Invoice,
        }
    }

    pub(crate) fn id(&self) -> &str {
        match self {
            Object::Customer(it) => it.id(),
            Object::Product(it) => it.id(),
            Object::Price(it) => it.id(),
            Object::Subscription(it) => it.id(),
            Object::InvoiceItem(it) => it.id(),
            Object::Invoice(it) => it.id(),
        }
    }

    pub(crate) fn render(&self, view: &View<'_>) -> Value {
        match self {
            Object::Customer(it) => it.render(view),
            Object::Product(it) => it.render(view),
            Object::Price(it) => it.render(view),
            Object::Subscription(it) => it.render(view),
            Object::InvoiceItem(it) => it.render(view),
            Object::Invoice(it) => it.render(view),
        }
    }
}

/// The tie between a resource and its variant of [`Object`] and [`Kind`].
macro_rules! variant {
    ($($name:ident),*) => {$(
        impl From<$name> for Object {
            fn from(it: $name) -> Self {
                Object::$name(it)
            }
        }
        impl $name {
            pub(crate) fn variant_of(object: &Object) -> Option<&Self> {
                match object {
                    Object::$name(it) => Some(it),
                    _ => None,
                }
            }
        }
    )*};
}
variant!(Customer, Product, Price, Subscription, InvoiceItem, Invoice);

/// A JSON form of several parts, with the fields that are null on every object here.
pub(crate) fn form<const N: usize>(unset: &[&str], parts: [Value; N]) -> Value {
    let mut fields: Map<String, Value> =
        unset.iter().map(|field| ((*field).to_owned(), Value::Null)).collect();
    for part in parts {
        if let Value::Object(part) = part {
            fields.extend(part);
        }
    }
    Value::Object(fields)
}

/// The object a URL names, or 404.
pub(crate) fn named<T: Resource>(tx: &Tx<'_>, id: &str) -> Result<T, ApiError> {
    tx.state().get::<T>(id).cloned().ok_or_else(|| ApiError::not_found(T::KIND.name(), id))
}

/// The object a parameter names, or 400.
pub(crate) fn referenced<T: Resource>(tx: &Tx<'_>, id: &str, param: &str) -> Result<T, ApiError> {
    tx.state().get::<T>(id).cloned().ok_or_else(|| ApiError::missing(T::KIND.name(), id, param))
}

/// Puts a resource and answers with its form.
pub(crate) fn saved<T: Resource>(tx: &mut Tx<'_>, resource: T) -> Value {
    tx.put(resource.clone());
    resource.render(&tx.view())
}
