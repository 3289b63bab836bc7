//! Settles a draft: what an account owes for the periods that the draft closes is charged at once, rounded down, on that
//! very invoice. What comes later is on the next one.

use chrono::{DateTime, Utc};
use nexus_kit::db;
use sqlx::PgPool;

use crate::{
    app::{
        process_overage::{ChargeContext, MAX_PERIODS, charge_account},
        refresh,
    },
    domain::{charge::Target, period::PeriodKey, run::AccountResult},
    error::Error,
    store::records,
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
    let context = ChargeContext { target: Target::Draft(draft.invoice_id.clone()), ..context.clone() };
    Ok(charge_account(&context, &periods).await)
}

/// Periods of an account with something to charge, of those that began before a time.
pub(super) async fn owing(
    pool: &PgPool,
    eco_id: &str,
    before: Option<DateTime<Utc>>,
) -> Result<Vec<PeriodKey>, Error> {
    let only = [eco_id.to_owned()];
    let mut connection = db::acquire(pool).await?;
    let mut owing = Vec::new();
    for candidate in records::candidates(&mut connection, Some(&only), "", MAX_PERIODS).await? {
        if before.is_none_or(|before| candidate.key.start < before) && candidate.owes()? {
            owing.push(candidate.key);
        }
    }
    Ok(owing)
}
