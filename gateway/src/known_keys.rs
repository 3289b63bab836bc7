//! API keys that were found good a short while ago, and whose they are. Each request asks for its key anew, as it may be
//! revoked; but whose key was good is no stranger, whatever others do who come from the same address.

use std::time::Duration;

use moka::sync::Cache;
use nexus_core::id::{ApiKeyText, EcoId};
use sha2::{Digest, Sha256};

/// Remembered at most. Only who has a good key adds one.
const MOST: u64 = 50_000;
/// How long after the last request with it.
const REMEMBERED: Duration = Duration::from_secs(600);

/// The keys, by their digests: secrets are not kept.
pub struct KnownKeys(Cache<[u8; 32], EcoId>);

impl Default for KnownKeys {
    fn default() -> Self {
        Self(Cache::builder().max_capacity(MOST).time_to_idle(REMEMBERED).build())
    }
}

impl KnownKeys {
    /// Whose key it is, if it is known.
    pub fn account(&self, key: &ApiKeyText) -> Option<EcoId> {
        self.0.get(&digest(key))
    }

    /// It was found good.
    pub fn remember(&self, key: &ApiKeyText, eco_id: EcoId) {
        self.0.insert(digest(key), eco_id);
    }

    /// It is good no more.
    pub fn forget(&self, key: &ApiKeyText) {
        self.0.invalidate(&digest(key));
    }
}

fn digest(key: &ApiKeyText) -> [u8; 32] {
    Sha256::digest(key.expose()).into()
}
