//! gRPC statuses with `google.rpc` details. Every one has an `ErrorInfo` with a reason in our domain, so
//! that a client tells errors apart without reading texts.

use std::{collections::HashMap, time::Duration};

use nexus_proto::ERROR_DOMAIN;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, QuotaViolation, StatusExt};

use crate::validate::{Violation, Violations};

/// Delay after which a caller should try again when a part of the system is away.
pub const RETRY_SOON: Duration = Duration::from_secs(1);

/// Violations are told up to so many bytes.
const MAX_TOLD_BYTES: usize = 1_500;

/// A status with `ErrorInfo` alone.
pub fn with_reason(code: Code, reason: &str, message: impl Into<String>) -> Status {
    Status::with_error_details(code, message, error_info(reason, HashMap::new()))
}

/// Invalid input, with every field at fault.
pub fn invalid(violations: &Violations) -> Status {
    let mut details = error_info("INVALID_ARGUMENT", HashMap::new());
    let told = told(&violations.0);
    let fields: Vec<_> =
        told.iter().map(|v| FieldViolation::new(v.field.clone(), v.message.clone())).collect();
    details.set_bad_request(fields);
    let mut message = Violations(told.to_vec()).to_string();
    if told.len() < violations.0.len() {
        message.push_str(&format!("; and {} more", violations.0.len() - told.len()));
    }
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// As many as fit into the headers that clients take: gRPC's own refuse more than 8 KiB, and each is said
/// three times: in words, in the details, and in the words that these repeat.
fn told(violations: &[Violation]) -> &[Violation] {
    let mut bytes = 0;
    let fit = violations.iter().take_while(|v| {
        bytes += v.field.len() + v.message.len();
        bytes <= MAX_TOLD_BYTES
    });
    &violations[..fit.count().max(1).min(violations.len())]
}

/// No or bad credentials.
pub fn unauthenticated(message: impl Into<String>) -> Status {
    with_reason(Code::Unauthenticated, "UNAUTHENTICATED", message)
}

/// Good credentials that do not suffice.
pub fn permission_denied(message: impl Into<String>) -> Status {
    with_reason(Code::PermissionDenied, "PERMISSION_DENIED", message)
}

/// No such thing.
pub fn not_found(reason: &str, message: impl Into<String>) -> Status {
    with_reason(Code::NotFound, reason, message)
}

/// A dependency is away: nothing happened, try again.
pub fn unavailable(reason: &str, message: impl Into<String>, retry: Duration) -> Status {
    let mut details = error_info(reason, HashMap::new());
    details.set_retry_info(Some(retry));
    Status::with_error_details(Code::Unavailable, message, details)
}

/// More is asked for at once than we hold: nothing happened, try again.
pub fn overloaded(message: impl Into<String>) -> Status {
    unavailable("OVERLOADED", message, RETRY_SOON)
}

/// As much was done as may be done in a time: nothing happened, try again after it.
pub fn too_many(reason: &str, message: impl Into<String>, retry: Duration) -> Status {
    let mut details = error_info(reason, HashMap::new());
    details.set_retry_info(Some(retry));
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// Our own fault; the text for the caller says nothing of the inside, the log does.
pub fn internal() -> Status {
    with_reason(Code::Internal, "INTERNAL", "internal error")
}

/// The call took longer than its caller, or our own bound, allows. What it wrote may be there.
pub fn deadline_exceeded() -> Status {
    with_reason(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", "the call took longer than its deadline")
}

/// A status that the transport made, with a reason as every other has. That it could not read the request's
/// message is the caller's fault and not ours, and how it could not is nobody's business.
pub fn from_transport(status: &Status) -> Status {
    match status.code() {
        Code::Internal => malformed(),
        Code::Unimplemented => with_reason(Code::Unimplemented, "UNIMPLEMENTED", status.message()),
        Code::NotFound => not_found("NOT_FOUND", status.message()),
        Code::ResourceExhausted | Code::OutOfRange => {
            with_reason(status.code(), "MESSAGE_TOO_LARGE", status.message())
        }
        code => with_reason(code, "TRANSPORT", status.message()),
    }
}

/// What has come is not what this RPC takes.
pub fn malformed() -> Status {
    let message = "the request is not a well-formed message of this RPC";
    with_reason(Code::InvalidArgument, "MALFORMED_MESSAGE", message)
}

/// The request's message is longer than any of this RPC may be.
pub fn message_too_large(max_bytes: usize) -> Status {
    let message = format!("the request's message may have {max_bytes} bytes");
    with_reason(Code::OutOfRange, "MESSAGE_TOO_LARGE", message)
}

/// A quota is used up.
pub struct QuotaExceeded<'a> {
    /// Account.
    pub eco_id: &'a str,
    /// Message for people.
    pub message: String,
    /// Figures for programs: `limit`, `current_usage`, `period_start`, `period_end`, `plan`; and `reason`,
    /// whether it is the plan's limit or the account's spend cap.
    pub metadata: HashMap<String, String>,
    /// When units may be had again.
    pub retry: Duration,
    /// What helps, for people.
    pub help: &'a str,
    /// Where that is done.
    pub upgrade_url: &'a str,
}

/// `RESOURCE_EXHAUSTED` with `ErrorInfo`, `QuotaFailure`, `RetryInfo` and `Help`.
pub fn quota_exceeded(q: QuotaExceeded<'_>) -> Status {
    let mut details = error_info("QUOTA_EXCEEDED", q.metadata);
    details.set_quota_failure(vec![QuotaViolation::new(format!("account:{}", q.eco_id), q.message.clone())]);
    details.set_retry_info(Some(q.retry));
    details.add_help_link(q.help, q.upgrade_url);
    Status::with_error_details(Code::ResourceExhausted, q.message, details)
}

/// The `reason` of a status made here; empty for one from elsewhere.
pub fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|i| i.reason.clone()).unwrap_or_default()
}

fn error_info(reason: &str, metadata: HashMap<String, String>) -> ErrorDetails {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, ERROR_DOMAIN, metadata);
    details
}
