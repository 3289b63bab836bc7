//! An invoice that is made for what an account owes and no other invoice takes: its subscription at Stripe has ended, or it
//! never had one.

use uuid::Uuid;

use super::invoice::{NewInvoice, SETTLEMENT_ID, SUBSCRIPTION_ID};

/// Names of settlements are made within this namespace.
const NAMESPACE: Uuid = Uuid::from_u128(0x2f0a_93c4_61d7_4b0e_8a57_c3de_19b6_0e44);

/// Items an invoice has at most.
pub const MAX_ITEMS: usize = 250;

/// A settlement, as far as it has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// In the invoice's metadata.
    pub settlement_id: Uuid,
    /// Account.
    pub eco_id: String,
    /// Number within the account, from 1.
    pub number: i32,
    /// From 1; a new one begins where the one before cannot succeed any more.
    pub attempt: i32,
    /// Whether the keys of the attempt may still be used.
    pub is_young: bool,
    /// The invoice as it is sent.
    pub invoice: NewInvoice,
    /// The invoice at Stripe, once it is there.
    pub invoice_id: Option<String>,
    /// Items that are put on it.
    pub item_ids: Vec<String>,
    /// Whether they are on it.
    pub is_filled: bool,
}

/// What is sent next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The empty draft is made.
    Create,
    /// Items are put on it.
    Fill,
    /// It is finalised.
    Finalize,
}

impl Stage {
    fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Fill => "fill",
            Self::Finalize => "finalize",
        }
    }
}

/// The name of an account's settlement: the same number always has the same.
pub fn settlement_id(eco_id: &str, number: i32) -> Uuid {
    Uuid::new_v5(&NAMESPACE, format!("{eco_id}/{number}").as_bytes())
}

/// The invoice of a settlement; an empty subscription: of an account that never had one.
pub fn invoice(eco_id: &str, number: i32, customer: &str, subscription: &str, currency: &str) -> NewInvoice {
    let id = settlement_id(eco_id, number).to_string();
    let subscription = Some(subscription).filter(|subscription| !subscription.is_empty());
    let description = match subscription {
        Some(_) => "API overage after the end of the subscription",
        None => "API overage",
    };
    let names = [("eco_id", eco_id), (SETTLEMENT_ID, &id)];
    let names = names.into_iter().chain(subscription.map(|subscription| (SUBSCRIPTION_ID, subscription)));
    NewInvoice {
        customer: customer.to_owned(),
        subscription: subscription.map(str::to_owned),
        currency: currency.to_owned(),
        description: description.to_owned(),
        metadata: names.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
    }
}

impl Settlement {
    /// The subscription whose items are put on it; empty: those of an account that never had one.
    pub fn subscription(&self) -> &str {
        self.invoice.metadata.get(SUBSCRIPTION_ID).map_or("", String::as_str)
    }

    /// What is to be sent next.
    pub fn stage(&self) -> Stage {
        match (&self.invoice_id, self.is_filled) {
            (None, _) => Stage::Create,
            (Some(_), false) => Stage::Fill,
            (Some(_), true) => Stage::Finalize,
        }
    }

    /// Idempotency key of what is sent in this attempt.
    pub fn key(&self) -> String {
        let stage = self.stage().as_str();
        format!("nexus-settlement-{}-{}-{stage}-{}", self.eco_id, self.number, self.attempt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_of_every_attempt_has_a_key_of_its_own() {
        let mut settlement = Settlement {
            settlement_id: settlement_id("eco_a", 2),
            eco_id: "eco_a".to_owned(),
            number: 2,
            attempt: 1,
            is_young: true,
            invoice: invoice("eco_a", 2, "cus_1", "sub_1", "USD"),
            invoice_id: None,
            item_ids: vec![],
            is_filled: false,
        };
        assert_eq!(settlement.key(), "nexus-settlement-eco_a-2-create-1");
        settlement.invoice_id = Some("in_1".to_owned());
        assert_eq!(settlement.key(), "nexus-settlement-eco_a-2-fill-1");
        settlement.attempt = 2;
        settlement.is_filled = true;
        assert_eq!(settlement.key(), "nexus-settlement-eco_a-2-finalize-2");
        let named = settlement.invoice.metadata.get(SETTLEMENT_ID);
        assert_eq!(named, Some(&settlement.settlement_id.to_string()));
        assert_ne!(settlement_id("eco_a", 1), settlement_id("eco_a", 2));
        assert_ne!(settlement_id("eco_a", 1), settlement_id("eco_b", 1));
    }
}
