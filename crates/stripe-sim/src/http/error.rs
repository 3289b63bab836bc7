//! Stripe's error form.

use axum::http::StatusCode;
use serde_json::{Map, Value, json};

/// An error as the API answers it.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) kind: Box<str>,
    pub(crate) code: Option<Box<str>>,
    pub(crate) decline_code: Option<Box<str>>,
    pub(crate) message: Box<str>,
    pub(crate) param: Option<Box<str>>,
    /// Whether the endpoint had begun to execute. Only then is the answer kept for the
    /// idempotency key; a request that fails validation may be corrected and sent again.
    pub(crate) executed: bool,
    /// Whether what the endpoint did stays done all the same.
    pub(crate) keeps: bool,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, kind: &str, message: impl Into<Box<str>>) -> Self {
        Self {
            status,
            kind: kind.into(),
            code: None,
            decline_code: None,
            message: message.into(),
            param: None,
            executed: true,
            keeps: false,
        }
    }

    /// The state of things forbids it: found out while executing.
    pub(crate) fn refused(message: impl Into<Box<str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// The request itself is wrong: found out before executing.
    pub(crate) fn invalid(code: &str, param: &str, message: impl Into<Box<str>>) -> Self {
        Self { executed: false, ..Self::refused(message).code(code).param(param) }
    }

    /// The object a URL names does not exist.
    pub(crate) fn not_found(what: &str, id: &str) -> Self {
        let mut error = Self::missing(what, id, "id");
        error.status = StatusCode::NOT_FOUND;
        error
    }

    /// The object a parameter names does not exist.
    pub(crate) fn missing(what: &str, id: &str, param: &str) -> Self {
        Self::refused(format!("No such {what}: '{id}'")).code("resource_missing").param(param)
    }

    pub(crate) fn card_declined() -> Self {
        let mut error = Self::new(StatusCode::PAYMENT_REQUIRED, "card_error", "The card was declined.")
            .code("card_declined");
        error.decline_code = Some("generic_decline".into());
        error
    }

    pub(crate) fn internal(message: impl Into<Box<str>>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "api_error", message)
    }

    pub(crate) fn code(mut self, code: &str) -> Self {
        self.code = Some(code.into());
        self
    }

    pub(crate) fn param(mut self, param: &str) -> Self {
        self.param = Some(param.into());
        self
    }

    /// The JSON body. Absent fields are left out, as Stripe does.
    pub(crate) fn body(&self, request_id: &str, now: i64) -> Value {
        let mut error = Map::new();
        error.insert("type".to_owned(), json!(self.kind));
        error.insert("message".to_owned(), json!(self.message));
        if let Some(code) = &self.code {
            error.insert("code".to_owned(), json!(code));
            let page = code.replace('_', "-");
            let doc_url = format!("https://docs.stripe.com/error-codes/{page}");
            error.insert("doc_url".to_owned(), json!(doc_url));
        }
        if let Some(decline_code) = &self.decline_code {
            error.insert("decline_code".to_owned(), json!(decline_code));
        }
        if let Some(param) = &self.param {
            error.insert("param".to_owned(), json!(param));
        }
        let log = format!("https://dashboard.stripe.com/test/logs/{request_id}?t={now}");
        error.insert("request_log_url".to_owned(), json!(log));
        json!({ "error": error })
    }
}
