//! Settles what was owed under a subscription at Stripe that has ended: no cycle of it makes an invoice any more. The
//! periods that ended with it are rounded for good, all that is owed is charged, and the charges are put on one invoice
//! made for them, to be collected.

use chrono::{DateTime, Utc};
use nexus_kit::db;

use crate::{
    app::{
        collect,
        process_overage::{ChargeContext, charge_account},
        refresh, settle_draft,
    },
    domain::{charge::Target, run::AccountResult},
    error::Error,
    store::records,
};

/// To be called once our tables say that the subscription has ended; repeated, it goes on where it was cut off. The
/// result tells why it is not done.
#[tracing::instrument(name = "settlement.ended", skip_all, fields(eco_id))]
pub async fn run(
    context: &ChargeContext,
    eco_id: &str,
    ended_time: DateTime<Utc>,
) -> Result<AccountResult, Error> {
    refresh::drain(&context.pool).await?;
    {
        let mut connection = db::acquire(&context.pool).await?;
        records::settle_early(&mut connection, eco_id, ended_time).await?;
    }
    let periods = settle_draft::owing(&context.pool, eco_id, None).await?;
    let charging = ChargeContext { target: Target::Own, ..context.clone() };
    let mut result = charge_account(&charging, &periods).await;
    if result.error.is_none() {
        result.error = collect::run(context, eco_id).await?;
    }
    Ok(result)
}
