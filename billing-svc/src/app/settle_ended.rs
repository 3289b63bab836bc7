//! Settles what was owed under a subscription at Stripe that has ended: no cycle of it makes an invoice any more. What
//! lies on drafts of it that nobody finalises is taken off them; the periods that ended with it are rounded for good; all
//! that is owed is charged, and the charges are put on one invoice made for them, to be collected.
//!
//! A period ends with its subscription where the end was heard of before the next one began: calls that were counted
//! between the end and its hearing are billed in it. Heard of later, the period of that time goes on by what is in force
//! now, is charged here to the cent, and rounded for good by a daily run, as any other.

use chrono::{DateTime, Utc};
use nexus_kit::db;

use crate::{
    app::{
        collect,
        process_overage::{ChargeContext, charge_account, owing},
        refresh, take_back,
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
    if let Some(error) = take_back::run(context, eco_id).await? {
        return Ok(AccountResult { error: Some(error), ..AccountResult::default() });
    }
    let periods = owing(&context.pool, eco_id, None).await?;
    let charging = ChargeContext { target: Target::Own, ..context.clone() };
    let mut result = charge_account(&charging, &periods).await;
    if result.error.is_none() {
        result.error = collect::run(context, eco_id).await?;
    }
    Ok(result)
}
