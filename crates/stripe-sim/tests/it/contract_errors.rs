//! async-stripe reads every error.

use anyhow::{Result, bail};
use serde_json::json;
use stripe::{
    ApiErrorsCode, ApiErrorsType, IdempotencyKey, RequestStrategy, StripeError, StripeRequest as _,
};
use stripe_billing::invoice_item::{CreateInvoiceItem, RetrieveInvoiceItem};
use stripe_core::customer::CreateCustomer;
use stripe_types::Currency;

use crate::harness::Sim;

pub(crate) fn stripe_error<T>(result: Result<T, StripeError>) -> Result<(u16, Box<stripe::ApiErrors>)> {
    match result {
        Ok(_) => bail!("an error was expected"),
        Err(StripeError::Stripe(error, status)) => Ok((status, error)),
        Err(other) => Err(other.into()),
    }
}

#[tokio::test]
async fn errors() -> Result<()> {
    let sim = Sim::start().await?;
    let client = sim.stripe()?;
    let item = || CreateInvoiceItem::new().amount(500).currency(Currency::USD);

    let (status, error) = stripe_error(item().customer("cus_none").send(&client).await)?;
    assert_eq!((status, error.type_), (400, ApiErrorsType::InvalidRequestError));
    assert_eq!(error.code, Some(ApiErrorsCode::ResourceMissing));
    assert_eq!(error.param.as_deref(), Some("customer"));

    let (status, error) = stripe_error(RetrieveInvoiceItem::new("ii_none").send(&client).await)?;
    assert_eq!((status, error.code), (404, Some(ApiErrorsCode::ResourceMissing)));

    let stranger = stripe::ClientBuilder::new("sk_live_x").url(format!("{}/", sim.base)).build()?;
    let (status, _) = stripe_error(CreateCustomer::new().send(&stranger).await)?;
    assert_eq!(status, 401);

    let customer = CreateCustomer::new().send(&client).await?;
    sim.admin(&format!("/customers/{}", customer.id), json!({ "declined": true })).await?;
    let (status, error) = stripe_error(item().customer(customer.id.to_string()).send(&client).await)?;
    assert_eq!((status, error.type_), (402, ApiErrorsType::CardError));
    assert_eq!(error.code, Some(ApiErrorsCode::CardDeclined));

    for (status, kind, code) in [
        (409, ApiErrorsType::InvalidRequestError, Some(ApiErrorsCode::LockTimeout)),
        (429, ApiErrorsType::InvalidRequestError, Some(ApiErrorsCode::RateLimit)),
        (500, ApiErrorsType::ApiError, None),
        (503, ApiErrorsType::ApiError, None),
    ] {
        sim.admin("/faults", json!({ "outcome": { "kind": "error", "status": status } })).await?;
        let (got, error) = stripe_error(CreateCustomer::new().send(&client).await)?;
        assert_eq!((got, error.type_, error.code), (status, kind, code));
    }

    let keyed = |email: &str| {
        Ok::<_, anyhow::Error>(
            CreateCustomer::new()
                .email(email)
                .customize()
                .request_strategy(RequestStrategy::Idempotent(IdempotencyKey::new("k")?)),
        )
    };
    keyed("a@example.com")?.send(&client).await?;
    let (status, error) = stripe_error(keyed("b@example.com")?.send(&client).await)?;
    assert_eq!((status, error.type_), (400, ApiErrorsType::IdempotencyError));
    sim.stop().await
}
