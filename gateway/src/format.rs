//! How numbers, money and times look in JSON. Money is integer micros up to here; a JSON number is made at
//! the very edge and never computed with.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use nexus_core::{
    money::{Currency, MICROS, Micros},
    text::thousands,
};
use serde_json::{Number, Value};

use crate::error::Error;

/// RFC 3339 in UTC, with as many decimals as the time has.
pub fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// An amount in its currency, with the currency's decimals and thousands separators: `$1,234.50`, `1,234.50 EUR`.
pub fn money(amount: Micros, currency: Currency) -> Result<String, Error> {
    signed_money(amount, currency, "-")
}

/// The same with another sign before what is below zero.
pub fn signed_money(amount: Micros, currency: Currency, minus: &str) -> Result<String, Error> {
    let unit = currency.minor_unit();
    let whole = unit.round_half_up(amount).map_err(|e| Error::Internal(e.to_string()))?;
    let minor = unit.to_minor(whole);
    let per_unit = unit.to_minor(Micros(MICROS)).unsigned_abs();
    let sign = if minor < 0 { minus } else { "" };
    let (major, rest) = (minor.unsigned_abs() / per_unit, minor.unsigned_abs() % per_unit);
    let digits = per_unit.ilog10() as usize;
    let rest = if digits == 0 { String::new() } else { format!(".{rest:0digits$}") };
    let number = format!("{}{rest}", thousands(major));
    Ok(if currency == Currency::USD {
        format!("{sign}${number}")
    } else {
        format!("{sign}{number} {currency}")
    })
}

/// Whole cents, half a cent up.
fn cents(amount: Micros) -> Result<i64, Error> {
    let unit = Currency::USD.minor_unit();
    let whole = unit.round_half_up(amount).map_err(|e| Error::Internal(e.to_string()))?;
    Ok(unit.to_minor(whole))
}

/// Two decimals, no separators: `12.50`.
pub fn plain(amount: Micros) -> Result<String, Error> {
    let cents = cents(amount)?;
    let sign = if cents < 0 { "-" } else { "" };
    let cents = cents.unsigned_abs();
    Ok(format!("{sign}{}.{:02}", cents / 100, cents % 100))
}

/// Dollars with thousands separators and two decimals: `$1,234.50`.
pub fn dollars(amount: Micros) -> Result<String, Error> {
    money(amount, Currency::USD)
}

/// The same without decimals when the amount is whole: `$4,705`.
pub fn short_dollars(amount: Micros) -> Result<String, Error> {
    let text = dollars(amount)?;
    Ok(text.strip_suffix(".00").map_or_else(|| text.clone(), str::to_owned))
}

/// An amount as a JSON number that has decimals: `5.0`.
pub fn decimal(amount: Micros) -> f64 {
    amount.0 as f64 / MICROS as f64
}

/// An amount as a JSON number without decimals when it is whole: `49`.
pub fn number(amount: Micros) -> Value {
    if amount.0 % MICROS == 0 {
        return (amount.0 / MICROS).into();
    }
    Number::from_f64(decimal(amount)).map_or(Value::Null, Value::Number)
}

/// A mean in whole milliseconds.
pub fn millis(mean: f64) -> i64 {
    mean.round() as i64
}

/// Whole seconds, rounded up.
pub fn seconds_up(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usd(micros: i64) -> Micros {
        Micros(micros)
    }

    #[test]
    fn dollars_are_rounded_half_up_to_the_cent() {
        let shown = [15_000_000, 4_999, 5_000, 1_234_567_890_000].map(|m| dollars(usd(m)).ok());
        assert_eq!(shown, ["$15.00", "$0.00", "$0.01", "$1,234,567.89"].map(|text| Some(text.to_owned())));
        assert_eq!(dollars(usd(-2_500_000)).ok().as_deref(), Some("-$2.50"));
        assert_eq!(plain(usd(-2_500_000)).ok().as_deref(), Some("-2.50"));
        assert_eq!(plain(usd(1_234_500_000)).ok().as_deref(), Some("1234.50"));
    }

    #[test]
    fn whole_dollars_have_no_decimals_where_none_are_wanted() {
        assert_eq!(short_dollars(usd(4_705_000_000)).ok().as_deref(), Some("$4,705"));
        assert_eq!(short_dollars(usd(647_500_000)).ok().as_deref(), Some("$647.50"));
        assert_eq!(number(usd(49_000_000)).to_string(), "49");
        assert_eq!(number(usd(49_500_000)).to_string(), "49.5");
        assert_eq!(decimal(usd(5_000_000)).to_string(), "5");
    }

    #[test]
    fn each_currency_has_its_own_decimals() {
        let shown = |micros, code: &str| money(usd(micros), code.parse().ok()?).ok();
        assert_eq!(shown(1_234_500_000, "EUR").as_deref(), Some("1,234.50 EUR"));
        assert_eq!(shown(1_234_000_000, "JPY").as_deref(), Some("1,234 JPY"));
        assert_eq!(shown(-2_500_000, "EUR").as_deref(), Some("-2.50 EUR"));
    }

    #[test]
    fn an_amount_out_of_range_is_an_error() {
        assert!(dollars(usd(i64::MAX)).is_err());
    }
}
