//! What is printed: numbers, money and times as people read them, and times for scripts.

use std::{
    fmt::Display,
    io::{self, ErrorKind, Write},
};

use anyhow::Result;
use chrono::SecondsFormat;
use nexus_core::money::{Currency, MICROS};
pub(crate) use nexus_core::text::thousands;
use nexus_kit::convert;
use prost_types::Timestamp;

/// Whoever read the standard output has read enough, as `head` does.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output any more")]
pub(crate) struct ReadEnough;

/// Writes to standard output, at once.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(ReadEnough.into()),
        written => Ok(written?),
    }
}

/// A text of others on a terminal: what would steer it is replaced.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// A line of what is said about one thing.
pub(crate) fn fact(name: &str, value: impl Display) -> String {
    format!("  {name:<12} {value}\n")
}

/// Units; less than none are without a limit.
pub(crate) fn units(count: i64) -> String {
    if count < 0 { "unlimited".to_owned() } else { thousands(count) }
}

/// An amount of micros, with two decimals and thousands separators: `$4,705.00`, `12.50 EUR`. What is
/// less than a hundredth is cut off.
pub(crate) fn money(micros: i64, currency_code: &str) -> String {
    let hundredths = micros.unsigned_abs() / (MICROS.unsigned_abs() / 100);
    let amount = format!("{}.{:02}", thousands(hundredths / 100), hundredths % 100);
    in_currency(micros < 0, &amount, currency_code)
}

/// The same to the last micro: `$4.705`.
pub(crate) fn exact_money(micros: i64, currency_code: &str) -> String {
    let whole = thousands(micros.unsigned_abs() / MICROS.unsigned_abs());
    let amount = format!("{whole}.{:0<2}", decimals(micros));
    in_currency(micros < 0, &amount, currency_code)
}

/// A price in units of its currency, exactly: `0.001`, `1.5 per 1,000`.
pub(crate) fn price(micros: i64, per: i64) -> String {
    let (whole, decimals) = (thousands(micros / MICROS), decimals(micros));
    let amount = if decimals.is_empty() { whole } else { format!("{whole}.{decimals}") };
    if per == 1 { amount } else { format!("{amount} per {}", thousands(per)) }
}

/// How long something took.
pub(crate) fn seconds(ms: i64) -> String {
    format!("{}.{} s", thousands(ms / 1_000), ms % 1_000 / 100)
}

fn in_currency(negative: bool, amount: &str, currency_code: &str) -> String {
    let sign = if negative { "-" } else { "" };
    if currency_code == Currency::USD.as_str() {
        format!("{sign}${amount}")
    } else {
        format!("{sign}{amount} {currency_code}")
    }
}

/// What is behind the point, as far as it goes.
fn decimals(micros: i64) -> String {
    let part = format!("{:06}", micros.unsigned_abs() % MICROS.unsigned_abs());
    part.trim_end_matches('0').to_owned()
}

/// A time for scripts.
pub(crate) fn rfc3339(at: Option<&Timestamp>) -> Option<String> {
    let at = convert::datetime(at?).ok()?;
    Some(at.to_rfc3339_opts(SecondsFormat::Secs, true))
}

/// A time for people; `-` where there is none.
pub(crate) fn utc(at: Option<&Timestamp>) -> String {
    let at = at.and_then(|at| convert::datetime(at).ok());
    at.map_or_else(|| "-".to_owned(), |at| at.format("%Y-%m-%d %H:%M UTC").to_string())
}

/// A day for people; `-` where there is none.
pub(crate) fn day(at: Option<&Timestamp>) -> String {
    let at = at.and_then(|at| convert::datetime(at).ok());
    at.map_or_else(|| "-".to_owned(), |at| at.format("%Y-%m-%d").to_string())
}

/// How long it is from one time to the other, roughly: `3 days`, `5 hours`, `12 minutes`.
pub(crate) fn span(from: Option<&Timestamp>, to: Option<&Timestamp>) -> Option<String> {
    let seconds = to?.seconds.saturating_sub(from?.seconds).max(0);
    let (number, unit) = match seconds {
        172_800.. => (seconds / 86_400, "days"),
        7_200.. => (seconds / 3_600, "hours"),
        _ => (seconds / 60, "minutes"),
    };
    Some(format!("{number} {unit}"))
}

/// A word of a plan.
pub(crate) fn plan(value: i32) -> &'static str {
    convert::plan_from_proto(value).ok().flatten().map_or("unknown", |plan| plan.as_str())
}

/// A word of a subscription's state.
pub(crate) fn subscription_status(value: i32) -> &'static str {
    convert::status_from_proto(value).ok().flatten().map_or("unknown", |status| status.as_str())
}

/// A text that is empty where it is not known.
pub(crate) fn known(text: &str) -> Option<&str> {
    if text.is_empty() { None } else { Some(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_as_people_read_them() {
        assert_eq!(money(4_705_000_000, "USD"), "$4,705.00");
        assert_eq!(money(-12_509_999, "EUR"), "-12.50 EUR");
        assert_eq!(exact_money(4_705_000, "USD"), "$4.705");
        assert_eq!(exact_money(1_234_000_000, "USD"), "$1,234.00");
        assert_eq!(exact_money(-1, "EUR"), "-0.000001 EUR");
    }

    #[test]
    fn a_price_is_told_to_the_last_micro() {
        assert_eq!(price(1_000, 1), "0.001");
        assert_eq!(price(1_500_000, 1_000), "1.5 per 1,000");
        assert_eq!(price(2_000_000, 1), "2");
        assert_eq!(price(1, 1), "0.000001");
    }

    #[test]
    fn times_are_in_utc_and_spans_are_rough() {
        let at = |seconds| Timestamp { seconds, nanos: 999_999_999 };
        assert_eq!(utc(Some(&at(1_795_971_600))), "2026-11-29 17:00 UTC");
        assert_eq!(rfc3339(Some(&at(1_795_971_600))).as_deref(), Some("2026-11-29T17:00:00Z"));
        assert_eq!((utc(None).as_str(), rfc3339(None)), ("-", None));
        let spans = [0, 7_199, 7_200, 172_799, 172_800].map(|to| span(Some(&at(0)), Some(&at(to))));
        let spans = spans.map(Option::unwrap_or_default);
        assert_eq!(spans, ["0 minutes", "119 minutes", "2 hours", "47 hours", "2 days"]);
    }

    #[test]
    fn what_steers_a_terminal_is_not_printed() {
        assert_eq!(harmless("/v1/\u{1b}[2J\n\u{9b}x"), "/v1/\u{fffd}[2J\u{fffd}\u{fffd}x");
    }
}
