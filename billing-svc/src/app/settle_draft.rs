//! Settles a draft: what an account owes for the periods that the draft closes is charged at once, rounded down, on that
//! very invoice. What comes later is on the next one.

use chrono::{DateTime, Utc};

use crate::{
    app::{
        process_overage::{ChargeContext, charge_account, owing},
        refresh,
    },
    domain::{charge::Target, run::AccountResult},
    error::Error,
};

/// A draft that Stripe has made at the end of a billing period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// Whose it is.
    pub eco_id: String,
    /// Its id.
    pub invoice_id: String,
    /// End of the billing period that it closes: what began before is charged on it.
    pub period_end: DateTime<Utc>,
}

/// Charges on a draft. Repeated, it charges what has come since; where the draft was finalised meanwhile, the charges
/// are pending for the next one. The result tells why something could not be charged.
#[tracing::instrument(name = "settlement.draft", skip_all, fields(eco_id = draft.eco_id, invoice_id = draft.invoice_id))]
pub async fn run(context: &ChargeContext, draft: &Draft) -> Result<AccountResult, Error> {
    refresh::drain(&context.pool).await?;
    let periods = owing(&context.pool, &draft.eco_id, Some(draft.period_end)).await?;
    let target = Target::Draft { invoice_id: draft.invoice_id.clone(), closes: draft.period_end };
    let context = ChargeContext { target, ..context.clone() };
    Ok(charge_account(&context, &periods).await)
}
