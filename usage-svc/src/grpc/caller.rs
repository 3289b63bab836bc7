//! Who may do what. An API key reaches its own account only.

use std::sync::Arc;

use nexus_core::id::EcoId;
use nexus_kit::auth::{Caller, KeyVerifier, Scope, VerifiedKey};
use nexus_proto::usage::v1::UsageEvent;
use tonic::{Request, Status};

use crate::app::verify_api_key::Keys;

/// Verifies API keys before a message is read.
pub fn key_verifier(keys: Keys) -> KeyVerifier {
    Arc::new(move |text| {
        let keys = keys.clone();
        Box::pin(async move {
            let key = keys.verify(&text).await?;
            let (scopes, test_mode) = (key.scopes, key.test_mode);
            Ok(VerifiedKey { key_id: key.key_id, eco_id: key.eco_id, scopes, test_mode })
        })
    })
}

/// A caller that may record or check: a service with the scope (`None`) or an API key. Users may not, admins
/// among them.
pub(super) fn metering<T>(request: &Request<T>, scope: Scope) -> Result<Option<VerifiedKey>, Status> {
    match VerifiedKey::of(request) {
        Some(key) => key.require_scope(scope).map(|()| Some(key.clone())),
        None => Caller::of(request)?.require_scope(scope).map(|()| None),
    }
}

/// A call's message may come long after its headers, and its key may be revoked by then: it is verified once more, from
/// memory as a rule.
pub(super) async fn is_still_good(caller: Caller, keys: &Keys) -> Result<(), Status> {
    if let Caller::ApiKey(text) = caller {
        keys.verify(&text).await?;
    }
    Ok(())
}

/// The account whose usage the caller may read.
pub(super) fn reading<T>(request: &Request<T>, requested: &str) -> Result<EcoId, Status> {
    match VerifiedKey::of(request) {
        Some(key) => {
            key.require_scope(Scope::UsageCheck)?;
            key.account(requested)
        }
        None => Caller::of(request)?.account(requested, &[Scope::UsageCheck]),
    }
}

/// Refuses a call in which an API key names another account.
pub(super) fn own_events_only(key: Option<&VerifiedKey>, events: &[UsageEvent]) -> Result<(), Status> {
    match key {
        Some(key) => events.iter().try_for_each(|e| key.account(&e.eco_id).map(|_| ())),
        None => Ok(()),
    }
}
