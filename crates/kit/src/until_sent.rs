//! What an answer costs until it is out. A caller may leave its answer unread for as long as it likes: what was made for
//! it is then held, and so is the share that bounds how much of that there may be.

use std::{any::Any, fmt, sync::Arc};

/// Held until the answer is out, or the caller gone: an extension of a response.
#[derive(Clone)]
pub struct UntilSent(#[expect(dead_code, reason = "it is dropped")] Arc<dyn Any + Send + Sync>);

impl UntilSent {
    /// Holds this.
    pub fn hold(held: impl Any + Send + Sync) -> Self {
        Self(Arc::new(held))
    }
}

impl fmt::Debug for UntilSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UntilSent").finish()
    }
}
