//! A line of the combined or common form, or of JSON, becomes a call.

use chrono::{DateTime, Datelike, Utc};
use regex::Regex;
use serde_json::{Map, Value};

use super::args::{Format, ImportArgs, LatencyUnit};

/// Bytes of an event's endpoint, by the contract.
const LONGEST_ENDPOINT: usize = 512;
const TIME_FORMAT: &str = "%d/%b/%Y:%H:%M:%S %z";

/// A call, as a line tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    /// Who is charged, as the log names them.
    pub(super) caller: String,
    pub(super) time: DateTime<Utc>,
    pub(super) method: String,
    /// Without its query.
    pub(super) path: String,
    pub(super) status: i32,
    pub(super) latency_ms: i32,
}

/// Why a line is no call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("longer than {} bytes", super::lines::LONGEST_LINE)]
    TooLong,
    #[error("not of the {0} form")]
    Form(&'static str),
    #[error("the time `{0}` is none")]
    Time(String),
    #[error("the request `{0}` is not `METHOD path HTTP/x`")]
    Request(String),
    #[error("not a JSON object: {0}")]
    Json(String),
    #[error("the field `{0}` is missing")]
    Missing(String),
    #[error("the field `{0}` has a value that cannot be used")]
    Value(String),
}

/// Reads lines of one form.
pub(super) enum Parser {
    Ncsa { form: &'static str, line: Box<Regex> },
    Json(Box<JsonFields>),
}

pub(super) struct JsonFields {
    account: String,
    time: String,
    method: String,
    path: String,
    status: String,
    latency: String,
    unit: LatencyUnit,
}

impl Parser {
    pub(super) fn new(args: &ImportArgs) -> Self {
        // host ident user [time] "request" status bytes, and what a server adds after it. A quote within
        // quotes has a backslash before it.
        const COMMON: &str = r#"^(\S+) \S+ .*?\[([^\]]+)\] "((?:[^"\\]|\\.)*)" (\d{3}) (?:\d+|-)"#;
        const AGENT: &str = r#" "(?:[^"\\]|\\.)*" "(?:[^"\\]|\\.)*""#;
        let ncsa = |form, pattern: String| Self::Ncsa {
            form,
            line: Box::new(Regex::new(&pattern).expect("a constant pattern")),
        };
        match args.format {
            Format::Common => ncsa("common", format!("{COMMON}(?: |$)")),
            Format::Combined => ncsa("combined", format!("{COMMON}{AGENT}(?: |$)")),
            Format::Json => Self::Json(Box::new(JsonFields {
                account: args.account_by.clone(),
                time: args.time_field.clone(),
                method: args.method_field.clone(),
                path: args.path_field.clone(),
                status: args.status_field.clone(),
                latency: args.latency_field.clone(),
                unit: args.latency_unit,
            })),
        }
    }

    /// The call of a line.
    pub(super) fn call(&self, line: Option<&[u8]>) -> Result<Call, Malformed> {
        // What is not UTF-8 in a log stands in paths and agents; it must not hide the call.
        let text = String::from_utf8_lossy(line.ok_or(Malformed::TooLong)?);
        let call = match self {
            Self::Ncsa { form, line } => ncsa(form, line, &text),
            Self::Json(fields) => fields.call(&text),
        }?;
        // RFC 3339 writes no others; and sums of them stay in range.
        let year = call.time.year();
        if (1..=9999).contains(&year) { Ok(call) } else { Err(Malformed::Time(format!("year {year}"))) }
    }
}

fn ncsa(form: &'static str, line: &Regex, text: &str) -> Result<Call, Malformed> {
    let (_, [caller, time, request, status]) = line.captures(text).ok_or(Malformed::Form(form))?.extract();
    let time = DateTime::parse_from_str(time, TIME_FORMAT).map_err(|_| Malformed::Time(time.to_owned()))?;
    let (method, path) = method_and_path(request).ok_or_else(|| Malformed::Request(shortened(request)))?;
    Ok(Call {
        caller: caller.to_owned(),
        time: time.to_utc(),
        method: method.to_owned(),
        path: recorded(path).to_owned(),
        status: status.parse().map_err(|_| Malformed::Form(form))?,
        latency_ms: 0,
    })
}

fn method_and_path(request: &str) -> Option<(&str, &str)> {
    let (method, rest) = request.split_once(' ')?;
    // A path with a raw blank in it is still one path; without a version it is HTTP/0.9.
    let path = rest.rsplit_once(" HTTP/").map_or(rest, |(path, _)| path).trim();
    let is_method = !method.is_empty() && method.bytes().all(|c| c.is_ascii_alphabetic());
    (is_method && !path.is_empty()).then_some((method, path))
}

/// The path as it is recorded: without its query, and cut where an event's endpoint ends. The call counts,
/// however long its path.
fn recorded(path: &str) -> &str {
    let bare = path.split(['?', '#']).next().unwrap_or(path);
    &bare[..bare.floor_char_boundary(LONGEST_ENDPOINT)]
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

impl JsonFields {
    fn call(&self, text: &str) -> Result<Call, Malformed> {
        let object: Map<String, Value> =
            serde_json::from_str(text).map_err(|e| Malformed::Json(e.to_string()))?;
        let path = self.text(&object, &self.path)?;
        Ok(Call {
            caller: self.text(&object, &self.account)?,
            time: self.time(&object)?,
            method: self.text(&object, &self.method)?,
            path: recorded(&path).to_owned(),
            status: self.status(&object)?,
            latency_ms: self.latency(&object)?,
        })
    }

    fn field<'a>(&self, object: &'a Map<String, Value>, name: &str) -> Result<&'a Value, Malformed> {
        object.get(name).filter(|v| !v.is_null()).ok_or_else(|| Malformed::Missing(name.to_owned()))
    }

    fn text(&self, object: &Map<String, Value>, name: &str) -> Result<String, Malformed> {
        match self.field(object, name)? {
            Value::String(text) if !text.is_empty() => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            _ => Err(Malformed::Value(name.to_owned())),
        }
    }

    fn time(&self, object: &Map<String, Value>) -> Result<DateTime<Utc>, Malformed> {
        let bad = || Malformed::Value(self.time.clone());
        let seconds = |seconds: f64| {
            let micros = Some(seconds * 1e6).filter(|micros| micros.is_finite());
            micros.and_then(|micros| DateTime::from_timestamp_micros(micros as i64)).ok_or_else(bad)
        };
        match self.field(object, &self.time)? {
            Value::Number(number) => seconds(number.as_f64().ok_or_else(bad)?),
            Value::String(text) => match DateTime::parse_from_rfc3339(text) {
                Ok(time) => Ok(time.to_utc()),
                Err(_) => seconds(text.parse().map_err(|_| bad())?),
            },
            _ => Err(bad()),
        }
    }

    fn status(&self, object: &Map<String, Value>) -> Result<i32, Malformed> {
        let bad = || Malformed::Value(self.status.clone());
        match self.field(object, &self.status)? {
            Value::Number(number) => number.as_i64().and_then(|n| i32::try_from(n).ok()).ok_or_else(bad),
            Value::String(text) => text.parse().map_err(|_| bad()),
            _ => Err(bad()),
        }
    }

    fn latency(&self, object: &Map<String, Value>) -> Result<i32, Malformed> {
        let bad = || Malformed::Value(self.latency.clone());
        let number: f64 = match object.get(&self.latency) {
            None | Some(Value::Null) => return Ok(0),
            Some(Value::Number(number)) => number.as_f64().ok_or_else(bad)?,
            Some(Value::String(text)) => text.parse().map_err(|_| bad())?,
            Some(_) => return Err(bad()),
        };
        let ms = match self.unit {
            LatencyUnit::Ms => number,
            LatencyUnit::S => number * 1_000.0,
        };
        if (0.0..=86_400_000.0).contains(&ms) { Ok(ms.round() as i32) } else { Err(bad()) }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: ImportArgs,
    }

    fn parser(arguments: &[&str]) -> Parser {
        let all = ["import", "file", "--token", "t"].iter().chain(arguments);
        Parser::new(&Cli::parse_from(all).args)
    }

    fn call(arguments: &[&str], line: &str) -> Result<Call, Malformed> {
        parser(arguments).call(Some(line.as_bytes()))
    }

    #[test]
    fn combined_lines() {
        let line = r#"192.0.2.7 - ann [17/May/2015:12:05:03 +0200] "GET /docs/a%20b?q=1 HTTP/1.1" 200 2326 "http://x.example/" "Agent \"7\"""#;
        let call = call(&[], line).expect("a line");
        assert_eq!(
            (call.caller.as_str(), call.method.as_str(), call.path.as_str(), call.status),
            ("192.0.2.7", "GET", "/docs/a%20b", 200)
        );
        assert_eq!(call.time.to_rfc3339(), "2015-05-17T10:05:03+00:00");
    }

    #[test]
    fn lines_with_more_than_the_form_has() {
        let base = r#"2001:db8::1 - - [01/Jan/2026:00:00:00 +0000] "POST /a b HTTP/2.0" 404 -"#;
        assert_eq!(call(&["--format", "common"], base).expect("a line").path, "/a b");
        let long = base.replace("/a b", &format!("/{}", "ü".repeat(400)));
        assert_eq!(call(&["--format", "common"], &long).expect("a line").path.len(), 511);
        let more = format!(r#"{base} "-" "-" 0.123 upstream"#);
        assert_eq!(call(&[], &more).expect("a line").status, 404);
        assert_eq!(call(&["--format", "common"], &more).expect("a line").status, 404);
    }

    #[test]
    fn malformed_lines_say_why() {
        let common = &["--format", "common"];
        assert_eq!(call(&[], "nonsense"), Err(Malformed::Form("combined")));
        let line = r#"h - - [99/May/2015:12:05:03 +0200] "GET / HTTP/1.1" 200 1"#;
        assert_eq!(call(common, line), Err(Malformed::Time("99/May/2015:12:05:03 +0200".to_owned())));
        let line = r#"h - - [17/May/2015:12:05:03 +0200] "\x16\x03" 400 1"#;
        assert_eq!(call(common, line), Err(Malformed::Request(r"\x16\x03".to_owned())));
        assert_eq!(parser(&[]).call(None), Err(Malformed::TooLong));
        // Without referrer and agent it is common, not combined.
        let line = r#"h - - [17/May/2015:12:05:03 +0200] "GET / HTTP/1.1" 200 1"#;
        assert_eq!(call(&[], line), Err(Malformed::Form("combined")));
    }

    #[test]
    fn json_lines() {
        let json =
            &["--format", "json", "--account-by", "tenant", "--latency-field", "took", "--latency-unit", "s"];
        let line = r#"{"tenant":"acme","time":"2026-01-02T03:04:05.5Z","method":"GET","path":"/v1/x?y","status":201,"took":0.0126}"#;
        let read = call(json, line).expect("a line");
        assert_eq!(
            (read.caller.as_str(), read.path.as_str(), read.status, read.latency_ms),
            ("acme", "/v1/x", 201, 13)
        );
        let epoch = r#"{"tenant":7,"time":1767323045.5,"method":"GET","path":"/","status":"200"}"#;
        let other = call(json, epoch).expect("a line");
        assert_eq!((other.time, other.caller.as_str(), other.latency_ms), (read.time, "7", 0));
        assert_eq!(call(json, r#"{"time":1}"#), Err(Malformed::Missing("path".to_owned())));
        let far = r#"{"tenant":"a","time":8e12,"method":"GET","path":"/","status":200}"#;
        assert_eq!(call(json, far), Err(Malformed::Time("year 255479".to_owned())));
        let none = r#"{"tenant":"a","time":"NaN","method":"GET","path":"/","status":200}"#;
        assert_eq!(call(json, none), Err(Malformed::Value("time".to_owned())));
        let bad = r#"{"tenant":"a","time":"noon","method":"GET","path":"/","status":200}"#;
        assert_eq!(call(json, bad), Err(Malformed::Value("time".to_owned())));
    }
}
