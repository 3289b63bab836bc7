//! What a service needs to meter itself, and typed clients of the three services.
//!
//! | module | what it is for |
//! |---|---|
//! | [`tracker`] | [`Tracker`]: delivers usage events in the background, each counted once |
//! | [`guard`] | [`Guard`]: asks for units of an account's quota, or holds some and decides in this process |
//! | [`meter`] | [`MeterLayer`]: a tower layer that does both around an axum or tonic service |
//! | [`headers`] | the quota in headers of an answer |
//! | [`clock`] | the server's clock, as its answers tell it |
//! | [`credentials`] | who the program is for usage-svc |
//! | `spool`, `backoff` | the tracker's disk buffer; pauses after failures |
//! | here | a lazily connected channel per service, and requests that carry credentials and a deadline |
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use nexus_client::{Credentials, Tracker};
//! use nexus_proto::usage::v1::UsageEvent;
//!
//! # async fn example(token: &str) -> Result<(), nexus_client::BuildError> {
//! let tracker = Tracker::builder("http://localhost:50051", Credentials::bearer(token)).build().await?;
//! let event = UsageEvent {
//!     eco_id: "eco_9f3kQ".to_owned(),
//!     endpoint: "/v1/reports/{id}".to_owned(),
//!     method: "GET".to_owned(),
//!     status_code: 200,
//!     ..UsageEvent::default()
//! };
//! if let Err(dropped) = tracker.track(event) {
//!     eprintln!("{dropped}");
//! }
//! let report = tracker.shutdown(Duration::from_secs(10)).await;
//! assert_eq!(report.undelivered, 0);
//! # Ok(())
//! # }
//! ```

mod backoff;
pub mod clock;
pub mod credentials;
pub mod guard;
pub mod headers;
pub mod meter;
mod spool;
pub mod tracker;

use std::{error::Error as _, io, path::Path, time::Duration};

use nexus_proto::{
    analytics::v1::analytics_service_client::AnalyticsServiceClient,
    billing::v1::billing_service_client::BillingServiceClient,
    usage::v1::usage_service_client::UsageServiceClient,
};
use tonic::{
    Code, Extensions, Request, Status,
    metadata::{Ascii, MetadataMap, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

pub use clock::ServerClock;
pub use credentials::Credentials;
pub use guard::Guard;
pub use meter::MeterLayer;
pub use spool::SpoolError;
pub use tracker::{Tracker, builder::BuildError};

/// Answers larger than this are refused.
const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// What a server may send of one answer before it is read; and of all on a connection, as much as the 1,024 that ours have
/// on one take together: whoever leaves an answer unread holds up no other.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1_024 * STREAM_WINDOW;

/// An address or credentials that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not the URL of a server.
    #[error("`{0}` is not the URL of a server, e.g. http://localhost:50051")]
    Address(String),
    /// An `https` address without the certificates to trust.
    #[error("`{0}` needs TLS_CA (--tls-ca), the certificates to trust")]
    NoCa(String),
    /// The certificates to trust cannot be read.
    #[error("TLS_CA (--tls-ca): cannot read {path}: {error}")]
    Ca {
        /// File.
        path: String,
        /// Reason.
        error: io::Error,
    },
    /// The certificates to trust are none.
    #[error("TLS_CA (--tls-ca): {0}")]
    Tls(#[from] tonic::transport::Error),
    /// Not text that a header can carry.
    #[error("the credentials contain characters that a header cannot carry")]
    Credentials,
}

/// A channel without TLS; see [`trusting_channel`].
pub fn channel(address: &str) -> Result<Channel, ClientError> {
    trusting_channel(address, None)
}

/// A channel that connects when it is first used, and again when it broke. With an `https` address it trusts
/// the certificates (PEM) in the file `ca`.
pub fn trusting_channel(address: &str, ca: Option<&Path>) -> Result<Channel, ClientError> {
    let bad = || ClientError::Address(address.to_owned());
    let mut endpoint = Endpoint::from_shared(address.to_owned()).map_err(|_| bad())?;
    let uri = endpoint.uri();
    if uri.host().is_none() || !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(bad());
    }
    if uri.scheme_str() == Some("https") {
        let path = ca.ok_or_else(|| ClientError::NoCa(address.to_owned()))?;
        let pem = std::fs::read(path)
            .map_err(|error| ClientError::Ca { path: path.display().to_string(), error })?;
        endpoint = endpoint.tls_config(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)))?;
    }
    let endpoint = endpoint
        .connect_timeout(Duration::from_secs(2))
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(5));
    Ok(endpoint.connect_lazy())
}

/// A client of usage-svc.
pub fn usage(channel: Channel) -> UsageServiceClient<Channel> {
    UsageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// A client of billing-svc.
pub fn billing(channel: Channel) -> BillingServiceClient<Channel> {
    BillingServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// A client of analytics-svc.
pub fn analytics(channel: Channel) -> AnalyticsServiceClient<Channel> {
    AnalyticsServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// Whether the same call may go well in a moment: the service is away, late or overloaded, or no answer of it
/// came, whatever code the transport made of that.
pub fn is_transient(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Aborted)
        || is_made_here(status)
}

/// Whether this is no answer of the server, but was made on this side of a connection that broke.
pub fn is_made_here(status: &Status) -> bool {
    status.source().is_some_and(|source| source.downcast_ref::<Status>().is_none())
}

/// What every call carries. Its `Debug` form hides the credentials.
#[derive(Clone)]
pub struct CallOptions {
    authorization: MetadataValue<Ascii>,
    timeout: Duration,
}

impl CallOptions {
    /// Credentials as the `authorization` header has them (`Bearer …`, `ApiKey …`) and a deadline.
    pub fn new(authorization: &str, timeout: Duration) -> Result<Self, ClientError> {
        let mut authorization: MetadataValue<Ascii> =
            authorization.parse().map_err(|_| ClientError::Credentials)?;
        authorization.set_sensitive(true);
        Ok(Self { authorization, timeout })
    }

    /// A bearer token and a deadline.
    pub fn bearer(token: &str, timeout: Duration) -> Result<Self, ClientError> {
        Self::new(&format!("Bearer {token}"), timeout)
    }

    /// A request with both.
    pub fn request<T>(&self, message: T) -> Request<T> {
        self.request_with(MetadataMap::new(), message)
    }

    /// A request with the credentials alone, for a stream whose end is not known.
    pub fn endless<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.authorization.clone());
        request
    }

    /// A request with both and this beside, e.g. the trace that it belongs to.
    pub(crate) fn request_with<T>(&self, metadata: MetadataMap, message: T) -> Request<T> {
        let mut request = Request::from_parts(metadata, Extensions::new(), message);
        request.set_timeout(self.timeout);
        request.metadata_mut().insert("authorization", self.authorization.clone());
        request
    }
}

impl std::fmt::Debug for CallOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallOptions").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_broken_connection_is_transient_whatever_its_code_and_an_answer_by_its_code() {
        for code in [Code::ResourceExhausted, Code::Unknown, Code::Internal, Code::Cancelled] {
            let mut status = Status::new(code, "");
            assert!(!is_transient(&status), "{code:?}");
            status.set_source(Arc::new(io::Error::from(io::ErrorKind::ConnectionReset)));
            assert!(is_transient(&status), "{code:?}");
        }
        assert!(is_transient(&Status::unavailable("")) && is_transient(&Status::deadline_exceeded("")));
    }
}
