//! An answer, and how it looks in a snapshot.

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use insta::internals::{Content, ContentPath, Redaction};
use nexus_core::id::{ApiKeyText, is_api_key_id};
use reqwest::{RequestBuilder, StatusCode, header::HeaderMap};
use serde_json::{Map, Value, json};

/// Headers that belong to the contract.
const SHOWN: [&str; 10] = [
    "allow",
    "content-type",
    "ratelimit",
    "ratelimit-policy",
    "retry-after",
    "www-authenticate",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "location",
];

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    /// Sends a request; checks what every answer has.
    pub(crate) async fn of(request: RequestBuilder) -> Result<Self> {
        let answer = request.send().await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let text = answer.text().await?;
        let answer =
            Self { status, headers, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) };
        ensure!(answer.header("x-content-type-options") == Some("nosniff"), "{answer:?}");
        // What can be told by its tag may be kept, by the client alone.
        let kept = if answer.header("etag").is_some() { "private, no-cache" } else { "no-store" };
        ensure!(answer.header("cache-control") == Some(kept), "{answer:?}");
        ensure!(answer.header("x-request-id").is_some_and(|id| !id.is_empty()), "{answer:?}");
        Ok(answer)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// A number in a header.
    pub(crate) fn number(&self, name: &str) -> Result<i64> {
        let text = self.header(name).with_context(|| format!("{name} in {self:?}"))?;
        text.parse().with_context(|| format!("{name}: {text}"))
    }

    /// What a snapshot holds: status, headers of the contract, body.
    pub(crate) fn shown(&self) -> Value {
        let headers = SHOWN.iter().filter_map(|name| Some(((*name).to_owned(), self.header(name)?.into())));
        json!({
            "status": self.status.as_u16(),
            "headers": headers.collect::<Map<_, _>>(),
            "body": self.body,
        })
    }
}

/// Stands for a time that differs in each run, once it is known to be RFC 3339 in UTC.
pub(crate) fn time() -> Redaction {
    insta::dynamic_redaction(|value: Content, path: ContentPath<'_>| {
        let text = value.as_str().unwrap_or_default();
        assert!(text.ends_with('Z') && text.parse::<DateTime<Utc>>().is_ok(), "{path}: {value:?}");
        "[time]"
    })
}

/// The day's date, by the clock.
pub(crate) fn date() -> Redaction {
    insta::dynamic_redaction(|value: Content, path: ContentPath<'_>| {
        let text = value.as_str().unwrap_or_default();
        assert!(text.parse::<chrono::NaiveDate>().is_ok(), "{path}: {value:?}");
        "[date]"
    })
}

/// Stands for the public id of an API key.
pub(crate) fn key_id() -> Redaction {
    insta::dynamic_redaction(|value: Content, path: ContentPath<'_>| {
        assert!(value.as_str().is_some_and(is_api_key_id), "{path}: {value:?}");
        "[key id]"
    })
}

/// Stands for an API key with its secret.
pub(crate) fn key() -> Redaction {
    insta::dynamic_redaction(|value: Content, path: ContentPath<'_>| {
        assert!(value.as_str().is_some_and(|text| ApiKeyText::parse(text).is_ok()), "{path}");
        "[key]"
    })
}

/// Stands for an id of ours, a UUID.
pub(crate) fn uuid() -> Redaction {
    insta::dynamic_redaction(|value: Content, path: ContentPath<'_>| {
        assert!(value.as_str().is_some_and(|text| text.parse::<uuid::Uuid>().is_ok()), "{path}: {value:?}");
        "[uuid]"
    })
}

/// Stands for a number of milliseconds.
pub(crate) fn millis() -> Redaction {
    insta::dynamic_redaction(|value: Content, path: ContentPath<'_>| {
        assert!(value.as_i64().is_some_and(|ms| ms >= 0), "{path}: {value:?}");
        "[ms]"
    })
}

/// The draft's fields with the seconds, which differ by month and moment, taken out.
pub(crate) fn seconds() -> Redaction {
    insta::dynamic_redaction(|value: Content, path: ContentPath<'_>| {
        let text = value.as_str().unwrap_or_default();
        let (start, seconds) = text.rsplit_once('=').unwrap_or_default();
        let range = if start.ends_with(";w") { 28 * 86_400..=31 * 86_400 } else { 1..=31 * 86_400 };
        assert!(seconds.parse().is_ok_and(|s: i64| range.contains(&s)), "{path}: {value:?}");
        format!("{start}=[seconds]")
    })
}

/// Snapshots an answer whose body and headers hold times at the usual places.
macro_rules! assert_answer {
    ($answer:expr) => {
        insta::assert_json_snapshot!($answer.shown(), {
            ".body.period_start" => $crate::answer::time(),
            ".body.period_end" => $crate::answer::time(),
            ".body.timestamp" => $crate::answer::time(),
            ".body.duration_ms" => $crate::answer::millis(),
            ".body.run_id" => "[run]",
            ".body.history[].date" => $crate::answer::date(),
            ".body.users[].created_at" => $crate::answer::time(),
            ".body.apiKeyId" => "[key]",
            ".body.key_id" => $crate::answer::key_id(),
            ".body.key" => $crate::answer::key(),
            ".body.created_at" => $crate::answer::time(),
            ".body.previous_expires_at" => $crate::answer::time(),
            ".body.keys[].id" => $crate::answer::key_id(),
            ".body.keys[].created_at" => $crate::answer::time(),
            ".body.charges[].charge_id" => $crate::answer::uuid(),
            ".body.charges[].period_start" => $crate::answer::time(),
            ".body.charges[].period_end" => $crate::answer::time(),
            ".body.charges[].created_at" => $crate::answer::time(),
            ".body.charges[].stripe_invoice_item_id" => "[item]",
            ".body.limit_reached_at" => "[time or none]",
            ".body.expected_calls" => "[calls]",
            ".body.low_calls" => "[calls]",
            ".body.high_calls" => "[calls]",
            ".body.months[].month" => "[month]",
            ".body.history_start" => "[time or none]",
            ".body.charge.charge_id" => $crate::answer::uuid(),
            ".body.charge.period_start" => $crate::answer::time(),
            ".body.charge.period_end" => $crate::answer::time(),
            ".body.charge.created_at" => $crate::answer::time(),
            ".body.charge.stripe_invoice_item_id" => "[item]",
            ".body.subscription.period_start" => $crate::answer::time(),
            ".body.subscription.period_end" => $crate::answer::time(),
            ".body.usage.period_start" => $crate::answer::time(),
            ".body.usage.period_end" => $crate::answer::time(),
            ".body.overage.period_end" => $crate::answer::time(),
            ".body.spend_cap.period_end" => $crate::answer::time(),
            ".body.stripe_customer_id" => "[customer]",
            ".headers[\"x-ratelimit-reset\"]" => $crate::answer::time(),
            ".headers[\"ratelimit-policy\"]" => $crate::answer::seconds(),
            ".headers.ratelimit" => $crate::answer::seconds(),
        })
    };
}
pub(crate) use assert_answer;
