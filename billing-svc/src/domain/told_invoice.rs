//! An invoice at Stripe as an event told of it: for people who look, and for nothing that is decided here.

use chrono::{DateTime, Utc};
use nexus_core::money::{Currency, Micros};
use serde_json::Value;

/// State of an invoice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvoiceStatus {
    /// It is still being made up.
    Draft,
    /// It is final, and to be paid.
    Open,
    /// It is paid.
    Paid,
    /// It is not expected to be paid any more.
    Uncollectible,
    /// It was made void.
    Void,
}

impl InvoiceStatus {
    fn of(word: &str) -> Option<Self> {
        Some(match word {
            "draft" => Self::Draft,
            "open" => Self::Open,
            "paid" => Self::Paid,
            "uncollectible" => Self::Uncollectible,
            "void" => Self::Void,
            _ => return None,
        })
    }
}

/// An invoice, as it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToldInvoice {
    /// Id at Stripe.
    pub invoice_id: String,
    /// Number, once it has one.
    pub number: Option<String>,
    /// State; `None`: one that is not known here.
    pub status: Option<InvoiceStatus>,
    /// What it comes to.
    pub due: Micros,
    /// What is still to be paid.
    pub remaining: Micros,
    /// Of the amounts.
    pub currency: Currency,
    /// Where it is seen and paid, once it is final.
    pub hosted_url: Option<String>,
    /// When it was made.
    pub created: DateTime<Utc>,
    /// When the event was made.
    pub told: DateTime<Utc>,
    /// Whether Stripe has tried to collect it.
    pub attempted: bool,
}

impl ToldInvoice {
    /// Reads the object of an event; `None`: it is not in the form of an invoice.
    pub fn read(object: &Value, told: DateTime<Utc>) -> Option<Self> {
        let text = |name: &str| object[name].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let currency: Currency = text("currency")?.parse().ok()?;
        let amount = |name: &str| currency.minor_unit().from_minor(object[name].as_i64()?);
        Some(Self {
            invoice_id: text("id")?,
            number: text("number"),
            status: text("status").and_then(|word| InvoiceStatus::of(&word)),
            due: amount("amount_due")?,
            remaining: amount("amount_remaining")?,
            currency,
            // It becomes a link: nothing but a page on the web.
            hosted_url: text("hosted_invoice_url").filter(|url| url.starts_with("https://")),
            created: DateTime::from_timestamp(object["created"].as_i64()?, 0)?,
            told,
            attempted: object["attempted"].as_bool().unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn open() -> Value {
        json!({"id": "in_1", "number": "A-1", "status": "open", "amount_due": 4_900, "amount_remaining": 4_900,
               "currency": "usd", "hosted_invoice_url": "https://invoice.stripe.com/i/1", "created": 1_790_000_000,
               "attempted": true})
    }

    fn read(object: &Value) -> Option<ToldInvoice> {
        ToldInvoice::read(object, DateTime::UNIX_EPOCH)
    }

    #[test]
    fn amounts_are_in_the_units_of_the_currency() {
        let invoice = read(&open()).expect("an invoice");
        assert_eq!((invoice.due, invoice.status), (Micros(49_000_000), Some(InvoiceStatus::Open)));
        let mut yen = open();
        yen["currency"] = "jpy".into();
        assert_eq!(read(&yen).map(|invoice| invoice.due), Some(Micros(4_900_000_000)));
    }

    #[test]
    fn only_a_page_on_the_web_becomes_a_link() {
        for (url, kept) in
            [("https://a.example", true), ("javascript:alert(1)", false), ("http://a.example", false)]
        {
            let mut object = open();
            object["hosted_invoice_url"] = url.into();
            assert_eq!(read(&object).expect("an invoice").hosted_url.is_some(), kept, "{url}");
        }
    }

    #[test]
    fn what_is_no_invoice_is_none() {
        for missing in ["id", "amount_due", "amount_remaining", "currency", "created"] {
            let mut object = open();
            object[missing] = Value::Null;
            assert_eq!(read(&object), None, "{missing}");
        }
        let mut new = open();
        new["status"] = "another".into();
        assert_eq!(read(&new).map(|invoice| invoice.status), Some(None));
    }
}
