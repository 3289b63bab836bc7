//! Words and times that the services send. One that is missing or unknown is a fault of ours, not of the
//! client.

use chrono::{DateTime, Utc};
use nexus_core::{
    money::Currency,
    plan::{Plan, SubscriptionStatus},
};
use nexus_kit::convert;
use nexus_proto::{
    billing::v1::{AccountStatus, ChargeStatus},
    usage::v1::ApiKeyStatus,
};
use prost_types::Timestamp;

use crate::error::Error;

/// A time that a service always sends.
pub fn required_time(field: &'static str, at: Option<&Timestamp>) -> Result<DateTime<Utc>, Error> {
    optional_time(field, at)?.ok_or_else(|| Error::Internal(format!("the service left out {field}")))
}

/// A time that a service may leave out.
pub fn optional_time(field: &'static str, at: Option<&Timestamp>) -> Result<Option<DateTime<Utc>>, Error> {
    at.map(convert::datetime)
        .transpose()
        .map_err(|error| Error::Internal(format!("the service sent a bad {field}: {error}")))
}

/// A plan.
pub fn plan(value: i32) -> Result<Plan, Error> {
    convert::plan_from_proto(value)
        .ok()
        .flatten()
        .ok_or_else(|| Error::Internal(format!("the service sent no known plan: {value}")))
}

/// A plan's word.
pub fn plan_word(value: i32) -> Result<&'static str, Error> {
    plan(value).map(Plan::as_str)
}

/// A subscription's status.
pub fn subscription_status(value: i32) -> Result<SubscriptionStatus, Error> {
    convert::status_from_proto(value)
        .ok()
        .flatten()
        .ok_or_else(|| Error::Internal(format!("the service sent no known status: {value}")))
}

/// The word of a subscription's status.
pub fn status_word(value: i32) -> Result<&'static str, Error> {
    subscription_status(value).map(SubscriptionStatus::as_str)
}

/// A currency; empty is that of the United States.
pub fn currency(code: &str) -> Result<Currency, Error> {
    let unknown = |_| Error::Internal(format!("the service sent no known currency: {code}"));
    if code.is_empty() { Ok(Currency::USD) } else { code.parse().map_err(unknown) }
}

/// The word of an API key's status.
pub fn key_status_word(status: ApiKeyStatus) -> Result<&'static str, Error> {
    match status {
        ApiKeyStatus::Active => Ok("active"),
        ApiKeyStatus::Revoked => Ok("revoked"),
        ApiKeyStatus::Unspecified => Err(Error::Internal("the service sent no status of a key".to_owned())),
    }
}

/// The word of a charge's status.
pub fn charge_status_word(status: ChargeStatus) -> Result<&'static str, Error> {
    match status {
        ChargeStatus::Pending => Ok("pending"),
        ChargeStatus::Succeeded => Ok("succeeded"),
        ChargeStatus::Failed => Ok("failed"),
        ChargeStatus::Superseded => Ok("superseded"),
        ChargeStatus::Unspecified => {
            Err(Error::Internal("the service sent no status of a charge".to_owned()))
        }
    }
}

/// The word of an account's state.
pub fn account_status_word(status: AccountStatus) -> Result<&'static str, Error> {
    match status {
        AccountStatus::Active => Ok("active"),
        AccountStatus::Closed => Ok("closed"),
        AccountStatus::Unspecified => {
            Err(Error::Internal("the service sent no state of an account".to_owned()))
        }
    }
}

/// A text that a service leaves empty where there is none.
pub fn some_text(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}
