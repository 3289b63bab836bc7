//! A seed from its beginning to its end: rounds in which things go wrong, time that passes between them, and in the end
//! calm, until nothing is left to do.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use chrono::TimeDelta;
use nexus_proto::billing::v1::{ProcessOverageRequest, ProcessOverageResponse};
use rand::{Rng, SeedableRng, rngs::StdRng};
use sqlx::PgConnection;
use tokio::{sync::mpsc, time::sleep};

use super::{
    atlas::Atlas,
    calls::{LEASE_PAUSE, MAX_CALLS},
    check,
    gateway::{Gateway, Replicas, SECRET},
    http,
    lines::Watch,
    replica::Replica,
    setting,
    strikes::{Due, Strikes},
    time,
    world::Account,
};
use crate::{report::Tally, stage::Seed, stripe::Stripe};

/// Runs in the end before something is wrong.
const CALM_CALLS: u32 = 30;
/// Longer than Stripe keeps keys.
const DAY: TimeDelta = TimeDelta::hours(25);
/// Longer than what was replaced waits to be looked at again.
const RECHECK: TimeDelta = TimeDelta::minutes(11);
/// What Stripe tells of.
const EVENTS: [&str; 4] = [
    "customer.subscription.updated",
    "customer.subscription.deleted",
    "invoice.created",
    "invoice.payment_succeeded",
];

/// A seed on its way.
pub(super) struct Trial {
    pub(super) db: PgConnection,
    pub(super) stripe: Stripe,
    pub(super) accounts: Vec<Account>,
    pub(super) replicas: Vec<Replica>,
    gateway: Gateway,
    pub(super) strikes: Arc<Strikes>,
    pub(super) dues: mpsc::UnboundedReceiver<Due>,
    pub(super) rng: StdRng,
    pub(super) rounds: u32,
    pub(super) passed: TimeDelta,
    /// Strikes that are still to be aimed in this round.
    pub(super) left: u32,
    /// Whether something was struck in this round.
    pub(super) struck: bool,
    pub(super) failures: Vec<String>,
}

impl Trial {
    pub(super) async fn start(seed: &Seed, atlas: Arc<Atlas>) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(seed.number);
        let rounds = rng.random_range(2..=4);
        let (mut db, stripe) = (seed.connect().await?, Stripe::start().await?);
        let accounts = setting::accounts(seed, &mut db, &stripe, rounds, &mut rng).await?;
        let (strikes, dues) = Strikes::new(atlas);
        let mut replicas = Vec::new();
        let reached = Replicas::default();
        for replica in 0..rng.random_range(1..=2) {
            let watch = Watch { replica, strikes: strikes.clone() };
            replicas.push(Replica::start(seed, &stripe, watch, reached.clone()).await?);
        }
        let gateway = Gateway::start(reached).await?;
        stripe.tell(gateway.url(), SECRET, &EVENTS).await?;
        Ok(Self {
            db,
            stripe,
            accounts,
            replicas,
            gateway,
            strikes,
            dues,
            rng,
            rounds,
            passed: TimeDelta::zero(),
            left: 0,
            struck: false,
            failures: Vec::new(),
        })
    }

    /// Returns what was done, and what does not hold.
    pub(super) async fn run(&mut self, tally: &mut Tally) -> Result<(String, Vec<String>)> {
        self.choose_manners().await?;
        let mut late = Vec::new();
        for round in 0..self.rounds {
            let before = std::mem::take(&mut late);
            self.round(round, tally).await?;
            // What was on its way before this round arrives in the course of it.
            tally.add("requests that arrived when their keys were forgotten", u32::try_from(before.len())?);
            self.deliver(before, tally).await?;
            late = self.arrive(tally).await?;
            // What is over is settled in the last round at the latest, while things go wrong; what takes longer than its
            // key lives is sent again under another one.
            let is_long = round + 2 == self.rounds || !late.is_empty();
            match self.rng.random_range(0..10) {
                0..4 => self.pass(DAY, tally).await?,
                _ if is_long => self.pass(DAY, tally).await?,
                4..6 => self.pass(RECHECK, tally).await?,
                _ => {}
            }
        }
        self.calm_down(late, tally).await?;
        self.count(tally).await?;
        let mut client = self.replicas[0].client();
        let mut failures = std::mem::take(&mut self.failures);
        failures.extend(check::all(&mut self.db, &self.stripe, &mut client, &self.accounts).await?);
        let done = format!(
            "{} accounts, {} replicas, {} rounds",
            self.accounts.len(),
            self.replicas.len(),
            self.rounds
        );
        Ok((done, failures))
    }

    /// What was kept in this round arrives, but for requests for charges that are in doubt, and of which Stripe has heard
    /// nothing else: they may take longer than their keys live, and are made good by a recheck.
    async fn arrive(&mut self, tally: &mut Tally) -> Result<Vec<Bytes>> {
        let (mut now, mut later) = (Vec::new(), Vec::new());
        for request in self.strikes.take_late() {
            let in_doubt = "select charge_id::text from eco_overage_charges where idempotency_key = $1 and status = 'pending'";
            let key = http::header(&request, "idempotency-key");
            let charge_id: Option<String> =
                sqlx::query_scalar(in_doubt).bind(key).fetch_optional(&mut self.db).await?;
            let items = self.stripe.items().await?;
            let is_there = items.iter().any(|item| item.metadata.get("charge_id") == charge_id.as_ref());
            if charge_id.is_none() || is_there { now.push(request) } else { later.push(request) }
        }
        self.deliver(now, tally).await?;
        Ok(later)
    }

    /// Requests arrive at Stripe of which nobody waits for the answer any more.
    async fn deliver(&mut self, late: Vec<Bytes>, tally: &mut Tally) -> Result<()> {
        let stripe: SocketAddr = self.stripe.url().strip_prefix("http://").context("a URL")?.parse()?;
        for request in late {
            tally.add("requests that arrived late", 1);
            http::deliver(stripe, &request).await?;
        }
        Ok(())
    }

    /// Whoever may be at work on what webhooks led to is killed before, and goes on after it.
    async fn pass(&mut self, time: TimeDelta, tally: &mut Tally) -> Result<()> {
        let closed = self.gateway.close().await;
        let kills = time::is_anything_left(&mut self.db).await?;
        if kills {
            for replica in &mut self.replicas {
                replica.kill().await?;
                tally.add("killed before time passed, with events to be applied", 1);
            }
            time::until_alone(&mut self.db).await?;
        }
        time::pass(&mut self.db, &self.stripe, time).await?;
        if kills {
            for replica in &mut self.replicas {
                replica.again().await?;
            }
        }
        drop(closed);
        if time > TimeDelta::hours(24) {
            tally.add("more than 24 h passed", 1);
            // After three days they would be given up.
            self.tell_all(tally).await?;
        }
        self.passed += time;
        if self.passed >= TimeDelta::hours(24 - setting::OVER_FOR_HOURS) {
            let periods = self.accounts.iter_mut().flat_map(|account| &mut account.periods);
            periods.filter(|period| period.is_over).for_each(|period| period.is_settled = true);
        }
        Ok(())
    }

    /// Nothing goes wrong any more, until nothing is left to do, and all that can be is on a final invoice.
    async fn calm_down(&mut self, late: Vec<Bytes>, tally: &mut Tally) -> Result<()> {
        self.stripe.calm().await?;
        self.pass(DAY, tally).await?;
        self.struck = false;
        self.an_hour_later(tally).await?;
        self.undisturbed(tally).await?;
        self.deliver(late, tally).await?;
        // What was cut by the end of a subscription is past its settlement, too.
        self.pass(DAY, tally).await?;
        self.rest(2, tally).await?;
        self.renew_once_more(tally).await?;
        self.rest(1, tally).await
    }

    /// Runs follow each other until so many in a row have found nothing to do.
    async fn rest(&mut self, idle_runs: u32, tally: &mut Tally) -> Result<()> {
        let (mut idle, mut errors) = (0, Vec::new());
        for _ in 0..CALM_CALLS {
            self.hear_all(tally).await?;
            self.retry(self.rounds, tally).await?;
            let run = self.undisturbed(tally).await?;
            let is_idle = run.processed_count == 0 && !time::is_anything_left(&mut self.db).await?;
            idle = if is_idle { idle + 1 } else { 0 };
            if idle == idle_runs {
                return Ok(());
            }
            // Once more after what it replaced would be looked at again.
            if idle == 1 || self.rng.random_bool(0.5) {
                self.pass(RECHECK, tally).await?;
            }
            errors = run.errors;
        }
        bail!("there is always something left to do: {errors:?}")
    }

    /// A run that nothing happens to; what was struck before may have the lease for a moment still.
    async fn undisturbed(&mut self, tally: &mut Tally) -> Result<ProcessOverageResponse> {
        for _ in 0..MAX_CALLS {
            let answers = self.call(vec![(0, ProcessOverageRequest::default())], tally).await?;
            answers.failed.iter().for_each(|status| self.may_fail(status));
            if let Some(run) = answers.ended {
                return Ok(run);
            }
            sleep(LEASE_PAUSE).await;
        }
        bail!("a run never came to its end")
    }
}
