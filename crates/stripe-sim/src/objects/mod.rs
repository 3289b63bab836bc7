//! The resources: what is kept of each, its rules, its JSON form.

pub(crate) mod checkout;
pub(crate) mod customers;
pub(crate) mod events;
pub(crate) mod invoice_items;
pub(crate) mod invoices;
pub(crate) mod money;
pub(crate) mod prices;
pub(crate) mod products;
pub(crate) mod subscriptions;
pub(crate) mod test_clocks;
pub(crate) mod webhooks;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::http::error::ApiError;
use crate::state::State;
use crate::tx::Tx;

use checkout::CheckoutSession;
use customers::Customer;
use events::Event;
use invoice_items::InvoiceItem;
use invoices::Invoice;
use prices::Price;
use products::Product;
use subscriptions::Subscription;
use test_clocks::TestClock;
use webhooks::WebhookEndpoint;

/// What every resource has in common.
pub(crate) trait Resource: Clone + Into<Object> + 'static {
    const KIND: Kind;

    fn from_object(object: &Object) -> Option<&Self>;
    fn id(&self) -> &str;
    /// Stripe's JSON form.
    fn render(&self, state: &State) -> Value;
    /// The customer it belongs to.
    fn customer(&self) -> Option<&str> {
        None
    }
    /// When something next happens to it by itself.
    fn due(&self) -> Option<i64> {
        None
    }
}

/// The kinds of resources: their type, Stripe's name in the `object` field and messages, and the
/// collection in its URLs. What falls due at once comes in the order of this list.
macro_rules! resources {
    ($($kind:ident: $name:literal, $collection:literal;)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub(crate) enum Kind {
            $($kind,)*
        }

        impl Kind {
            pub(crate) const ALL: &[Kind] = &[$(Kind::$kind,)*];

            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Kind::$kind => $name,)*
                }
            }

            pub(crate) fn collection(self) -> &'static str {
                match self {
                    $(Kind::$kind => $collection,)*
                }
            }
        }

        #[derive(Clone, Debug, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub(crate) enum Object {
            $($kind($kind),)*
        }

        impl Object {
            pub(crate) fn kind(&self) -> Kind {
                match self {
                    $(Object::$kind(_) => Kind::$kind,)*
                }
            }

            pub(crate) fn id(&self) -> &str {
                match self {
                    $(Object::$kind(it) => it.id(),)*
                }
            }

            pub(crate) fn render(&self, state: &State) -> Value {
                match self {
                    $(Object::$kind(it) => it.render(state),)*
                }
            }

            pub(crate) fn customer(&self) -> Option<&str> {
                match self {
                    $(Object::$kind(it) => it.customer(),)*
                }
            }

            pub(crate) fn due(&self) -> Option<i64> {
                match self {
                    $(Object::$kind(it) => it.due(),)*
                }
            }
        }

        $(
            impl From<$kind> for Object {
                fn from(it: $kind) -> Self {
                    Object::$kind(it)
                }
            }

            impl $kind {
                pub(crate) fn variant_of(object: &Object) -> Option<&Self> {
                    match object {
                        Object::$kind(it) => Some(it),
                        _ => None,
                    }
                }
            }
        )*
    };
}

resources! {
    Customer: "customer", "customers";
    Product: "product", "products";
    Price: "price", "prices";
    Subscription: "subscription", "subscriptions";
    InvoiceItem: "invoiceitem", "invoiceitems";
    Invoice: "invoice", "invoices";
    CheckoutSession: "checkout.session", "checkout/sessions";
    TestClock: "test_helpers.test_clock", "test_helpers/test_clocks";
    WebhookEndpoint: "webhook_endpoint", "webhook_endpoints";
    Event: "event", "events";
}

/// Lets happen to the object what is due to it now.
pub(crate) fn fall_due(tx: &mut Tx<'_>, object: Object) {
    match object {
        Object::Subscription(it) => subscriptions::fall_due(tx, it),
        Object::Invoice(it) => invoices::fall_due(tx, it),
        Object::CheckoutSession(it) => checkout::expire_now(tx, it),
        Object::TestClock(it) => test_clocks::remove(tx, &it),
        // Nothing happens to the others by itself: they are never due.
        Object::Customer(_)
        | Object::Product(_)
        | Object::Price(_)
        | Object::InvoiceItem(_)
        | Object::WebhookEndpoint(_)
        | Object::Event(_) => {}
    }
}

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
    resource.render(tx.state())
}

/// Puts a resource, emits an event of that type, and answers with the resource's form.
pub(crate) fn announced<T: Resource>(tx: &mut Tx<'_>, resource: T, event: &str) -> Value {
    let form = saved(tx, resource);
    events::emit(tx, event, &form, None);
    form
}

/// Puts a resource that was there before; if its form has changed, emits an event of that type
/// which says what it was. Answers with the form.
pub(crate) fn changed<T: Resource>(tx: &mut Tx<'_>, resource: T, event: &str) -> Value {
    let before = form_of::<T>(tx, resource.id());
    let form = saved(tx, resource);
    tell_of_change(tx, event, before.as_ref(), &form);
    form
}

/// Likewise for a resource that `work` changes, in whatever way.
pub(crate) fn retold<T: Resource, R>(
    tx: &mut Tx<'_>,
    id: &str,
    event: &str,
    work: impl FnOnce(&mut Tx<'_>) -> Result<R, ApiError>,
) -> Result<R, ApiError> {
    let before = form_of::<T>(tx, id);
    let result = work(tx)?;
    if let Some(form) = form_of::<T>(tx, id) {
        tell_of_change(tx, event, before.as_ref(), &form);
    }
    Ok(result)
}

fn form_of<T: Resource>(tx: &Tx<'_>, id: &str) -> Option<Value> {
    tx.state().get::<T>(id).map(|it| it.render(tx.state()))
}

fn tell_of_change(tx: &mut Tx<'_>, event: &str, before: Option<&Value>, form: &Value) {
    let previous = before.map(|before| events::previous_attributes(before, form));
    if previous.as_ref().is_none_or(|previous| !previous.is_empty()) {
        events::emit(tx, event, form, previous);
    }
}
