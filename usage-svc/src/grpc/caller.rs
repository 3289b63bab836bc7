//! Who may do what. API keys are verified here, in the database, and reach their own account only.

use nexus_core::id::{ApiKeyText, EcoId};
use nexus_kit::{
    auth::{Caller, Scope},
    status,
};
use nexus_proto::usage::v1::UsageEvent;
use tonic::{Request, Status};

use super::Service;
use crate::app;

/// A verified API key that is calling.
#[derive(Debug, Clone)]
pub(super) struct CallingKey {
    pub(super) key_id: String,
    pub(super) eco_id: EcoId,
    pub(super) test_mode: bool,
}

impl CallingKey {
    /// The account a call is about: the key's own, named or not.
    pub(super) fn account(&self, requested: &str) -> Result<EcoId, Status> {
        if requested.is_empty() || requested == self.eco_id.as_str() {
            Ok(self.eco_id.clone())
        } else {
            Err(status::permission_denied("an API key is for its own account only"))
        }
    }
}

impl Service {
    /// A caller that may record or check: a service with the scope (`None`) or an API key. Users may not,
    /// admins among them.
    pub(super) async fn metering_caller<T>(
        &self,
        request: &Request<T>,
        scope: Scope,
    ) -> Result<Option<CallingKey>, Status> {
        match Caller::of(request)? {
            Caller::ApiKey(text) => self.calling_key(&text, scope).await.map(Some),
            caller => caller.require_scope(scope).map(|()| None),
        }
    }

    /// The account whose usage the caller may read.
    pub(super) async fn reading_caller<T>(
        &self,
        request: &Request<T>,
        requested: &str,
    ) -> Result<EcoId, Status> {
        match Caller::of(request)? {
            Caller::ApiKey(text) => self.calling_key(&text, Scope::UsageCheck).await?.account(requested),
            caller => caller.account(requested, &[Scope::UsageCheck]),
        }
    }

    async fn calling_key(&self, text: &ApiKeyText, scope: Scope) -> Result<CallingKey, Status> {
        let key = app::verify_api_key::run(&self.pool, text).await?;
        if !key.may(scope) {
            return Err(status::permission_denied(format!("the API key lacks the scope {}", scope.as_str())));
        }
        Ok(CallingKey { key_id: key.key_id, eco_id: key.eco_id, test_mode: key.test_mode })
    }
}

/// Refuses a call in which an API key names another account.
pub(super) fn own_events_only(key: Option<&CallingKey>, events: &[UsageEvent]) -> Result<(), Status> {
    match key {
        Some(key) => events.iter().try_for_each(|e| key.account(&e.eco_id).map(|_| ())),
        None => Ok(()),
    }
}
