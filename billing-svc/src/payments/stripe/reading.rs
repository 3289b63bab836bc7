//! What is read of Stripe's answers: of those that charges hang on no more than is needed, so that none becomes
//! unreadable by a field that Stripe has changed.

use std::{collections::HashMap, marker::PhantomData};

use miniserde::Deserialize;
use stripe_client_core::{RequestBuilder, StripeRequest};

use super::{HttpClient, RequestError, client::Noting, once};

/// A request whose answer is read as `T`.
pub(super) struct Reading<R, T> {
    request: R,
    answer: PhantomData<T>,
}

impl<R: StripeRequest, T> Reading<R, T> {
    pub(super) fn of(request: R) -> Self {
        Self { request, answer: PhantomData }
    }
}

impl<R: StripeRequest, T> StripeRequest for Reading<R, T> {
    type Output = T;

    fn build(&self) -> RequestBuilder {
        self.request.build()
    }
}

/// What was made or changed.
pub(super) struct Made {
    pub(super) id: String,
    /// Whether an earlier request with the same key did it.
    pub(super) replayed: bool,
}

/// Of a request that is not asked whether an earlier one did it.
impl From<String> for Made {
    fn from(id: String) -> Self {
        Self { id, replayed: false }
    }
}

/// What an object is known by.
#[derive(Deserialize)]
pub(super) struct Named {
    id: String,
}

/// An invoice item in a listing.
#[derive(Deserialize)]
pub(super) struct ListedItem {
    pub(super) id: String,
    pub(super) amount: i64,
    pub(super) metadata: Option<HashMap<String, String>>,
    pub(super) invoice: Option<String>,
}

/// Sends once, with the key; returns what was made or changed.
pub(super) async fn made<R: StripeRequest>(
    client: &HttpClient,
    request: R,
    key: &str,
) -> Result<Made, RequestError> {
    let noting = Noting::of(client);
    let reading = Reading::<R, Named>::of(request);
    let named = reading.customize().request_strategy(once(key)?).send(&noting).await?;
    Ok(Made { id: named.id, replayed: noting.replayed() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_needed_may_be_of_any_kind() {
        let item =
            r#"{"id":"ii_1","amount":-5,"invoice":null,"metadata":{"charge_id":"x"},"pricing":7,"new":[{}]}"#;
        let item: ListedItem = miniserde::json::from_str(item).expect("an item");
        assert_eq!((item.id.as_str(), item.amount, item.invoice), ("ii_1", -5, None));
        assert_eq!(item.metadata.and_then(|m| m.get("charge_id").cloned()).as_deref(), Some("x"));
        assert_eq!(
            miniserde::json::from_str::<Named>(r#"{"id":"in_1","status":{}}"#).expect("made").id,
            "in_1"
        );
    }
}
