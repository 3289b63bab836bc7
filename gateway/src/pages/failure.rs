//! What went wrong, as a page: the same failures as over REST, for somebody who reads.

use axum::response::{IntoResponse, Response};
use http::{
    HeaderMap, StatusCode,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE},
};
use maud::{Markup, html};

use super::layout::Bare;
use crate::problem::Failure;

/// Paths whose answers are for programs, whatever these accept.
const FOR_PROGRAMS: [&str; 4] = ["/api/", "/webhooks/", "/healthz", "/readyz"];

/// Whether a request is a browser's for a page.
pub fn is_wanted(headers: &HeaderMap, path: &str) -> bool {
    let mut accepts = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepts.any(|value| value.contains("text/html"))
        && !FOR_PROGRAMS.iter().any(|prefix| path.starts_with(prefix))
}

/// Gives an error answer the form of a page; other answers stay as they are.
pub fn convert(response: Response) -> Response {
    let Some(failure) = response.extensions().get::<Failure>().cloned() else {
        return response;
    };
    let mut headers = response.headers().clone();
    headers.remove(CONTENT_TYPE);
    headers.remove(CONTENT_LENGTH);
    let (title, text) = words(&failure);
    let mut page = Bare { title, main: main(&failure, title, text) }.into_response();
    *page.status_mut() = failure.status;
    page.headers_mut().extend(headers);
    page.extensions_mut().insert(failure);
    page
}

fn main(failure: &Failure, title: &str, text: &str) -> Markup {
    let message = failure.members.iter().find(|(name, _)| *name == "message").and_then(|(_, m)| m.as_str());
    let violations = failure.members.iter().find(|(name, _)| *name == "violations");
    let violations = violations.and_then(|(_, all)| all.as_array());
    let signed_out = failure.status == StatusCode::UNAUTHORIZED;
    html! {
        h1 { (title) }
        @if let Some(violations) = violations {
            ul {
                @for violation in violations {
                    li { (words_of(&violation["field"])) " " (violation["message"].as_str().unwrap_or_default()) }
                }
            }
        } @else {
            p { (message.unwrap_or(text)) }
        }
        p {
            @if signed_out { a class="button" href="/sign-in" { "Sign in" } }
            @else { a class="button" href="/" { "To the first page" } }
        }
    }
}

/// A field's name, as a word.
fn words_of(field: &serde_json::Value) -> String {
    field.as_str().unwrap_or_default().replace('_', " ")
}

fn words(failure: &Failure) -> (&'static str, &'static str) {
    match failure.status {
        StatusCode::BAD_REQUEST => ("This cannot be done", "What was sent could not be read."),
        StatusCode::UNAUTHORIZED => ("Your session has ended", "Sign in again to go on."),
        StatusCode::FORBIDDEN if failure.error == "Account closed" => {
            ("The account is closed", "A closed account can be looked at, and not be changed.")
        }
        StatusCode::FORBIDDEN => ("Not for this account", "Only administrators see this page."),
        StatusCode::NOT_FOUND if failure.error == "Not found" => {
            ("Page not found", "There is no page at this address.")
        }
        StatusCode::NOT_FOUND if failure.error == "Account not found" => {
            ("No such account", "There is no account of this id, or it is not known here yet.")
        }
        StatusCode::NOT_FOUND => ("Not found", "What you asked for does not exist, or is not yours."),
        StatusCode::METHOD_NOT_ALLOWED => ("This cannot be done", "This address takes no such request."),
        StatusCode::PAYLOAD_TOO_LARGE => ("This is too long", "What was sent is longer than what is taken."),
        StatusCode::CONFLICT => ("This cannot be done now", failure.error),
        StatusCode::PAYMENT_REQUIRED => {
            ("The payment was refused", "Stripe refused it. Nothing was changed.")
        }
        StatusCode::TOO_MANY_REQUESTS => ("Too many requests", "Try again in a moment."),
        StatusCode::SERVICE_UNAVAILABLE => {
            ("Not available right now", "A part of the service does not answer. Try again in a moment.")
        }
        _ => ("Something went wrong", "It is our fault, and was written down. Try again in a moment."),
    }
}
