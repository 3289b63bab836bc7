//! The two forms of an error's body: `{"error": "<short>", …}`, and `application/problem+json` (RFC 9457)
//! for a client whose `Accept` names it.

use axum::{
    Json,
    body::Body,
    response::{IntoResponse, Response},
};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE},
};
use serde_json::{Map, Value};

const PROBLEM_JSON: &str = "application/problem+json";
/// Registered by the IETF draft "RateLimit header fields for HTTP".
const QUOTA_EXCEEDED: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";

/// What an error answer says; it travels beside the answer, so that the outermost layer can log the reason
/// and choose the form.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Status.
    pub status: StatusCode,
    /// Short text.
    pub error: &'static str,
    /// Members beside it.
    pub members: Map<String, Value>,
    /// For the log only.
    pub reason: String,
}

/// The answer in its plain form.
pub fn answer(failure: Failure) -> Response {
    let mut body = Map::new();
    body.insert("error".to_owned(), failure.error.into());
    body.extend(failure.members.clone());
    let mut response = (failure.status, Json(body)).into_response();
    response.extensions_mut().insert(failure);
    response
}

/// Whether the client asks for problems.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    let accepts = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok());
    accepts.flat_map(|v| v.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let named = parts.next().is_some_and(|t| t.eq_ignore_ascii_case(PROBLEM_JSON));
        named && !parts.any(is_refusal)
    })
}

/// Whether a parameter is a weight of zero.
fn is_refusal(parameter: &str) -> bool {
    let weight = parameter.strip_prefix("q=").or_else(|| parameter.strip_prefix("Q="));
    weight.is_some_and(|w| w.trim().parse::<f32>().is_ok_and(|w| w == 0.0))
}

/// Gives an error answer the form of a problem; other answers stay as they are.
pub fn convert(response: Response) -> Response {
    let Some(failure) = response.extensions().get::<Failure>().cloned() else {
        return response;
    };
    let (mut parts, _) = response.into_parts();
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    parts.headers.remove(CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(Value::Object(problem(&failure)).to_string()))
}

fn problem(failure: &Failure) -> Map<String, Value> {
    let over_quota = failure.status == StatusCode::TOO_MANY_REQUESTS;
    let phrase = failure.status.canonical_reason().unwrap_or_default();
    let detail = failure.members.get("message").cloned().unwrap_or_else(|| failure.error.into());
    let mut problem = Map::new();
    problem.insert("type".to_owned(), if over_quota { QUOTA_EXCEEDED } else { "about:blank" }.into());
    problem.insert("title".to_owned(), phrase.into());
    problem.insert("status".to_owned(), failure.status.as_u16().into());
    problem.insert("detail".to_owned(), detail);
    problem.insert("error".to_owned(), failure.error.into());
    problem.extend(failure.members.clone());
    problem
}
