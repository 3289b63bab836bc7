//! One call of `BatchRecordUsage`, and what its answer means for the events.

use std::time::Duration;

use nexus_proto::usage::v1::{
    BatchRecordUsageRequest, EventResult, UsageEvent, usage_service_client::UsageServiceClient,
};
use tonic::{Code, Status, metadata::MetadataMap, transport::Channel};
use tonic_types::StatusExt;

use crate::{clock::ServerClock, credentials::Credentials, is_made_here};

/// What became of a batch.
pub(super) enum Answer {
    /// Each event has been decided on; those that are not listed were counted.
    Decided(Vec<EventResult>),
    /// Nothing is known to have happened; the same events are to be sent again.
    Later {
        why: String,
        told: Option<Duration>,
        /// Nor would any others be taken: no server answers, or none without its database.
        away: bool,
    },
    /// The server failed on this batch, or took it for forbidden: perhaps because of one of its events. To be
    /// sent again in parts, behind the others.
    Suspect { why: String },
    /// The server takes no such message: to be sent in parts; an event alone is refused.
    Refused { why: String },
}

pub(super) async fn send(
    mut client: UsageServiceClient<Channel>,
    credentials: Credentials,
    clock: ServerClock,
    timeout: Duration,
    metadata: MetadataMap,
    events: Vec<UsageEvent>,
) -> Answer {
    let request = match credentials.options(timeout) {
        Ok(options) => options.request_with(metadata, BatchRecordUsageRequest { events }),
        Err(status) => return failed(&status),
    };
    match tokio::time::timeout(timeout, client.batch_record_usage(request)).await {
        Ok(Ok(response)) => {
            let response = response.into_inner();
            clock.note(response.server_time.as_ref());
            Answer::Decided(response.results)
        }
        Ok(Err(status)) => failed(&status),
        Err(_elapsed) => {
            Answer::Later { why: format!("no answer within {timeout:?}"), told: None, away: true }
        }
    }
}

fn failed(status: &Status) -> Answer {
    let why = format!("{:?}: {}", status.code(), status.message());
    let details = status.get_error_details();
    let told = || details.retry_info().and_then(|info| info.retry_delay);
    let lacks_database = || details.error_info().is_some_and(|info| info.reason == "DATABASE_UNAVAILABLE");
    match status.code() {
        _ if is_made_here(status) => Answer::Later { why, told: None, away: true },
        Code::InvalidArgument | Code::OutOfRange => Answer::Refused { why },
        // A message too large; a server that is merely busy says UNAVAILABLE or when to come back.
        Code::ResourceExhausted if told().is_none() => Answer::Refused { why },
        Code::Internal | Code::PermissionDenied | Code::NotFound | Code::FailedPrecondition => {
            Answer::Suspect { why }
        }
        _ => Answer::Later { why, told: told(), away: lacks_database() },
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    fn kind(answer: &Answer) -> &'static str {
        match answer {
            Answer::Decided(_) => "decided",
            Answer::Later { told: Some(_), .. } => "later, told when",
            Answer::Later { .. } => "later",
            Answer::Suspect { .. } => "suspect",
            Answer::Refused { .. } => "refused",
        }
    }

    #[test]
    fn only_what_cannot_succeed_unchanged_is_refused() {
        for (code, expected) in [
            (Code::Unavailable, "later"),
            (Code::DeadlineExceeded, "later"),
            (Code::Aborted, "later"),
            (Code::Cancelled, "later"),
            (Code::Unknown, "later"),
            (Code::Unauthenticated, "later"),
            (Code::Unimplemented, "later"),
            (Code::Internal, "suspect"),
            (Code::PermissionDenied, "suspect"),
            (Code::InvalidArgument, "refused"),
            (Code::OutOfRange, "refused"),
            (Code::ResourceExhausted, "refused"),
        ] {
            assert_eq!(kind(&failed(&Status::new(code, ""))), expected, "{code:?}");
        }
        let busy = ErrorDetails::with_retry_info(Some(Duration::from_secs(1)));
        for code in [Code::Unavailable, Code::ResourceExhausted] {
            let status = Status::with_error_details(code, "", busy.clone());
            assert_eq!(kind(&failed(&status)), "later, told when", "{code:?}");
        }
    }

    #[test]
    fn a_connection_that_broke_is_no_answer_of_the_server() {
        let broken = Status::from_error(Box::new(std::io::Error::other("reset")));
        assert_eq!(kind(&failed(&broken)), "later", "{broken:?}");
    }
}
