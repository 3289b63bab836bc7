//! The only SQL of the service, one file a table. Functions take a connection; the use case owns the transaction.

pub mod accounts;
pub mod accounts_now;
pub mod mrr_movements;
pub mod overage_charges;
pub mod plan_prices;
pub mod standing;
pub mod usage_daily;
pub mod usage_hourly;
pub mod usage_totals;

use std::str::FromStr;

/// Reads a word that the database's constraints have let in.
fn parse<T>(text: &str) -> sqlx::Result<T>
where
    T: FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text.parse().map_err(|e: T::Err| sqlx::Error::Decode(e.into()))
}

/// Reads an account id.
fn eco_id(text: String) -> sqlx::Result<nexus_core::id::EcoId> {
    text.try_into().map_err(|e: nexus_core::id::IdError| sqlx::Error::Decode(e.into()))
}
