//! Subscriptions at Stripe in the course of a seed: they renew and end, Stripe drafts and finalises their invoices, and its
//! webhooks tell billing-svc of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Months, TimeDelta, Utc};
use rand::Rng;
use tokio::time::sleep;

use super::{time, trial::Trial, world::Ending};
use crate::report::Tally;

/// Longer than a draft is open, once its webhook was taken.
const DRAFT: TimeDelta = TimeDelta::minutes(61);
/// Between looks for what is left to do: a worker may sleep for a second.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// Such looks before something is wrong.
const MAX_LOOKS: u32 = 1_500;

/// What shows that it was reached.
const COUNTS: [(&str, &str); 5] = [
    ("webhooks applied", "select count(*) from eco_stripe_events where outcome = 'applied'"),
    (
        "webhooks that failed first and were applied",
        "select count(*) from eco_stripe_events where outcome = 'applied' and attempts > 0",
    ),
    (
        "charges on drafts",
        "select count(*) from eco_overage_charges where payload ->> 'invoice' is not null and status = 'succeeded'",
    ),
    (
        "charges taken off drafts",
        "select count(*) from eco_overage_charges where failure_reason = 'TAKEN_BACK'",
    ),
    ("invoices of settlements", "select count(*) from eco_settlements where filled_time is not null"),
];

impl Trial {
    /// Has webhooks come late and twice, and drafts go on without their subscription, or not.
    pub(super) async fn choose_manners(&mut self) -> Result<()> {
        let share = [0.0, 0.3, 0.6][self.rng.random_range(0..3)];
        self.stripe.tell_badly(self.rng.random(), share).await?;
        self.stripe.finalise_after_end(self.rng.random_bool(0.5)).await
    }

    /// What happens to subscriptions in a round.
    pub(super) async fn go_on(&mut self, round: u32, tally: &mut Tally) -> Result<()> {
        for which in 0..self.accounts.len() {
            let Some(subscription) = &self.accounts[which].subscription else { continue };
            if round < subscription.renews_in {
                continue;
            }
            let (renewal, ending) = (subscription.renewal, subscription.ending);
            if round > subscription.renews_in {
                self.advance(which, subscription.time + DRAFT, tally).await?;
            } else if ending == Some(Ending::WithPeriod) {
                let form = [("cancel_at_period_end", "true")];
                self.stripe.create(&format!("subscriptions/{}", subscription.id), &form).await?;
                self.advance(which, renewal, tally).await?;
                self.accounts[which].end();
                tally.add("subscriptions ended with their period", 1);
            } else {
                self.advance(which, renewal, tally).await?;
                tally.add("subscriptions renewed", 1);
            }
            if ending == Some(Ending::AtOnce(round)) {
                // Perhaps before anybody has heard of its draft.
                if self.rng.random_bool(0.5) {
                    self.hear(tally).await?;
                }
                let subscription = self.accounts[which].subscription.as_ref().context("a subscription")?;
                self.stripe.cancel(&subscription.id).await?;
                self.accounts[which].end();
                tally.add("subscriptions ended at once", 1);
            }
        }
        if self.rng.random_bool(0.7) {
            self.hear(tally).await?;
        }
        Ok(())
    }

    /// Moves the time of one account's customer.
    async fn advance(&mut self, which: usize, to: DateTime<Utc>, tally: &mut Tally) -> Result<()> {
        let stripe = self.stripe.clone();
        let subscription = self.accounts[which].subscription.as_mut().context("a subscription")?;
        subscription.time = to;
        let clock = subscription.clock.clone();
        self.attend(async move { stripe.advance_clock(&clock, to.timestamp()).await }, tally).await?
    }

    /// Waits until billing-svc has done what webhooks led to, but for what failed and is tried again later.
    async fn hear(&mut self, tally: &mut Tally) -> Result<()> {
        for _ in 0..MAX_LOOKS {
            if !time::is_anything_due(&mut self.db).await? {
                return Ok(());
            }
            self.attend(sleep(LOOK_PAUSE), tally).await?;
        }
        anyhow::bail!("an event, or the end of a subscription, is due and nobody does it")
    }

    /// Sends the webhooks that are still to be sent, the late ones too, and waits until they are heard.
    pub(super) async fn hear_all(&mut self, tally: &mut Tally) -> Result<()> {
        self.tell_all(tally).await?;
        self.hear(tally).await
    }

    /// Sends the webhooks that are still to be sent, the late ones too.
    pub(super) async fn tell_all(&mut self, tally: &mut Tally) -> Result<()> {
        let stripe = self.stripe.clone();
        self.attend(async move { stripe.tell_all().await }, tally).await?
    }

    /// Drafts are finalised whose webhooks were heard, those of subscriptions that have ended too, if they are at all.
    pub(super) async fn an_hour_later(&mut self, tally: &mut Tally) -> Result<()> {
        self.hear_all(tally).await?;
        for which in 0..self.accounts.len() {
            if let Some(subscription) = &self.accounts[which].subscription {
                self.advance(which, subscription.time + DRAFT, tally).await?;
            }
        }
        self.hear_all(tally).await
    }

    /// Subscriptions that go on renew once more.
    pub(super) async fn renew_once_more(&mut self, tally: &mut Tally) -> Result<()> {
        for which in 0..self.accounts.len() {
            let Some(subscription) = &self.accounts[which].subscription else { continue };
            let next = subscription.renewal.checked_add_months(Months::new(1)).context("a month later")?;
            ensure!(subscription.time < next, "its time is a few hours after its renewal");
            self.advance(which, next, tally).await?;
        }
        self.an_hour_later(tally).await
    }

    /// Counts what webhooks have led to.
    pub(super) async fn count(&mut self, tally: &mut Tally) -> Result<()> {
        for (what, query) in COUNTS {
            let count: i64 = sqlx::query_scalar(query).fetch_one(&mut self.db).await?;
            tally.add(what, u32::try_from(count)?);
        }
        Ok(())
    }
}
