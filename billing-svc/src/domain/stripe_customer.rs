//! A customer that is made at Stripe for an account.

use nexus_core::id::EcoId;

/// A customer, exactly as it is sent: every attempt of a key sends the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCustomer {
    /// Account that it is for.
    pub eco_id: EcoId,
    /// Its email, if known.
    pub email: Option<String>,
}

/// A customer that is to be made, as far as that has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenCustomer {
    /// As it is sent.
    pub customer: NewCustomer,
    /// From 1.
    pub attempt: i32,
    /// Whether the key of the attempt may still be used.
    pub is_young: bool,
    /// How often it failed.
    pub failures: i32,
}

impl WrittenCustomer {
    /// Idempotency key of the attempt.
    pub fn key(&self) -> String {
        format!("nexus-customer-{}-{}", self.customer.eco_id, self.attempt)
    }
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CustomerOutcome {
    /// It is made, and the account has it.
    Made,
    /// Stripe refused it.
    Refused,
    /// The account came to have another.
    Unneeded,
}

impl CustomerOutcome {
    /// As a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::Refused => "refused",
            Self::Unneeded => "unneeded",
        }
    }
}
