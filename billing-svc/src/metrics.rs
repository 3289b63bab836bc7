//! Metrics of Stripe's events.

use nexus_kit::metrics::Metrics;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

use crate::store::stripe_events::Backlog;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// Counts attempts, and shows what waits.
#[derive(Debug, Clone)]
pub struct EventMetrics {
    attempts: Family<OutcomeLabel, Counter>,
    waiting: Gauge,
    parked: Gauge,
    oldest: Gauge,
}

impl EventMetrics {
    /// Adds them to the server's.
    pub fn new(metrics: &Metrics) -> Self {
        let own = Self {
            attempts: Family::default(),
            waiting: Gauge::default(),
            parked: Gauge::default(),
            oldest: Gauge::default(),
        };
        metrics.register(|registry| {
            let (attempts, waiting) = (own.attempts.clone(), own.waiting.clone());
            registry.register(
                "nexus_stripe_event_attempts",
                "Attempts to apply an event of Stripe's",
                attempts,
            );
            registry.register("nexus_stripe_events_waiting", "Events of Stripe's to be applied", waiting);
            let help = "Events of Stripe's that failed too often and wait until they are sent again";
            registry.register("nexus_stripe_events_parked", help, own.parked.clone());
            let help = "Age of the oldest event of Stripe's to be applied";
            registry.register("nexus_stripe_events_oldest_seconds", help, own.oldest.clone());
        });
        own
    }

    /// An attempt came to this.
    pub fn count(&self, outcome: &'static str) {
        self.attempts.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// What waits.
    pub fn show(&self, backlog: Backlog) {
        self.waiting.set(backlog.waiting);
        self.parked.set(backlog.parked);
        self.oldest.set(backlog.oldest_seconds);
    }
}
