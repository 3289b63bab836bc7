//! The two forms of an error's body: `{"error": "<short>", …}`, and `application/problem+json` (RFC 9457)
//! for a client whose `Accept` names it.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE},
};
use serde::{Serialize, Serializer};
use serde_json::Value;

const PROBLEM_JSON: &str = "application/problem+json";
/// Registered by the IETF draft "RateLimit header fields for HTTP".
const QUOTA_EXCEEDED: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";

/// Members of an object, in their order.
pub type Members = Vec<(&'static str, Value)>;

/// What an error answer says; it travels beside the answer, so that the outermost layer can log the reason
/// and choose the form.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Status.
    pub status: StatusCode,
    /// Short text.
    pub error: &'static str,
    /// Members beside it.
    pub members: Members,
    /// For the log only.
    pub reason: String,
}

/// The answer in its plain form.
pub fn answer(failure: Failure) -> Response {
    let mut body = vec![("error", failure.error.into())];
    body.extend(failure.members.iter().cloned());
    let mut response = (failure.status, Json(InOrder(body))).into_response();
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
    let headers = response.headers().clone();
    let mut problem = (failure.status, Json(InOrder(problem(&failure)))).into_response();
    problem.headers_mut().extend(headers);
    problem.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    problem.headers_mut().remove(CONTENT_LENGTH);
    problem.extensions_mut().insert(failure);
    problem
}

fn problem(failure: &Failure) -> Members {
    let over_quota = failure.status == StatusCode::TOO_MANY_REQUESTS;
    let told = failure.members.iter().find(|(name, _)| *name == "message");
    let mut problem = vec![
        ("type", if over_quota { QUOTA_EXCEEDED } else { "about:blank" }.into()),
        ("title", failure.status.canonical_reason().unwrap_or_default().into()),
        ("status", failure.status.as_u16().into()),
        ("detail", told.map_or_else(|| failure.error.into(), |(_, message)| message.clone())),
        ("error", failure.error.into()),
    ];
    problem.extend(failure.members.iter().cloned());
    problem
}

/// An object whose members stay in their order.
struct InOrder(Members);

impl Serialize for InOrder {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}
