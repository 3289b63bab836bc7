//! Numbers, money and times for people. Times are UTC, as all that is billed is.

use chrono::{DateTime, TimeDelta, Utc};
use maud::{Markup, html};
use nexus_core::{money::Micros, text::thousands};
use nexus_proto::common::v1 as common;
use prost_types::Timestamp;

use crate::{convert, error::Error, format};

/// A count; a negative one is no limit.
pub fn limit(count: i64) -> String {
    if count < 0 { "Unlimited".to_owned() } else { thousands(count) }
}

/// An amount in its currency, with the currency's decimals: `$1,234.50`, `1,235 JPY`. What is less than the smallest of
/// them is left out, as a charge to date leaves it.
pub fn money(micros: i64, currency: &str) -> Result<String, Error> {
    let currency = convert::currency(currency)?;
    let size = micros.checked_abs().ok_or_else(|| Error::Internal(format!("an amount of {micros}")))?;
    let whole = currency.minor_unit().floor(Micros(size)).0 * micros.signum();
    format::signed_money(Micros(whole), currency, "−")
}

/// The price of so many units, as exactly as it is: `$1.00 per 1,000 calls`.
pub fn price(micros: i64, per_count: i64, currency: &str) -> Result<String, Error> {
    let calls = if per_count == 1 { "call".to_owned() } else { format!("{} calls", thousands(per_count)) };
    let whole = micros % 10_000 == 0;
    let amount = if whole { money(micros, currency)? } else { exact(micros, currency) };
    Ok(format!("{amount} per {calls}"))
}

/// All decimals an amount has, two at least.
pub fn exact(micros: i64, currency: &str) -> String {
    let sign = if micros < 0 { "−" } else { "" };
    let (major, rest) = (micros.unsigned_abs() / 1_000_000, micros.unsigned_abs() % 1_000_000);
    let rest = format!("{rest:06}");
    let kept = rest.trim_end_matches('0').len().max(2);
    let number = format!("{}.{}", thousands(major), &rest[..kept]);
    if matches!(currency, "" | "USD") {
        format!("{sign}${number}")
    } else {
        format!("{sign}{number} {currency}")
    }
}

/// A share as a percentage, with one decimal; rounded down to below 100 where something is missing.
pub fn percent(share: f64) -> String {
    let tenths = (share * 1_000.0).round();
    let tenths = if share < 1.0 && tenths >= 1_000.0 { 999.0 } else { tenths };
    format!("{:.1} %", tenths / 10.0)
}

/// Milliseconds.
pub fn millis(ms: f64) -> String {
    if ms >= 10_000.0 {
        format!("{:.1} s", ms / 1_000.0)
    } else {
        format!("{} ms", thousands(ms.round() as i64))
    }
}

/// How long something took.
pub fn duration(ms: i64) -> String {
    match ms {
        ..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        _ => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1_000),
    }
}

/// A day: `5 Dec 2026`.
pub fn day(at: DateTime<Utc>) -> String {
    at.format("%-d %b %Y").to_string()
}

/// A day as a machine-readable element.
pub fn date(at: DateTime<Utc>) -> Markup {
    html! { time datetime=(at.format("%Y-%m-%d")) { (day(at)) } }
}

/// A moment as a machine-readable element: `5 Dec 2026, 14:05`.
pub fn moment(at: DateTime<Utc>) -> Markup {
    html! { time datetime=(format::time(at)) { (at.format("%-d %b %Y, %H:%M")) } }
}

/// How long it is until a time: `11 days`, `5 hours`.
pub fn until(end: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let left = end - now;
    let several = |n: i64, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    if left >= TimeDelta::days(2) {
        several(left.num_days(), "day")
    } else if left >= TimeDelta::hours(1) {
        several(left.num_hours(), "hour")
    } else {
        several(left.num_minutes().max(0), "minute")
    }
}

/// A period by its first day and the day of its end.
pub fn period(start: Option<&Timestamp>, end: Option<&Timestamp>) -> Result<Markup, Error> {
    let start = convert::required_time("period_start", start)?;
    let end = convert::required_time("period_end", end)?;
    Ok(html! { (date(start)) " – " (date(end)) })
}

/// A plan's name.
pub fn plan(value: i32) -> Result<&'static str, Error> {
    Ok(match convert::plan(value)? {
        nexus_core::plan::Plan::Free => "Free",
        nexus_core::plan::Plan::Pro => "Pro",
        nexus_core::plan::Plan::Enterprise => "Enterprise",
    })
}

/// The state of a subscription, in words.
pub fn status(value: common::SubscriptionStatus) -> &'static str {
    use common::SubscriptionStatus as S;
    match value {
        S::Unspecified => "Unknown",
        S::Trialing => "Trial",
        S::Active => "Active",
        S::PastDue => "Past due",
        S::Unpaid => "Unpaid",
        S::Paused => "Paused",
        S::Incomplete => "Incomplete",
        S::IncompleteExpired => "Incomplete, expired",
        S::Canceled => "Canceled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_has_the_decimals_of_its_currency() {
        let shown = |micros, currency| money(micros, currency).ok();
        assert_eq!(shown(1_234_500_000, "USD").as_deref(), Some("$1,234.50"));
        assert_eq!(shown(-5_000, "USD").as_deref(), Some("$0.00"));
        assert_eq!(shown(-2_500_000, "USD").as_deref(), Some("−$2.50"));
        assert_eq!(shown(1_234_500_000, "EUR").as_deref(), Some("1,234.50 EUR"));
        assert_eq!(shown(1_234_000_000, "JPY").as_deref(), Some("1,234 JPY"));
        assert_eq!(shown(31_275_000, "USD").as_deref(), Some("$31.27"));
        assert!(shown(i64::MIN, "USD").is_none() && shown(0, "dollars").is_none());
    }

    #[test]
    fn prices_keep_their_fractions_of_cents() {
        assert_eq!(price(1_000, 1, "USD").ok().as_deref(), Some("$0.001 per call"));
        assert_eq!(price(1_000_000, 1_000, "EUR").ok().as_deref(), Some("1.00 EUR per 1,000 calls"));
        assert_eq!(exact(1_234_567, "USD"), "$1.234567");
    }

    #[test]
    fn nearly_all_is_not_all() {
        assert_eq!([0.0, 0.5, 0.99999, 1.0].map(percent), ["0.0 %", "50.0 %", "99.9 %", "100.0 %"]);
    }

    #[test]
    fn times_left_are_in_words() {
        let now = DateTime::UNIX_EPOCH;
        let left = |delta| until(now + delta, now);
        assert_eq!(left(TimeDelta::days(11) + TimeDelta::hours(5)), "11 days");
        assert_eq!(left(TimeDelta::hours(30)), "30 hours");
        assert_eq!(left(TimeDelta::minutes(61)), "1 hour");
        assert_eq!(left(TimeDelta::seconds(90)), "1 minute");
        assert_eq!(left(TimeDelta::seconds(-90)), "0 minutes");
    }
}
