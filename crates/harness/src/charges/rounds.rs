//! A round of a seed: usage grows, Stripe fails, a run is called for, and called for again where billing-svc was struck.

use anyhow::{Result, bail};
use nexus_proto::{
    billing::v1::{AdjustUsageRequest, ChangePlanRequest, ProcessOverageRequest, ReconcileRequest},
    common::v1::Plan,
};
use rand::Rng;
use serde_json::json;
use tokio::time::sleep;
use tonic::Status;

use super::{
    calls::{LEASE_PAUSE, MAX_CALLS},
    check, setting,
    trial::Trial,
};
use crate::{billing::Client, report::Tally};

impl Trial {
    /// Usage, corrections, subscriptions that go on, and a run, struck up to four times.
    pub(super) async fn round(&mut self, round: u32, tally: &mut Tally) -> Result<()> {
        self.use_and_poison(round).await?;
        self.mend(round, tally).await?;
        self.fail_by_seed().await?;
        (self.left, self.struck) = (self.rng.random_range(0..=4), false);
        self.aim();
        if self.rng.random_bool(0.4) {
            self.correct(tally).await?;
        }
        if self.rng.random_bool(0.4) {
            self.change_plan(tally).await?;
        }
        self.go_on(round, tally).await?;
        self.retry(round, tally).await?;
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
            if let Some(trouble) = account.trouble
                && trouble.from == round
            {
                self.stripe.poison(&account.customer, trouble.poison).await?;
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
        let Some(delta_count) = account.may_change().then(|| account.correct(&mut self.rng)).flatten() else {
            return Ok(());
        };
        let request = AdjustUsageRequest {
            eco_id: account.eco_id.clone(),
            delta_count,
            reason: "metered twice".to_owned(),
            request_id: self.request_id(),
            ..Default::default()
        };
        tally.add("corrections", 1);
        let ask = async |mut client: Client, request| client.adjust(request).await;
        self.insist(request, ask, tally).await
    }

    /// Moves an account to another plan.
    async fn change_plan(&mut self, tally: &mut Tally) -> Result<()> {
        let which = self.rng.random_range(0..self.accounts.len());
        let account = &mut self.accounts[which];
        if !account.may_change() || account.subscription.is_some() {
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
    pub(super) async fn insist<R: Clone>(
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
            if struck && self.rng.random_bool(if self.strikes.has_late() { 0.8 } else { 0.25 }) {
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
}
