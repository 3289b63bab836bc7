//! What an event has charged, once our tables are as it says: on the draft that it tells of.

use nexus_kit::db;

use super::Failure;
use crate::{
    app::{
        process_overage::{ChargeContext, passes},
        settle_draft::{self, Draft},
    },
    domain::stripe_event::Outcome,
    error::Error,
    store::identity,
};

/// An event that was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// What it came to.
    pub outcome: Outcome,
    /// To be settled after the commit: what the periods owe that it closes is charged on it.
    pub draft: Option<Draft>,
}

impl From<Outcome> for Applied {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, draft: None }
    }
}

/// Settles. Repeated, it goes on where it was cut off.
pub(super) async fn settle(context: &ChargeContext, draft: &Draft) -> Result<(), Failure> {
    {
        let mut connection = db::acquire(&context.pool).await?;
        if !identity::is_known(&mut connection).await? {
            return Err(Error::ReconcileRequired.into());
        }
    }
    match settle_draft::run(context, draft).await?.error {
        None => Ok(()),
        Some(error) if passes(&error) => Err(Failure::Unsettled(error.message)),
        // Each run tells of it, and charges it once it is mended.
        Some(error) => {
            tracing::warn!(eco_id = error.eco_id, reason = error.reason, "not all could be settled");
            Ok(())
        }
    }
}
