//! What an event has charged, once our tables are as it says: on the draft that it tells of, or after the end of a
//! subscription.

use chrono::{DateTime, Utc};
use nexus_core::id::EcoId;
use nexus_kit::db;

use super::Failure;
use crate::{
    app::{
        process_overage::{ChargeContext, RECONCILE_REQUIRED},
        settle_draft::{self, Draft},
        settle_ended,
    },
    domain::{run::AccountError, stripe_event::Outcome},
    error::Error,
    store::identity,
};

/// What is to be charged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// What the periods owe that a draft closes, on it.
    Draft(Draft),
    /// All that is owed, as the subscription has ended.
    Ended {
        /// Whose it was.
        eco_id: EcoId,
        /// When it ended.
        at: DateTime<Utc>,
    },
}

/// An event that was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// What it came to.
    pub outcome: Outcome,
    /// To be settled after the commit.
    pub settlement: Option<Settlement>,
}

impl From<Outcome> for Applied {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, settlement: None }
    }
}

/// Settles. Repeated, it goes on where it was cut off.
pub(super) async fn settle(context: &ChargeContext, settlement: &Settlement) -> Result<(), Failure> {
    {
        let mut connection = db::acquire(&context.pool).await?;
        if !identity::is_known(&mut connection).await? {
            return Err(Error::ReconcileRequired.into());
        }
    }
    let result = match settlement {
        Settlement::Draft(draft) => settle_draft::run(context, draft).await?,
        Settlement::Ended { eco_id, at } => settle_ended::run(context, eco_id.as_str(), *at).await?,
    };
    match result.error {
        None => Ok(()),
        Some(error) if passes(&error) => Err(Failure::Refused(error.message)),
        // Each run tells of it, and charges it once it is mended.
        Some(error) => {
            tracing::warn!(eco_id = error.eco_id, reason = error.reason, "not all could be settled");
            Ok(())
        }
    }
}

/// Whether a repeat may help.
fn passes(error: &AccountError) -> bool {
    matches!(error.reason.as_str(), "IN_DOUBT" | "NOT_SENT" | "INTERNAL" | RECONCILE_REQUIRED)
}
