//! Lets what Stripe refused be attempted again: the period takes charges again, and the next run charges what it owes by
//! then, under a new charge.

use nexus_kit::{db, validate::Violations};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    domain::{
        charge::{Charge, ChargeStatus},
        period::PeriodKey,
    },
    error::Error,
    store::{charge_entries, records, requests},
};

const METHOD: &str = "RetryCharge";

/// Returns the charge that was refused. A repeat of a request changes nothing more.
pub async fn run(
    pool: &PgPool,
    charge_id: Uuid,
    request_id: Option<Uuid>,
    actor: &str,
) -> Result<Charge, Error> {
    let mut transaction = db::begin(pool).await?;
    db::set_actor(&mut transaction, actor).await?;
    let charge =
        charge_entries::find(&mut transaction, charge_id).await?.ok_or(Error::ChargeNotFound(charge_id))?;
    let period = PeriodKey { eco_id: charge.eco_id.clone(), start: charge.period.start };
    // Two at once come one after the other.
    records::lock(&mut transaction, &period).await?;
    if let Some(request_id) = request_id
        && let Some((asked, ())) = requests::find::<Uuid, ()>(&mut transaction, METHOD, request_id).await?
    {
        if asked != charge_id {
            return Err(Violations::one("request_id", "was used for another charge").into());
        }
        return Ok(charge);
    }
    if charge.status != ChargeStatus::Failed || !records::unpark_refused(&mut transaction, &period).await? {
        return Err(Error::ChargeNotParked(charge_id));
    }
    if let Some(request_id) = request_id {
        requests::insert(&mut transaction, METHOD, request_id, &charge_id, &()).await?;
    }
    transaction.commit().await?;
    Ok(charge)
}
