//! The Prometheus registry of one server. Not a global: `nexus dev` runs four servers in one process, and
//! each has its own metrics port.

use std::{
    borrow::Cow,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// Labels of an RPC; never an account.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RpcLabels {
    /// gRPC service, or `http` in the gateway.
    pub service: Cow<'static, str>,
    /// Method, or the route template in the gateway.
    pub method: Cow<'static, str>,
    /// gRPC code in words, or the HTTP status.
    pub code: Cow<'static, str>,
}

/// Registry and the metrics that every server has.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    requests: Family<RpcLabels, Counter>,
    duration: Family<RpcLabels, Histogram, fn() -> Histogram>,
    in_flight: Gauge,
    in_flight_now: Arc<AtomicI64>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// An empty registry with the request metrics.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        let duration: Family<RpcLabels, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(latency_histogram);
        let in_flight = Gauge::default();
        registry.register("nexus_requests", "Calls answered", requests.clone());
        registry.register(
            "nexus_request_duration_seconds",
            "Time from request to end of answer",
            duration.clone(),
        );
        registry.register("nexus_requests_in_flight", "Calls being worked on", in_flight.clone());
        Self {
            registry: Arc::new(Mutex::new(registry)),
            requests,
            duration,
            in_flight,
            in_flight_now: Arc::default(),
        }
    }

    /// Adds metrics of a service's own; passes on what `add` returns.
    pub fn register<T>(&self, add: impl FnOnce(&mut Registry) -> T) -> T {
        add(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The text that Prometheus scrapes.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        encode(&mut text, &registry).expect("writing to a string does not fail");
        text
    }

    /// Counts an answered call.
    pub fn observe(&self, labels: RpcLabels, took: Duration) {
        self.requests.get_or_create(&labels).inc();
        self.duration.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Takes a place among the calls in flight, unless `limit` are taken.
    pub fn enter(&self, limit: u32) -> Option<InFlight> {
        let now = self.in_flight_now.fetch_add(1, Ordering::Relaxed) + 1;
        let place = InFlight(self.clone());
        self.in_flight.set(now);
        (now <= i64::from(limit)).then_some(place)
    }
}

/// A place among the calls in flight; given back when dropped.
pub struct InFlight(Metrics);

impl Drop for InFlight {
    fn drop(&mut self) {
        let now = self.0.in_flight_now.fetch_sub(1, Ordering::Relaxed) - 1;
        self.0.in_flight.set(now);
    }
}

/// A histogram for latencies from half a millisecond to half a minute.
pub fn latency_histogram() -> Histogram {
    Histogram::new([
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    ])
}
