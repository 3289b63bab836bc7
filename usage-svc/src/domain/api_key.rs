//! An API key, and which texts open it.

use chrono::{DateTime, Utc};
use nexus_core::id::{ApiKeyText, EcoId};

/// Whether a key is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is.
    Active,
    /// Never again.
    Revoked,
}

/// A key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Public id.
    pub key_id: String,
    /// Account it belongs to.
    pub eco_id: EcoId,
    /// Name for people.
    pub name: String,
    /// What it may do; empty: everything a key may.
    pub scopes: Vec<String>,
    /// Metered apart.
    pub test_mode: bool,
    /// Whether it is accepted.
    pub status: Status,
    /// When it was made.
    pub created: DateTime<Utc>,
    /// When it was last used, to the minute; `None`: never.
    pub last_used: Option<DateTime<Utc>>,
}

/// A key with the hashes of the secrets that open it now.
#[derive(Debug, Clone)]
pub struct StoredKey {
    /// The key.
    pub key: ApiKey,
    /// SHA-256 of its secret, and of those before it that are in grace.
    pub secrets: Vec<Vec<u8>>,
    /// Its last use was noted too long ago (or never) to leave it at that.
    pub use_is_stale: bool,
}

impl StoredKey {
    /// Whether this text opens it: the key is active and the secret is one of its secrets.
    pub fn opens_to(&self, text: &ApiKeyText) -> bool {
        // All are compared, so that the time does not tell which of them it is.
        let right = self.secrets.iter().fold(false, |right, stored| text.matches(stored) | right);
        right && text.key_id() == self.key.key_id && self.key.status == Status::Active
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(text: &ApiKeyText, secrets: &[&ApiKeyText]) -> StoredKey {
        StoredKey {
            key: ApiKey {
                key_id: text.key_id().to_owned(),
                eco_id: EcoId::parse("eco_a").expect("an id"),
                name: "k".to_owned(),
                scopes: Vec::new(),
                test_mode: false,
                status: Status::Active,
                created: DateTime::UNIX_EPOCH,
                last_used: None,
            },
            secrets: secrets.iter().map(|text| text.secret_sha256().to_vec()).collect(),
            use_is_stale: false,
        }
    }

    #[test]
    fn any_of_its_secrets_opens_an_active_key_and_none_a_revoked_one() {
        let mut rng = rand::rng();
        let first = ApiKeyText::random(&mut rng);
        let [second, third] =
            [(); 2].map(|()| ApiKeyText::random_for(first.key_id(), &mut rng).expect("its own id"));
        let mut key = stored(&first, &[&second, &first]);
        assert!(key.opens_to(&first) && key.opens_to(&second) && !key.opens_to(&third));
        key.key.status = Status::Revoked;
        assert!(!key.opens_to(&first) && !key.opens_to(&second));
    }
}
