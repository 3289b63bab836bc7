//! The rounds of a seed: usage grows, a run is called for, billing-svc is struck and called again, time passes. In the
//! end nothing goes wrong any more, and runs follow until nothing is left to do.

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use chrono::TimeDelta;
use futures::future::join_all;
use nexus_proto::{
    billing::v1::{
        AdjustUsageRequest, ChangePlanRequest, ProcessOverageRequest, ProcessOverageResponse,
        ReconcileRequest,
    },
    common::v1::Plan,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;
use sqlx::PgConnection;
use tokio::{sync::mpsc, time::sleep};
use tonic::Status;
use uuid::Uuid;

use super::{
    atlas::Atlas,
    check, http,
    lines::Watch,
    replica::Replica,
    setting,
    strikes::{Aim, Due, Place, Side, Strikes, Verdict},
    time,
    world::Account,
};
use crate::{billing::Client, report::Tally, stage::Seed, stripe::Stripe};

/// Calls for one run before something is wrong.
const MAX_CALLS: u32 = 2_000;
/// Runs in the end before something is wrong.
const CALM_CALLS: u32 = 30;
/// Before the next call, where another run is at work: a lease is free when the database has seen the kill.
const LEASE_PAUSE: Duration = Duration::from_millis(5);
/// Longer than Stripe keeps keys.
const DAY: TimeDelta = TimeDelta::hours(25);
/// Longer than what was replaced waits to be looked at again.
const RECHECK: TimeDelta = TimeDelta::minutes(11);

/// A seed on its way.
pub(super) struct Trial {
    db: PgConnection,
    stripe: Stripe,
    accounts: Vec<Account>,
    replicas: Vec<Replica>,
    strikes: Arc<Strikes>,
    dues: mpsc::UnboundedReceiver<Due>,
    rng: StdRng,
    rounds: u32,
    passed: TimeDelta,
    /// Strikes that are still to be aimed in this round.
    left: u32,
    /// Whether something was struck in this round.
    struck: bool,
    failures: Vec<String>,
}

/// What came back of the calls for runs.
#[derive(Default)]
struct Answers {
    /// One of them came to its end.
    ended: Option<ProcessOverageResponse>,
    failed: Vec<Status>,
}

impl Trial {
    pub(super) async fn start(seed: &Seed, atlas: Arc<Atlas>) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(seed.number);
        let rounds = rng.random_range(2..=4);
        let (mut db, stripe) = (seed.connect().await?, Stripe::start().await?);
        let accounts = setting::accounts(seed, &mut db, &stripe, rounds, &mut rng).await?;
        let (strikes, dues) = Strikes::new(atlas);
        let mut replicas = Vec::new();
        for replica in 0..rng.random_range(1..=2) {
            let watch = Watch { replica, strikes: strikes.clone() };
            replicas.push(Replica::start(seed, &stripe, watch).await?);
        }
        Ok(Self {
            db,
            stripe,
            accounts,
            replicas,
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
        let mut late = Vec::new();
        for round in 0..self.rounds {
            let before = std::mem::take(&mut late);
            self.round(round, tally).await?;
            // What was on its way before this round arrives in the course of it.
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

    /// Usage, corrections, and a run, struck up to four times.
    async fn round(&mut self, round: u32, tally: &mut Tally) -> Result<()> {
        self.use_and_poison(round).await?;
        self.fail_by_seed().await?;
        (self.left, self.struck) = (self.rng.random_range(0..=4), false);
        self.aim();
        if self.rng.random_bool(0.4) {
            self.correct(tally).await?;
        }
        if self.rng.random_bool(0.4) {
            self.change_plan(tally).await?;
        }
        self.run_struck(tally).await?;
        if self.rng.random_bool(0.15) {
            self.reconcile(tally).await?;
        }
        if self.strikes.clear() {
            tally.add("strikes whose place was not reached", 1);
        }
        // One that came at the last moment.
        while let Ok(due) = self.dues.try_recv() {
            self.strike(due, tally).await?;
        }
        Ok(())
    }

    async fn use_and_poison(&mut self, round: u32) -> Result<()> {
        let used: Vec<_> =
            self.accounts.iter_mut().flat_map(|account| account.grow(round, &mut self.rng)).collect();
        setting::count(&mut self.db, &used).await?;
        for account in &self.accounts {
            if let Some((at, poison)) = account.poison
                && at == round
            {
                self.stripe.poison(&account.customer, poison).await?;
            }
        }
        Ok(())
    }

    /// How Stripe fails in this round: not at all, now and then, or often.
    async fn fail_by_seed(&mut self) -> Result<()> {
        let rate = [0.0, 0.01, 0.03][self.rng.random_range(0..3)];
        // Some wait longer than billing-svc does.
        let longest = if self.rng.random_bool(0.15) { 900 } else { 15 };
        let chaos = json!({
            "seed": self.rng.random::<u32>(), "path": "/v1/*", "max_delay_ms": longest,
            "rates": {
                "drop_before": rate, "drop_after": rate, "error_500": rate, "error_503": rate, "stored_500": rate,
                "stored_500_after": rate, "conflict": rate, "lock_timeout": rate, "rate_limit": rate,
                "delay": rate * 2.0,
            },
        });
        self.stripe.chaos(&chaos).await
    }

    /// Takes some of what an account used back.
    async fn correct(&mut self, tally: &mut Tally) -> Result<()> {
        let which = self.rng.random_range(0..self.accounts.len());
        let account = &mut self.accounts[which];
        let Some(delta_count) = account.is_sound().then(|| account.correct(&mut self.rng)).flatten() else {
            return Ok(());
        };
        let request = AdjustUsageRequest {
            eco_id: account.eco_id.clone(),
            delta_count,
            reason: "metered twice".to_owned(),
            request_id: self.request_id(),
        };
        tally.add("corrections", 1);
        let ask = async |mut client: Client, request| client.adjust(request).await;
        self.insist(request, ask, tally).await
    }

    /// Moves an account to another plan.
    async fn change_plan(&mut self, tally: &mut Tally) -> Result<()> {
        let which = self.rng.random_range(0..self.accounts.len());
        let account = &mut self.accounts[which];
        if !account.is_sound() || account.is_subscribed {
            return Ok(());
        }
        let plan = if account.change_plan() { Plan::Pro } else { Plan::Enterprise };
        let request = ChangePlanRequest {
            eco_id: account.eco_id.clone(),
            plan: plan.into(),
            apply_now: true,
            request_id: self.request_id(),
        };
        tally.add("changes of plan", 1);
        let ask = async |mut client: Client, request| client.change_plan(request).await;
        self.insist(request, ask, tally).await
    }

    /// Reconcile finds nothing, not even between runs that were cut short: what is in doubt is no difference.
    async fn reconcile(&mut self, tally: &mut Tally) -> Result<()> {
        tally.add("reconciliations between runs", 1);
        let mut client = self.replicas[0].client();
        let call = async move { client.reconcile(ReconcileRequest::default()).await };
        // It fails where Stripe does, or where it is struck.
        if let Ok(found) = self.attend(call, tally).await? {
            self.failures.extend(check::differences(&found));
        }
        Ok(())
    }

    /// Asks until it is done, with the same request.
    async fn insist<R: Clone>(
        &mut self,
        request: R,
        ask: impl AsyncFn(Client, R) -> Result<(), Status>,
        tally: &mut Tally,
    ) -> Result<()> {
        for _ in 0..MAX_CALLS {
            let call = ask(self.replicas[0].client(), request.clone());
            match self.attend(call, tally).await? {
                Ok(()) => return Ok(()),
                Err(status) => self.may_fail(&status),
            }
        }
        bail!("a change was never made")
    }

    /// Calls for a run until one comes to its end, at one replica or at two at once; or until a kill, now and then.
    async fn run_struck(&mut self, tally: &mut Tally) -> Result<()> {
        let at_once = self.replicas.len() > 1 && self.rng.random_bool(0.6);
        let same = self.rng.random_bool(0.5);
        let mut request_id = self.rng.random_bool(0.6).then(|| self.request_id());
        for call in 0..MAX_CALLS {
            let callers = if at_once { 0..2 } else { 0..1 };
            let requests: Vec<(usize, ProcessOverageRequest)> = callers
                .map(|replica| {
                    let own = replica == 0 || same;
                    let request_id = request_id.clone().filter(|_| own).unwrap_or_default();
                    (replica, ProcessOverageRequest { request_id, ..Default::default() })
                })
                .collect();
            if at_once && call == 0 {
                tally.add("two runs at once", 1);
            }
            let struck_before = std::mem::take(&mut self.struck);
            let answers = self.call(requests, tally).await?;
            let struck = self.struck;
            self.struck |= struck_before;
            answers.failed.iter().for_each(|status| self.may_fail(status));
            if answers.ended.is_some() && !struck {
                return Ok(());
            }
            if struck && self.rng.random_bool(if self.strikes.has_late() { 0.6 } else { 0.25 }) {
                tally.add("runs left as a strike had cut them short", 1);
                return Ok(());
            }
            // Whoever calls again knows the request, or does not.
            if struck && self.rng.random_bool(0.3) {
                request_id = request_id.is_none().then(|| self.request_id());
            }
            sleep(LEASE_PAUSE).await;
        }
        bail!("a run never came to its end")
    }

    async fn call(
        &mut self,
        requests: Vec<(usize, ProcessOverageRequest)>,
        tally: &mut Tally,
    ) -> Result<Answers> {
        let calls: Vec<_> = requests
            .into_iter()
            .map(|(replica, request)| {
                let mut client = self.replicas[replica].client();
                async move { client.process(request).await }
            })
            .collect();
        let mut answers = Answers::default();
        for answer in self.attend(join_all(calls), tally).await? {
            match answer {
                Ok(answer) if answer.running || answer.already_running => {}
                Ok(answer) => answers.ended = Some(answer),
                Err(status) => answers.failed.push(status),
            }
        }
        Ok(answers)
    }

    /// Waits for calls, and strikes whoever is to be struck meanwhile.
    async fn attend<T>(&mut self, calls: impl Future<Output = T>, tally: &mut Tally) -> Result<T> {
        let mut calls = pin!(calls);
        loop {
            tokio::select! {
                biased;
                due = self.dues.recv() => {
                    self.strike(due.context("lines tell as long as there are any")?, tally).await?;
                }
                done = &mut calls => return Ok(done),
            }
        }
    }

    /// A call may fail where something was struck.
    fn may_fail(&mut self, status: &Status) {
        if !self.struck {
            self.failures.push(format!("a call failed though nothing was struck: {status}"));
        }
    }

    /// Aims the next strike of the round, if there is one left.
    fn aim(&mut self) {
        if self.left == 0 {
            return;
        }
        self.left -= 1;
        let (aim, among) = match self.rng.random_range(0..100) {
            0..45 => (Aim::New, 130),
            45..57 => (Aim::Commit, 8),
            57..77 => (Aim::Stripe, 14),
            77..90 => (Aim::Invoices, 9),
            _ => (Aim::Any, 180),
        };
        self.strikes.aim(aim, self.rng.random_range(0..among));
    }

    /// Kills who is held, or breaks its connection alone.
    async fn strike(&mut self, due: Due, tally: &mut Tally) -> Result<()> {
        let Due { replica, point, verdict } = due;
        self.struck = true;
        let arrives = point.side == Side::Before
            && matches!(&point.place, Place::Stripe(request) if !request.starts_with("GET "));
        let kills = self.rng.random_bool(0.85);
        let becomes = if arrives && self.rng.random_bool(0.4) { Verdict::Late } else { Verdict::Lost };
        if kills {
            self.replicas[replica].kill().await?;
            tally.add(format!("killed {}", point.kind()), 1);
        } else {
            tally.add("connection broken", 1);
        }
        self.aim();
        // Where nobody waits any more, its connection is gone.
        let _unheard = verdict.send(becomes);
        if kills {
            self.replicas[replica].again().await?;
        }
        Ok(())
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

    async fn pass(&mut self, time: TimeDelta, tally: &mut Tally) -> Result<()> {
        time::pass(&mut self.db, &self.stripe, time).await?;
        if time > TimeDelta::hours(24) {
            tally.add("more than 24 h passed", 1);
        }
        self.passed += time;
        if self.passed >= TimeDelta::hours(24 - setting::OVER_FOR_HOURS) {
            let periods = self.accounts.iter_mut().flat_map(|account| &mut account.periods);
            periods.filter(|period| period.is_over).for_each(|period| period.is_settled = true);
        }
        Ok(())
    }

    /// Nothing goes wrong any more: runs follow each other until one finds nothing to do.
    async fn calm_down(&mut self, mut late: Vec<Bytes>, tally: &mut Tally) -> Result<()> {
        self.stripe.calm().await?;
        self.pass(DAY, tally).await?;
        self.struck = false;
        let (mut idle, mut errors) = (0, Vec::new());
        for _ in 0..CALM_CALLS {
            let run = self.undisturbed(tally).await?;
            self.deliver(std::mem::take(&mut late), tally).await?;
            idle = if run.processed_count == 0 { idle + 1 } else { 0 };
            // Once more after what it replaced would be looked at again.
            if idle == 2 {
                return Ok(());
            }
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

    fn request_id(&mut self) -> String {
        Uuid::from_u128(self.rng.random()).to_string()
    }
}
