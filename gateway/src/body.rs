//! Bodies: JSON objects. What is malformed is collected, all of it, with the names a client knows; members a
//! route does not have are passed over, and one that is null counts as left out.

use axum::{
    body::Bytes,
    extract::{FromRequest, Request, rejection::BytesRejection},
};
use http::StatusCode;
use nexus_kit::validate::Violations;
use serde_json::{Map, Value};

use crate::error::Error;

/// The members of a body, and what is wrong with those read so far.
pub struct Body {
    members: Map<String, Value>,
    violations: Violations,
}

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let bytes = Bytes::from_request(request, state).await.map_err(unread)?;
        Ok(Self::of(&bytes)?)
    }
}

/// Why a body was not read: it is too long, or broke off.
pub fn unread(rejection: BytesRejection) -> Error {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        Error::PayloadTooLarge
    } else {
        Violations::one("body", "must come as a whole").into()
    }
}

impl Body {
    fn of(bytes: &[u8]) -> Result<Self, Violations> {
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(members)) => Ok(Self { members, violations: Violations::new() }),
            Ok(_) | Err(_) => Err(Violations::one("body", "must be a JSON object")),
        }
    }

    /// A text; empty where it is left out.
    pub fn text(&mut self, name: &str) -> String {
        self.member(name, "must be a string", |value| value.as_str().map(str::to_owned)).unwrap_or_default()
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

    #[test]
    fn only_objects_are_bodies() {
        for bad in ["", "{", "[]", "null", "\"x\"", "{} x", "{\"a\":\u{1}}"] {
            let error = Body::of(bad.as_bytes()).err().map(|v| v.to_string());
            assert_eq!(error.as_deref(), Some("body: must be a JSON object"), "{bad}");
        }
    }

    #[test]
    fn members_are_read_and_all_violations_collected() {
        let read = |json: &str| {
            let mut body = Body::of(json.as_bytes()).expect("an object");
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
}
