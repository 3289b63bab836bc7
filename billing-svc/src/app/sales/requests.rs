//! Requests that may be repeated: a repeat returns the first answer, and changes nothing that was changed back meanwhile.
//!
//! A request is kept with the change that it led to, in one transaction, and the change has the keys that it is sent with.
//! So a repeat goes on with what was begun, under the same keys, and never begins anew.

use nexus_kit::{db, validate::Violations};
use serde::{Serialize, de::DeserializeOwned};
use sqlx::PgConnection;

use super::{Sales, carry_out::carry_out};
use crate::{
    domain::{of_a_day::MAX_REQUESTS, sale::SaleRequest, stripe_change::ChangeOutcome},
    error::Error,
    store::{sale_requests, stripe_changes, unknown_word},
};

/// What a request led to that came before.
pub(super) enum Before<A> {
    /// To this answer.
    Answered(A),
    /// To this change, if anything was to be changed; its answer was not kept.
    Begun(Option<i64>),
}

/// What the same request led to before, if it came; one of another kind is a violation.
pub(super) async fn before<A: DeserializeOwned>(
    sales: &Sales,
    request: &SaleRequest,
) -> Result<Option<Before<A>>, Error> {
    let Some(request_id) = request.request_id else { return Ok(None) };
    let mut connection = db::acquire(&sales.pool).await?;
    let Some(kept) = sale_requests::get(&mut connection, &request.eco_id, request_id).await? else {
        return Ok(None);
    };
    if kept.asked != request.asked {
        return Err(
            Violations::one("request_id", "was used for another request about the subscription").into()
        );
    }
    Ok(Some(match kept.answer {
        Some(answer) => Before::Answered(serde_json::from_value(answer).map_err(unknown_word)?),
        None => Before::Begun(kept.change_id),
    }))
}

/// Keeps a request with the change that is written down for it, if it is to be kept; false: the same came before.
pub(super) async fn keep(
    db: &mut PgConnection,
    request: &SaleRequest,
    change_id: Option<i64>,
) -> Result<bool, Error> {
    let Some(request_id) = request.request_id else { return Ok(true) };
    if !sale_requests::insert(db, &request.eco_id, request_id, request.asked, change_id).await? {
        return Ok(false);
    }
    // Those that lead to a change are bounded by the changes, and an end always has its way.
    let of_a_day = sale_requests::of_a_day(db, &request.eco_id).await?;
    match of_a_day.beyond(MAX_REQUESTS).filter(|_| change_id.is_none()) {
        Some(retry) => Err(Error::TooManyRequests { eco_id: request.eco_id.clone(), retry }),
        None => Ok(true),
    }
}

/// Keeps what a request is answered, and returns what it was answered first.
pub(super) async fn answer<A: Serialize + DeserializeOwned + Send + Sync>(
    sales: &Sales,
    request: &SaleRequest,
    answer: A,
) -> Result<A, Error> {
    if let Some(request_id) = request.request_id {
        let mut connection = db::acquire(&sales.pool).await?;
        sale_requests::answer(&mut connection, &request.eco_id, request_id, &answer).await?;
    }
    match before(sales, request).await? {
        Some(Before::Answered(first)) => Ok(first),
        Some(Before::Begun(_)) | None => Ok(answer),
    }
}

/// Goes on with the change that a request led to before.
pub(super) async fn follow(sales: &Sales, change_id: i64) -> Result<(), Error> {
    let (change, outcome) = {
        let mut connection = db::acquire(&sales.pool).await?;
        stripe_changes::get(&mut connection, change_id).await?
    };
    match outcome {
        None => carry_out(sales, &change).await?.done(),
        Some(ChangeOutcome::Done) => Ok(()),
        Some(ChangeOutcome::Refused(why)) => Err(Error::StripeRefused(why)),
        Some(ChangeOutcome::Superseded) => Err(Error::ChangeSuperseded(change.eco_id)),
    }
}
