//! Ids of accounts and API keys.

use std::fmt;

use hmac::{Hmac, Mac};
use rand::{RngCore, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not an account id.
    #[error("must be `eco_` and 1 to 60 characters of [A-Za-z0-9_.:-]")]
    Account,
    /// Not an API key.
    #[error("must be `eco_api_<22 base62>.<22 base62>`")]
    ApiKey,
    /// Not the public id of an API key.
    #[error("must be `eco_api_<22 base62>`")]
    ApiKeyId,
}

/// Id of an account: `eco_` and 1 to 60 characters of `[A-Za-z0-9_.:-]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EcoId(String);

impl EcoId {
    /// Checks a text.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        Self::check(text).map(|()| Self(text.to_owned()))
    }

    fn check(text: &str) -> Result<(), IdError> {
        let tail = text.strip_prefix("eco_").ok_or(IdError::Account)?;
        let allowed = |c: u8| c.is_ascii_alphanumeric() || b"_.:-".contains(&c);
        if tail.is_empty() || tail.len() > 60 || !tail.bytes().all(allowed) {
            return Err(IdError::Account);
        }
        Ok(())
    }

    /// A new random id: `eco_` and 22 base62 characters (131 bits).
    pub fn random(rng: &mut impl RngCore) -> Self {
        Self(format!("eco_{}", base62(rng)))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EcoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for EcoId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        Self::check(&text).map(|()| Self(text))
    }
}

impl From<EcoId> for String {
    fn from(id: EcoId) -> Self {
        id.0
    }
}

/// What ids of API keys begin with.
pub const KEY_PREFIX: &str = "eco_api_";
const PART_LEN: usize = 22;

/// An API key as its owner holds it: `<key_id>.<secret>`. Its `Debug` form hides the secret.
#[derive(Clone)]
pub struct ApiKeyText {
    key_id: String,
    secret: String,
}

impl ApiKeyText {
    /// Checks a text; the error never repeats it.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let (key_id, secret) = text.split_once('.').ok_or(IdError::ApiKey)?;
        let id = key_id.strip_prefix(KEY_PREFIX).ok_or(IdError::ApiKey)?;
        if !is_base62_part(id) || !is_base62_part(secret) {
            return Err(IdError::ApiKey);
        }
        Ok(Self { key_id: key_id.to_owned(), secret: secret.to_owned() })
    }

    /// A new random key.
    pub fn random(rng: &mut impl RngCore) -> Self {
        Self { key_id: format!("{KEY_PREFIX}{}", base62(rng)), secret: base62(rng) }
    }

    /// The key of a repeatable request: the same server secret, account and request id give the same
    /// key, so that a retry gets the first answer although only a hash is stored.
    pub fn derive(server_secret: &[u8], eco_id: &EcoId, request_id: Uuid) -> Self {
        let part = |what| derived(server_secret, what, eco_id.as_str(), request_id);
        Self { key_id: format!("{KEY_PREFIX}{}", part("api key id")), secret: part("api key secret") }
    }

    /// An existing key with a new random secret.
    pub fn random_for(key_id: &str, rng: &mut impl RngCore) -> Result<Self, IdError> {
        Self::of(key_id, base62(rng))
    }

    /// An existing key with the new secret of a repeatable request, as in [`Self::derive`].
    pub fn derive_for(server_secret: &[u8], key_id: &str, request_id: Uuid) -> Result<Self, IdError> {
        Self::of(key_id, derived(server_secret, "api key rotation", key_id, request_id))
    }

    fn of(key_id: &str, secret: String) -> Result<Self, IdError> {
        if !is_api_key_id(key_id) {
            return Err(IdError::ApiKeyId);
        }
        Ok(Self { key_id: key_id.to_owned(), secret })
    }

    /// The public half.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// What the server stores of the secret.
    pub fn secret_sha256(&self) -> [u8; 32] {
        Sha256::digest(self.secret.as_bytes()).into()
    }

    /// Whether the secret is the stored one, in constant time.
    pub fn matches(&self, stored_sha256: &[u8]) -> bool {
        self.secret_sha256().ct_eq(stored_sha256).into()
    }

    /// The whole key, secret included: for its owner only.
    pub fn expose(&self) -> String {
        format!("{}.{}", self.key_id, self.secret)
    }
}

impl fmt::Debug for ApiKeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.***", self.key_id)
    }
}

/// Whether a text is the public id of an API key.
pub fn is_api_key_id(text: &str) -> bool {
    text.strip_prefix(KEY_PREFIX).is_some_and(is_base62_part)
}

fn is_base62_part(text: &str) -> bool {
    text.len() == PART_LEN && text.bytes().all(|c| c.is_ascii_alphanumeric())
}

/// 22 characters that only the holder of the server's secret can tell.
fn derived(server_secret: &[u8], what: &str, subject: &str, request_id: Uuid) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(server_secret).expect("HMAC takes a key of any length");
    for field in [what.as_bytes(), subject.as_bytes(), request_id.as_bytes()] {
        mac.update(field);
        mac.update(&[0]);
    }
    base62(&mut StdRng::from_seed(mac.finalize().into_bytes().into()))
}

/// 22 characters, each of 62, without bias: bytes of 248 and above are passed over.
fn base62(rng: &mut impl RngCore) -> String {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut text = String::with_capacity(PART_LEN);
    while text.len() < PART_LEN {
        let mut byte = [0u8];
        rng.fill_bytes(&mut byte);
        if byte[0] < 248 {
            text.push(ALPHABET[usize::from(byte[0] % 62)] as char);
        }
    }
    text
}
