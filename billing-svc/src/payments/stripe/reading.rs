//! What is read of Stripe's answers: of those that charges hang on no more than is needed, so that none becomes
//! unreadable by a field that Stripe has changed.

use std::{collections::HashMap, marker::PhantomData};

use miniserde::Deserialize;
use stripe_client_core::{RequestBuilder, StripeRequest};

use super::{HttpClient, RequestError, once};

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
#[derive(Deserialize)]
struct Made {
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

/// Sends once, with the key; returns the id of what was made or changed.
pub(super) async fn made<R: StripeRequest>(
    client: &HttpClient,
    request: R,
    key: &str,
) -> Result<String, RequestError> {
    let reading = Reading::<R, Made>::of(request);
    Ok(reading.customize().request_strategy(once(key)?).send(client).await?.id)
}
