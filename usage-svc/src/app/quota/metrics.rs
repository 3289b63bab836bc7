//! What is counted of the quota. Never by account: their number has no bound.

use prometheus_client::{metrics::counter::Counter, registry::Registry};

use super::{Decision, Verdict};

/// The counters of a holder.
#[derive(Debug, Default)]
pub(super) struct QuotaMetrics {
    admitted: Counter,
    open: Counter,
    refused: Counter,
    pub(super) granted: Counter,
    pub(super) returned: Counter,
    pub(super) recalls: Counter,
}

impl QuotaMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let mut add =
            |name: &str, help: &str, counter: &Counter| registry.register(name, help, counter.clone());
        add(
            "nexus_quota_admitted_units",
            "Units admitted, those included that were not used",
            &self.admitted,
        );
        add(
            "nexus_quota_open_units",
            "Units admitted without a lease while the database was away",
            &self.open,
        );
        add("nexus_quota_refused_checks", "Checks refused", &self.refused);
        add("nexus_quota_granted_units", "Units granted by the database", &self.granted);
        add("nexus_quota_returned_units", "Units given back to the database", &self.returned);
        add("nexus_quota_recalls", "Times that other replicas were asked to give units back", &self.recalls);
    }

    pub(super) fn count(&self, decision: &Decision) {
        let units = u64::try_from(decision.units).unwrap_or(0);
        match decision.verdict {
            Verdict::Admitted(_) => self.admitted.inc_by(units),
            Verdict::Open => self.open.inc_by(units),
            Verdict::Refused(_) => self.refused.inc(),
        };
    }
}

/// As many as a count of units says.
pub(super) fn count_units(counter: &Counter, units: i64) {
    counter.inc_by(u64::try_from(units).unwrap_or(0));
}
