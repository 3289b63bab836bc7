//! An API key, and which texts open it.

use std::time::Duration;

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

/// A secret that opens a key.
#[derive(Debug, Clone)]
pub struct Secret {
    /// Its SHA-256.
    pub sha256: Vec<u8>,
    /// How long it is still accepted, where another has replaced it.
    pub grace_left: Option<Duration>,
}

/// A key with the secrets that open it, as it was read.
#[derive(Debug, Clone)]
pub struct StoredKey {
    /// The key.
    pub key: ApiKey,
    /// Its secret, and those before it that were in grace.
    pub secrets: Vec<Secret>,
    /// Its last use was noted too long ago (or never) to leave it at that.
    pub use_is_stale: bool,
}

impl StoredKey {
    /// Whether this text opens it, so long after it was read: the key is active and the secret is one of its
    /// secrets.
    pub fn opens_to(&self, text: &ApiKeyText, age: Duration) -> bool {
        // All are compared, so that the time does not tell which of them it is.
        let right = self.secrets.iter().fold(false, |right, secret| {
            let accepted = secret.grace_left.is_none_or(|left| age < left);
            (text.matches(&secret.sha256) & accepted) | right
        });
        right && text.key_id() == self.key.key_id && self.key.status == Status::Active
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn stored(text: &ApiKeyText, secrets: &[(&ApiKeyText, Option<Duration>)]) -> StoredKey {
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
            secrets: secrets
                .iter()
                .map(|(text, grace_left)| Secret {
                    sha256: text.secret_sha256().to_vec(),
                    grace_left: *grace_left,
                })
                .collect(),
            use_is_stale: false,
        }
    }

    #[test]
    fn any_of_its_secrets_opens_an_active_key_and_none_a_revoked_one() {
        let mut rng = rand::rng();
        let first = ApiKeyText::random(&mut rng);
        let [second, third] =
            [(); 2].map(|()| ApiKeyText::random_for(first.key_id(), &mut rng).expect("its own id"));
        let hour = Duration::from_secs(3600);
        let mut key = stored(&first, &[(&second, None), (&first, Some(hour))]);
        assert!(key.opens_to(&first, NOW) && key.opens_to(&second, NOW) && !key.opens_to(&third, NOW));
        key.key.status = Status::Revoked;
        assert!(!key.opens_to(&first, NOW) && !key.opens_to(&second, NOW));
    }

    #[test]
    fn a_replaced_secret_ends_with_its_grace_though_the_key_is_not_read_again() {
        let mut rng = rand::rng();
        let old = ApiKeyText::random(&mut rng);
        let new = ApiKeyText::random_for(old.key_id(), &mut rng).expect("its own id");
        let hour = Duration::from_secs(3600);
        let key = stored(&old, &[(&new, None), (&old, Some(hour))]);
        assert!(key.opens_to(&old, hour - Duration::from_nanos(1)) && !key.opens_to(&old, hour));
        assert!(key.opens_to(&new, hour * 24));
    }
}
