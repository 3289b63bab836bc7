//! Query parameters, and the part of a path that is not fixed. What is malformed is collected, all of it, with the names a client knows; parameters
//! a route does not have are passed over.

use std::{convert::Infallible, str::FromStr};

use axum::extract::{FromRequestParts, Path, path::ErrorKind, rejection::PathRejection};
use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use http::request::Parts;
use nexus_kit::validate::Violations;

use crate::error::Error;

/// Longest period that is looked at.
pub const MAX_DAYS: i32 = 365;
/// Longest time of which revenue is shown.
pub const MAX_MONTHS: i32 = 60;
/// Longest page.
pub const MAX_LIMIT: i32 = 100;

/// An email address has at most so many (RFC 5321).
const MAX_TEXT: usize = 320;

/// The parameters of a request, and what is wrong with those read so far.
pub struct Params {
    pairs: Vec<(String, String)>,
    violations: Violations,
}

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(parts.uri.query().unwrap_or_default()))
    }
}

/// The part of a path that names a thing.
pub struct Named(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let named = Path::<String>::from_request_parts(parts, state).await;
        named.map(|Path(name)| Self(name)).map_err(|rejection| malformed(&rejection))
    }
}

/// What is wrong with a path, by the name that the route has for the part at fault.
fn malformed(rejection: &PathRejection) -> Error {
    let kind = match rejection {
        PathRejection::FailedToDeserializePathParams(failed) => failed.kind(),
        other => return Error::Internal(other.body_text()),
    };
    match kind {
        ErrorKind::InvalidUtf8InPathParam { key } => Violations::one(key, "must be UTF-8 text").into(),
        other => Error::Internal(other.to_string()),
    }
}

impl Params {
    fn of(query: &str) -> Self {
        let pairs = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        Self { pairs, violations: Violations::new() }
    }

    /// The text of a parameter that is given once.
    pub fn text(&mut self, name: &str) -> Option<String> {
        let mut values = self.pairs.iter().filter(|(n, _)| n == name).map(|(_, v)| v);
        let value = values.next()?.clone();
        if values.next().is_some() {
            self.violations.add(name, "must be given once");
            return None;
        }
        Some(value)
    }

    /// Days up to today, above 365 cut to it.
    pub fn days(&mut self, default: i32) -> i32 {
        self.positive("days", default, MAX_DAYS)
    }

    /// Rows a page, above 100 cut to it.
    pub fn limit(&mut self, default: i32) -> i32 {
        self.positive("limit", default, MAX_LIMIT)
    }

    /// Months up to this one, above 60 cut to it.
    pub fn months(&mut self, default: i32) -> i32 {
        self.positive("months", default, MAX_MONTHS)
    }

    /// An instant, or the beginning of a day (UTC); it must be given.
    pub fn instant(&mut self, name: &str) -> DateTime<Utc> {
        let text = self.text(name).unwrap_or_default();
        let instant = DateTime::parse_from_rfc3339(&text).ok().map(|at| at.to_utc());
        // Of parsers of dates, some take one digit for two.
        let form = |(at, c): (usize, u8)| if matches!(at, 4 | 7) { c == b'-' } else { c.is_ascii_digit() };
        let whole = text.len() == 10 && text.bytes().enumerate().all(form);
        let day = || {
            text.parse::<NaiveDate>().ok().filter(|_| whole).map(|day| day.and_time(NaiveTime::MIN).and_utc())
        };
        instant.or_else(day).unwrap_or_else(|| {
            self.violations.add(name, "must be a time as RFC 3339 has it, or a date such as 2026-11-30");
            DateTime::UNIX_EPOCH
        })
    }

    /// Number of a page, from 1.
    pub fn page(&mut self) -> i32 {
        self.positive("page", 1, i32::MAX)
    }

    /// A whole number from 1, cut to `max`.
    fn positive(&mut self, name: &str, default: i32, max: i32) -> i32 {
        let Some(text) = self.text(name) else {
            return default;
        };
        if text.is_empty() || !text.bytes().all(|c| c.is_ascii_digit()) || text.bytes().all(|c| c == b'0') {
            self.violations.add(name, "must be a whole number of at least 1");
            return default;
        }
        // Digits only: what does not fit is too large.
        text.parse::<i32>().map_or(max, |number| number.min(max))
    }

    /// One of the words of a type.
    pub fn word<T: FromStr>(&mut self, name: &str, expected: &str) -> Option<T> {
        let text = self.text(name)?;
        let word = text.parse().ok();
        if word.is_none() {
            self.violations.add(name, format!("must be one of {expected}"));
        }
        word
    }

    /// The same where an empty text is none, as forms send it.
    pub fn choice<T: FromStr>(&mut self, name: &str, expected: &str) -> Option<T> {
        self.pairs.retain(|(its, value)| its != name || !value.is_empty());
        self.word(name, expected)
    }

    /// The token of a page, as the service made it; empty: the first page.
    pub fn page_token(&mut self) -> String {
        self.text("page_token").unwrap_or_default()
    }

    /// A short text without control characters.
    pub fn short_text(&mut self, name: &str) -> String {
        let text = self.text(name).unwrap_or_default();
        let fits = text.len() <= MAX_TEXT;
        self.violations.require(fits, name, format!("must be at most {MAX_TEXT} bytes"));
        let plain = !text.chars().any(|c| c.is_control() || c == char::REPLACEMENT_CHARACTER);
        self.violations.require(plain, name, "must be UTF-8 text without control characters");
        text
    }

    /// All violations, if there are any.
    pub fn finish(self) -> Result<(), Error> {
        Ok(self.violations.finish()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn days(query: &str) -> Result<i32, String> {
        let mut params = Params::of(query);
        let days = params.days(30);
        params.finish().map_err(|e| e.to_string())?;
        Ok(days)
    }

    #[test]
    fn days_are_capped_and_must_be_positive() {
        assert_eq!(days(""), Ok(30));
        assert_eq!(days("days=7&other=x"), Ok(7));
        assert_eq!(days("days=365"), Ok(365));
        assert_eq!(days("days=366"), Ok(365));
        assert_eq!(days("days=99999999999999999999"), Ok(365));
        for bad in [
            "days=",
            "days=0",
            "days=00",
            "days=-1",
            "days=1.5",
            "days=7d",
            "days=%2B7",
            "days=%FF",
            "days=1&days=2",
        ] {
            assert!(days(bad).is_err_and(|e| e.contains("days: ")), "{bad}");
        }
    }

    #[test]
    fn instants_are_times_or_days() {
        let instant = |query: &str| {
            let mut params = Params::of(query);
            let at = params.instant("start").to_rfc3339();
            params.finish().map(|()| at).map_err(|e| e.to_string())
        };
        for (query, at) in [
            ("start=2026-11-30T12:00:00Z", "2026-11-30T12:00:00+00:00"),
            ("start=2026-11-30T12:00:00.5%2B01:00", "2026-11-30T11:00:00.500+00:00"),
            ("start=2026-11-30", "2026-11-30T00:00:00+00:00"),
        ] {
            assert_eq!(instant(query).as_deref(), Ok(at), "{query}");
        }
        for bad in [
            "",
            "start=",
            "start=2026-11-31",
            "start=2026-1-1",
            "start=%202026-1-01",
            "start=1764504000",
            "start=2026-11-30&start=2026-11-30",
        ] {
            assert!(instant(bad).is_err_and(|e| e.contains("start: ")), "{bad}");
        }
    }

    #[test]
    fn all_violations_are_collected() {
        let mut params = Params::of("page=0&limit=x&plan=gold&q=%00");
        params.page();
        params.limit(50);
        params.word::<nexus_core::plan::Plan>("plan", "free, pro, enterprise");
        params.short_text("q");
        let violations = params.violations.0.iter().map(|v| v.field.as_str()).collect::<Vec<_>>();
        assert_eq!(violations, ["page", "limit", "plan", "q"]);
    }
}
