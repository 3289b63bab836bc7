//! The metrics: what the last reconciliation over all accounts has left, and when that was; and what is parked. Every
//! replica shows it, whoever did the work.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use nexus_kit::db;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use sqlx::PgPool;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::reconciliation::Kind,
    error::Error,
    store::{
        parked::{self, Parked},
        reconciliations,
    },
};

const EVERY: Duration = Duration::from_secs(15);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: String,
}

/// The metrics.
#[derive(Debug, Clone, Default)]
pub struct Drift {
    parked_periods: Family<ReasonLabel, Gauge>,
    parked_accounts: Family<ReasonLabel, Gauge>,
    count: Family<KindLabel, Gauge>,
    finished: Gauge,
    /// Held while they are read and shown: what is read later is shown later. The reasons that were shown before.
    reading: Arc<Mutex<BTreeSet<String>>>,
}

impl Drift {
    /// Adds them, each kind at 0.
    pub fn register(registry: &mut Registry) -> Self {
        let drift = Self::default();
        registry.register(
            "nexus_billing_drift_count",
            "Differences that the last reconciliation of all accounts left, by kind",
            drift.count.clone(),
        );
        registry.register(
            "nexus_billing_reconciled_time_seconds",
            "When the last reconciliation of all accounts ended, in seconds since 1970; 0: never",
            drift.finished.clone(),
        );
        registry.register(
            "nexus_billing_parked_periods",
            "Periods that take no charge until something is mended, by reason",
            drift.parked_periods.clone(),
        );
        registry.register(
            "nexus_billing_parked_accounts",
            "Accounts with such periods, by reason",
            drift.parked_accounts.clone(),
        );
        drift.show(&BTreeMap::new(), 0);
        drift
    }

    fn show(&self, drift: &BTreeMap<Kind, i64>, finished: i64) {
        for kind in Kind::ALL {
            let left = drift.get(&kind).copied().unwrap_or_default();
            self.count.get_or_create(&KindLabel { kind: kind.as_str() }).set(left);
        }
        self.finished.set(finished);
    }

    /// A reason that nothing is parked for any more is shown with 0.
    fn show_parked(&self, parked: Vec<Parked>, shown: &mut BTreeSet<String>) {
        let mut gone = std::mem::take(shown);
        for Parked { reason, accounts, periods } in parked {
            gone.remove(&reason);
            shown.insert(reason.clone());
            let label = ReasonLabel { reason };
            self.parked_periods.get_or_create(&label).set(periods);
            self.parked_accounts.get_or_create(&label).set(accounts);
        }
        for reason in gone {
            shown.insert(reason.clone());
            let label = ReasonLabel { reason };
            self.parked_periods.get_or_create(&label).set(0);
            self.parked_accounts.get_or_create(&label).set(0);
        }
    }

    /// Reads them anew.
    pub async fn refresh(&self, pool: &PgPool) -> Result<(), Error> {
        let mut shown = self.reading.lock().await;
        let mut connection = db::acquire(pool).await?;
        self.show_parked(parked::count(&mut connection).await?, &mut shown);
        if let Some((drift, finished)) = reconciliations::last_drift(&mut connection).await? {
            self.show(&drift, finished);
        }
        Ok(())
    }

    /// Keeps them up to date until `shutdown`.
    pub async fn follow(self, pool: PgPool, shutdown: CancellationToken) {
        loop {
            if let Err(error) = self.refresh(&pool).await {
                tracing::debug!(%error, "the drift could not be read");
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }
}
