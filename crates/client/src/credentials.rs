//! Who the program is for usage-svc. Asked before every call, so that a token can be renewed.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use tonic::Status;

use crate::CallOptions;

type Provider = dyn Fn() -> Result<String, Box<dyn Error + Send + Sync>> + Send + Sync;

/// Gives the `authorization` of each call. Its `Debug` form shows nothing of it.
#[derive(Clone)]
pub struct Credentials(Arc<Provider>);

impl Credentials {
    /// A service token that stays the same.
    pub fn bearer(token: &str) -> Self {
        let authorization = format!("Bearer {token}");
        Self::from_fn(move || Ok(authorization.clone()))
    }

    /// An API key, `<key_id>.<secret>`: meters and checks its own account only.
    pub fn api_key(key: &str) -> Self {
        let authorization = format!("ApiKey {key}");
        Self::from_fn(move || Ok(authorization.clone()))
    }

    /// The whole header (`Bearer …`, `ApiKey …`) as it is now. It is called on the way of every call, so it
    /// must not block: renew a token elsewhere and return the one that is in force. Where it fails, the call
    /// is tried again later.
    pub fn from_fn(
        provider: impl Fn() -> Result<String, Box<dyn Error + Send + Sync>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(provider))
    }

    /// What a call carries now; a failure is the status `UNAUTHENTICATED`, as if the server had said it.
    pub(crate) fn options(&self, timeout: Duration) -> Result<CallOptions, Status> {
        let authorization =
            (self.0)().map_err(|e| Status::unauthenticated(format!("no credentials: {e}")))?;
        CallOptions::new(&authorization, timeout).map_err(|e| Status::unauthenticated(e.to_string()))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}
