//! Bodies: JSON objects. What is malformed is collected, all of it, with the names a client knows; members a
//! route does not have are passed over, and one that is null counts as left out.

use std::{collections::HashMap, time::Duration};

use axum::{
    body::Bytes,
    extract::{FromRequest, OptionalFromRequest, Request},
};
use http::StatusCode;
use nexus_core::money::Micros;
use nexus_kit::validate::Violations;
use serde_json::{Map, Value, value::RawValue};
use tokio::time::timeout;

use crate::error::Error;

/// The members of a body, and what is wrong with those read so far.
#[derive(Default)]
pub struct Body {
    members: Map<String, Value>,
    /// As it came.
    text: Bytes,
    violations: Violations,
}

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let bytes = whole(request, state).await?;
        Ok(Self::of(bytes)?)
    }
}

/// A body that may be left out.
impl<S: Send + Sync> OptionalFromRequest<S> for Body {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Option<Self>, Error> {
        let bytes = whole(request, state).await?;
        if bytes.is_empty() || bytes.trim_ascii() == b"null" { Ok(None) } else { Ok(Some(Self::of(bytes)?)) }
    }
}

/// Bytes that a body may have, of JSON or of a form. The longest that says something is a key's to make, with a name of 100
/// characters and 32 scopes of 100: 21 KiB, if each character is escaped.
pub const MAX_BYTES: usize = 32 * 1024;

/// Longest time that a body may take to come.
const READ_WITHIN: Duration = Duration::from_secs(10);

/// A body as it came, in time and as a whole.
pub async fn whole<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Error> {
    let not_whole = || Error::from(Violations::one("body", "must come as a whole, within 10 seconds"));
    let sent = timeout(READ_WITHIN, <Bytes as FromRequest<S>>::from_request(request, state)).await;
    sent.map_err(|_late| not_whole())?.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Error::PayloadTooLarge,
        _broke_off => not_whole(),
    })
}

impl Body {
    fn of(text: Bytes) -> Result<Self, Violations> {
        match serde_json::from_slice(&text) {
            Ok(Value::Object(members)) => Ok(Self { members, text, violations: Violations::new() }),
            Ok(_) | Err(_) => Err(Violations::one("body", "must be a JSON object")),
        }
    }

    /// A text; empty where it is left out.
    pub fn text(&mut self, name: &str) -> String {
        self.member(name, "must be a string", |value| value.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// A text that says something, where there is one.
    pub fn given_text(&mut self, name: &str) -> Option<String> {
        let read = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        self.member(name, "must be a string that is not empty", read)
    }

    /// The id under which a repeat has the first answer; empty where it is left out. Which ids are good, the service
    /// knows, but for one that says nothing: to it that is none.
    pub fn request_id(&mut self) -> String {
        let id = self.text("request_id");
        let is_given = self.members.get("request_id").is_some_and(Value::is_string);
        self.violations.require(!(is_given && id.is_empty()), "request_id", "must be a UUID");
        id
    }

    /// A list of texts; empty where it is left out.
    pub fn texts(&mut self, name: &str) -> Vec<String> {
        let read = |value: &Value| {
            value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        };
        self.member(name, "must be a list of strings", read).unwrap_or_default()
    }

    /// A yes or no; no where it is left out.
    pub fn flag(&mut self, name: &str) -> bool {
        self.member(name, "must be true or false", Value::as_bool).unwrap_or_default()
    }

    /// A whole number, where there is one.
    pub fn number(&mut self, name: &str) -> Option<i64> {
        self.member(name, "must be a whole number", Value::as_i64)
    }

    /// An amount of money, as exactly as it is written; null says that there is none, and leaving it out is a
    /// violation.
    pub fn amount(&mut self, name: &str) -> Option<Micros> {
        if self.members.get(name).is_some_and(Value::is_null) {
            return None;
        }
        // A number that was read already may have been rounded.
        let members: HashMap<String, &RawValue> = serde_json::from_slice(&self.text).unwrap_or_default();
        let amount = members.get(name).and_then(|text| text.get().parse().ok()).filter(|m: &Micros| m.0 >= 0);
        if amount.is_none() {
            self.violations.add(name, "must be an amount of 0 or more with at most six decimals, or null");
        }
        amount
    }

    fn member<T>(&mut self, name: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let value = self.members.get(name).filter(|value| !value.is_null())?;
        let read = read(value);
        if read.is_none() {
            self.violations.add(name, expected);
        }
        read
    }

    /// All violations, if there are any.
    pub fn finish(self) -> Result<(), Error> {
        Ok(self.violations.finish()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let never = axum::body::Body::from_stream(futures::stream::pending::<Result<Bytes, axum::Error>>());
        let begun = tokio::time::Instant::now();
        let read = <Body as FromRequest<()>>::from_request(Request::new(never), &()).await;
        let error = read.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("body: must come as a whole"), "{error}");
        assert_eq!(begun.elapsed(), READ_WITHIN);
    }

    #[test]
    fn only_objects_are_bodies() {
        for bad in ["", "{", "[]", "null", "\"x\"", "{} x", "{\"a\":\u{1}}"] {
            let error = Body::of(bad.into()).err().map(|v| v.to_string());
            assert_eq!(error.as_deref(), Some("body: must be a JSON object"), "{bad}");
        }
    }

    #[test]
    fn members_are_read_and_all_violations_collected() {
        let read = |json: &str| {
            let mut body = Body::of(Bytes::copy_from_slice(json.as_bytes())).expect("an object");
            let read = (body.text("a"), body.texts("b"), body.flag("c"), body.number("d"));
            (read, body.violations.0.into_iter().map(|v| v.field).collect::<Vec<_>>())
        };
        let given = (("x".to_owned(), vec!["y".to_owned()], true, Some(0)), vec![]);
        assert_eq!(read(r#"{"a":"x","b":["y"],"c":true,"d":0,"e":[]}"#), given);
        let left_out = (String::new(), vec![], false, None);
        assert_eq!(read("{}"), (left_out.clone(), vec![]));
        assert_eq!(read(r#"{"a":null,"b":null,"c":null,"d":null}"#), (left_out.clone(), vec![]));
        let bad = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        assert_eq!(read(r#"{"a":1,"b":["y",1],"c":"true","d":1.5}"#), (left_out.clone(), bad.clone()));
        assert_eq!(read(r#"{"a":[],"b":"y","c":0,"d":1e30}"#), (left_out, bad));
    }

    #[test]
    fn a_text_that_is_given_says_something() {
        let read = |json: &'static str| {
            let mut body = Body::of(json.into()).expect("an object");
            (body.given_text("a"), body.violations.0.len())
        };
        assert_eq!(read(r#"{"a":"x"}"#), (Some("x".to_owned()), 0));
        assert_eq!((read("{}"), read(r#"{"a":null}"#)), ((None, 0), (None, 0)));
        assert_eq!((read(r#"{"a":""}"#), read(r#"{"a":1}"#)), ((None, 1), (None, 1)));
    }

    #[test]
    fn a_request_id_is_left_out_or_says_something() {
        let read = |json: &'static str| {
            let mut body = Body::of(json.into()).expect("an object");
            (body.request_id(), body.violations.0.len())
        };
        assert_eq!(read(r#"{"request_id":"x"}"#), ("x".to_owned(), 0));
        for left_out in ["{}", r#"{"request_id":null}"#] {
            assert_eq!(read(left_out), (String::new(), 0));
        }
        for bad in [r#"{"request_id":""}"#, r#"{"request_id":1}"#] {
            assert_eq!(read(bad), (String::new(), 1));
        }
    }

    #[test]
    fn amounts_are_read_as_they_are_written() {
        let read = |json: &str| {
            let mut body = Body::of(Bytes::copy_from_slice(json.as_bytes())).expect("an object");
            let amount = body.amount("a").map(|amount| amount.0);
            (amount, body.violations.0.len())
        };
        for (json, micros) in [
            (r#"{"a":12.5}"#, 12_500_000),
            (r#"{"a":0,"b":[{"a":1}]}"#, 0),
            (r#"{"a":1,"a":2}"#, 2_000_000),
            // As a float it would be a micro less.
            (r#"{"\u0061": 9007199254.740993 }"#, 9_007_199_254_740_993),
        ] {
            assert_eq!(read(json), (Some(micros), 0), "{json}");
        }
        assert_eq!(read(r#"{"a":null}"#), (None, 0));
        for bad in [
            "{}",
            r#"{"a":"1"}"#,
            r#"{"a":-1}"#,
            r#"{"a":0.0000001}"#,
            r#"{"a":1e13}"#,
            r#"{"a":[1]}"#,
            r#"{"a":true}"#,
        ] {
            assert_eq!(read(bad), (None, 1), "{bad}");
        }
    }
}
