//! Every RPC that one of our servers has, by its path.

use std::{
    collections::HashMap,
    sync::LazyLock,
    task::{Context, Poll},
};

use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::{codegen::Service, server::NamedService};

use crate::serve::{MAX_BATCH_BYTES, MAX_REQUEST_BYTES};

/// Of these an account's calls are at work all at once: they are decided in memory, or written together with others'.
/// Calls of every other unary RPC may take a connection each, and so wait for their turn ([`crate::turn`]).
const ALL_AT_ONCE: [&str; 3] = [
    "/nexus.usage.v1.UsageService/RecordUsage",
    "/nexus.usage.v1.UsageService/BatchRecordUsage",
    "/nexus.usage.v1.UsageService/CheckQuota",
];

/// Whose messages may be longer than [`MAX_REQUEST_BYTES`]; the server that has it bounds them ([`BySize`]).
const LONG_MESSAGES: [&str; 3] = [
    "/nexus.usage.v1.UsageService/BatchRecordUsage",
    "/nexus.usage.v1.UsageService/StreamUsage",
    "/nexus.billing.v1.BillingService/HandleStripeEvent",
];

/// RPCs that these descriptors do not have: streams, and one that is for services alone.
const OTHERS: [&str; 3] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit",
];

/// Whether the caller of the RPC of this path sends any number of messages.
pub fn client_streams(path: &str) -> bool {
    Rpc::by_path(path).client_streams
}

/// An RPC by its names.
pub(crate) struct Rpc {
    pub(crate) service: String,
    pub(crate) method: String,
    pub(crate) span_name: String,
    /// Whether calls of users and API keys wait for a turn of their account.
    pub(crate) in_turn: bool,
    /// The caller sends any number of messages.
    pub(crate) client_streams: bool,
    /// Bytes that one of them may have.
    pub(crate) max_message_bytes: usize,
}

impl Rpc {
    /// One that is never in turn, and takes one message.
    fn of(service: &str, method: &str) -> Self {
        let short = service.rsplit('.').next().unwrap_or(service);
        let span_name = format!("rpc.{short}.{method}");
        let (service, method) = (service.to_owned(), method.to_owned());
        let max_message_bytes = MAX_REQUEST_BYTES;
        Self { service, method, span_name, in_turn: false, client_streams: false, max_message_bytes }
    }

    /// The RPC that a request is for.
    pub(crate) fn by_path(path: &str) -> &'static Self {
        KNOWN.get(path).unwrap_or(&UNKNOWN)
    }
}

/// What we do not serve: what a client made up must not become a label of its own.
static UNKNOWN: LazyLock<Rpc> = LazyLock::new(|| Rpc::of("unknown", "unknown"));

static KNOWN: LazyLock<HashMap<String, Rpc>> = LazyLock::new(|| {
    let sets = [nexus_proto::DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET];
    let files =
        sets.iter().flat_map(|set| FileDescriptorSet::decode(*set).expect("our own descriptors").file);
    let ours = files.flat_map(|file| {
        let package = file.package().to_owned();
        file.service.into_iter().flat_map(move |service| {
            let name = format!("/{package}.{}/", service.name());
            service.method.into_iter().map(move |method| {
                let path = format!("{name}{}", method.name());
                let is_unary = !method.client_streaming() && !method.server_streaming();
                let in_turn = is_unary && !ALL_AT_ONCE.contains(&path.as_str());
                (path, in_turn, method.client_streaming())
            })
        })
    });
    let others = OTHERS.map(|path| (path.to_owned(), false, path.starts_with("/grpc.reflection.")));
    let rpc = |(path, in_turn, client_streams): (String, bool, bool)| {
        let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
        let is_long = LONG_MESSAGES.contains(&path.as_str());
        let max_message_bytes = if is_long { MAX_BATCH_BYTES } else { MAX_REQUEST_BYTES };
        let rpc = Rpc { in_turn, client_streams, max_message_bytes, ..Rpc::of(service, method) };
        (path, rpc)
    };
    ours.chain(others).map(rpc).collect()
});

/// A service whose RPCs do not all take long messages. tonic bounds what a packed message is unpacked to by service; here
/// those that take short ones have a server of their own.
#[derive(Debug, Clone)]
pub struct BySize<S> {
    short: S,
    long: S,
}

impl<S> BySize<S> {
    /// `server` makes one whose messages have so many bytes at most.
    pub fn new(server: impl Fn(usize) -> S, longest: usize) -> Self {
        Self { short: server(MAX_REQUEST_BYTES), long: server(longest) }
    }

    fn of(&mut self, path: &str) -> &mut S {
        if Rpc::by_path(path).max_message_bytes > MAX_REQUEST_BYTES {
            &mut self.long
        } else {
            &mut self.short
        }
    }
}

impl<S: NamedService> NamedService for BySize<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: Service<http::Request<B>>, B> Service<http::Request<B>> for BySize<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    /// Servers that tonic generates are always ready.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        match self.short.poll_ready(cx) {
            Poll::Ready(Ok(())) => self.long.poll_ready(cx),
            not_ready => not_ready,
        }
    }

    fn call(&mut self, request: http::Request<B>) -> S::Future {
        self.of(request.uri().path()).call(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_may_take_a_connection_each_are_in_turn() {
        let usage = |method: &str| Rpc::by_path(&format!("/nexus.usage.v1.UsageService/{method}")).in_turn;
        for method in ["RotateApiKey", "RevokeApiKey", "CreateApiKey", "ListApiKeys", "GetCurrentUsage"] {
            assert!(usage(method), "{method}");
        }
        for method in ["RecordUsage", "BatchRecordUsage", "StreamUsage", "CheckQuota", "LeaseQuota", "NoSuch"]
        {
            assert!(!usage(method), "{method}");
        }
        let streams =
            |method: &str| Rpc::by_path(&format!("/nexus.usage.v1.UsageService/{method}")).client_streams;
        assert!(streams("StreamUsage") && streams("LeaseQuota") && !streams("BatchRecordUsage"));
        assert_eq!(OTHERS.map(|path| Rpc::by_path(path).client_streams), [true, true, false]);
        for path in ALL_AT_ONCE.iter().chain(&OTHERS).chain(&LONG_MESSAGES) {
            assert_ne!(Rpc::by_path(path).method, "unknown", "{path}");
        }
        for path in
            ["/nexus.billing.v1.BillingService/SetSpendCap", "/nexus.analytics.v1.AnalyticsService/ListUsers"]
        {
            assert!(Rpc::by_path(path).in_turn, "{path}");
        }
    }
}
