//! Customers at Stripe of accounts that may have to pay and came without one: by their creation, or by a plan that was given
//! to them. That one is to be made is written down with what makes it needed; until it is there the account's overage
//! accrues, and its charges wait.
//!
//! One whose key is forgotten before its answer is heard is made once more: nothing is ever charged to the first.

use nexus_core::id::EcoId;
use nexus_kit::db;

use super::{Sales, worker::OWN_TIME};
use crate::{
    domain::{
        stripe_customer::{CustomerOutcome, WrittenCustomer},
        stripe_event::backoff,
    },
    error::Error,
    payments::{Advice, Doubt, Outcome},
    store::{accounts, stripe_customers},
};

/// Makes a customer that is due, of any account or of this one; false: there is none.
pub async fn make_due(sales: &Sales, of: Option<&EcoId>) -> Result<bool, Error> {
    let taken = {
        let mut connection = db::acquire(&sales.pool).await?;
        stripe_customers::take(&mut connection, of, OWN_TIME).await?
    };
    let Some(written) = taken else { return Ok(false) };
    if let Some(doubt) = make(sales, &written).await? {
        let eco_id = &written.customer.eco_id;
        let failures = written.failures.saturating_add(1);
        let again_in = backoff(failures, &mut rand::rng()).max(doubt.retry_after.unwrap_or_default());
        tracing::warn!(eco_id = %eco_id, failures, reason = doubt.message, "a customer is to be made again");
        let mut connection = db::acquire(&sales.pool).await?;
        stripe_customers::fail(&mut connection, eco_id, &doubt.message, again_in).await?;
    }
    Ok(true)
}

/// Why it is not known what became of it, if that is so.
#[tracing::instrument(name = "sales.make_customer", skip_all, fields(eco_id = %written.customer.eco_id))]
async fn make(sales: &Sales, written: &WrittenCustomer) -> Result<Option<Doubt>, Error> {
    let mut written = written.clone();
    let eco_id = written.customer.eco_id.clone();
    {
        let mut connection = db::acquire(&sales.pool).await?;
        let account = accounts::get(&mut connection, eco_id.as_str()).await?;
        if account.is_none_or(|account| account.stripe_customer_id.is_some()) {
            stripe_customers::end(&mut connection, &eco_id, CustomerOutcome::Unneeded, None).await?;
            return Ok(None);
        }
        if !written.is_young {
            written = stripe_customers::next_attempt(&mut connection, &written).await?;
        }
    }
    let mut outcome = create(sales, &written).await;
    if matches!(outcome, Outcome::FailedForGood(_)) && written.customer.email.is_some() {
        // It may be the email that Stripe does not take; what is owed can be charged without.
        tracing::warn!(eco_id = %eco_id, "Stripe refused a customer: once more without the email");
        let mut connection = db::acquire(&sales.pool).await?;
        stripe_customers::leave_email_out(&mut connection, &eco_id).await?;
        written = stripe_customers::next_attempt(&mut connection, &written).await?;
        written.customer.email = None;
        drop(connection);
        outcome = create(sales, &written).await;
    }
    match outcome {
        Outcome::Succeeded { id, .. } => {
            let mut transaction = db::begin(&sales.pool).await?;
            let is_its_own = accounts::set_customer(&mut transaction, &eco_id, &id).await?;
            let outcome = if is_its_own { CustomerOutcome::Made } else { CustomerOutcome::Unneeded };
            stripe_customers::end(&mut transaction, &eco_id, outcome, None).await?;
            transaction.commit().await?;
            Ok(None)
        }
        Outcome::FailedForGood(refusal) => {
            tracing::warn!(eco_id = %eco_id, reason = refusal.reason, "Stripe refused a customer");
            let mut connection = db::acquire(&sales.pool).await?;
            let why = Some(refusal.message.as_str());
            stripe_customers::end(&mut connection, &eco_id, CustomerOutcome::Refused, why).await?;
            Ok(None)
        }
        Outcome::Unknown(doubt) => {
            if doubt.advice == Advice::Look {
                // The same would bring the same answer.
                let mut connection = db::acquire(&sales.pool).await?;
                stripe_customers::next_attempt(&mut connection, &written).await?;
            }
            if let Some(time) = doubt.retry_after {
                sales.events.pace.pause_all(time);
            }
            Ok(Some(doubt))
        }
    }
}

async fn create(sales: &Sales, written: &WrittenCustomer) -> Outcome {
    sales.events.pace.wait().await;
    sales.port.create_customer(&written.customer, &written.key()).await
}
