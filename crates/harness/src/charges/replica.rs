//! A billing-svc behind lines of its own, which stay where they are when another takes its place.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Context, Result};

use super::{
    gateway::{Replicas, SECRET},
    lines::{Line, Watch},
};
use crate::{
    billing::{Billing, Client},
    process::Environment,
    stage::Seed,
    stripe::{self, Stripe},
};

pub(super) struct Replica {
    billing: Billing,
    number: usize,
    all: Replicas,
    log: PathBuf,
    settings: Environment,
    _lines: [Line; 2],
}

impl Replica {
    /// Starts one, which webhooks are handed to as well.
    pub(super) async fn start(seed: &Seed, stripe: &Stripe, watch: Watch, all: Replicas) -> Result<Self> {
        let to: SocketAddr = stripe.url().strip_prefix("http://").context("a URL")?.parse()?;
        let number = watch.replica;
        let log = seed.folder.join(format!("billing-{number}.log"));
        let database = Line::to_postgres(seed.socket()?, watch.clone()).await?;
        let payments = Line::to_stripe(to, watch).await?;
        let url = format!("postgres://postgres@{}/{}?sslmode=disable", database.address(), seed.name);
        let set = |name, value: &str| (name, value.to_owned());
        let settings = vec![
            ("DATABASE_URL", url),
            ("STRIPE_API_BASE", format!("http://{}", payments.address())),
            set("STRIPE_SECRET_KEY", stripe::KEY),
            set("STRIPE_WEBHOOK_SECRET", SECRET),
            set("STRIPE_EVENTS_CONCURRENCY", "2"),
            set("STRIPE_RATE_PER_SECOND", "10000"),
            set("STRIPE_TIMEOUT", "600ms"),
            set("OVERAGE_CONCURRENCY", "4"),
            // Of half the seeds runs alone recheck what was replaced.
            set("OVERAGE_RECHECK_EVERY", if seed.number.is_multiple_of(2) { "200ms" } else { "1h" }),
            set("DATABASE_MAX_CONNECTIONS", "8"),
            set("NEXUS_LOG_FORMAT", "text"),
        ];
        let billing = Billing::start(&log, settings.clone()).await?;
        all.set(number, billing.client.clone());
        Ok(Self { billing, number, all, log, settings, _lines: [database, payments] })
    }

    pub(super) fn client(&self) -> Client {
        self.billing.client.clone()
    }

    /// kill -9.
    pub(super) async fn kill(&mut self) -> Result<()> {
        self.billing.kill().await
    }

    /// Another in the place of one that was killed.
    pub(super) async fn again(&mut self) -> Result<()> {
        self.billing = Billing::start(&self.log, self.settings.clone()).await?;
        self.all.set(self.number, self.client());
        Ok(())
    }
}
