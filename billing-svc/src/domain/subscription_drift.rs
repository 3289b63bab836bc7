//! A subscription as it stands at Stripe beside what our tables say of its account: whether an event was lost. What is to
//! be done about it is decided as for an event ([`decide`]); where nothing is, the two say the same.

use chrono::{DateTime, SecondsFormat, Utc};
use nexus_core::{money::Micros, period::Period, plan::Plan};

use super::{
    plan_change::WaitingPlan,
    reconciliation::{Difference, Kind},
    stripe_objects::Subscription,
    stripe_subscription::{Decision, Held, PricedPlan, anchor_by, decide, is_over, is_same},
};

/// What our tables say of the account that a subscription is of.
#[derive(Debug, Clone)]
pub struct Ours {
    /// Account.
    pub eco_id: String,
    /// Its currency.
    pub currency: String,
    /// When it was made.
    pub created: DateTime<Utc>,
    /// Whether it is closed.
    pub is_closed: bool,
    /// The subscription's row, and that of the account's present one.
    pub rows: Vec<Held>,
    /// Plan of the present one, but for what waits.
    pub plan: Option<Plan>,
    /// What waits.
    pub waiting: Option<WaitingPlan>,
    /// When the present one ends by itself, if it does.
    pub cancel: Option<DateTime<Utc>>,
    /// Whether an event of the subscription is stored and not applied yet.
    pub event_waits: bool,
    /// Whether something is asked of Stripe about the subscription and not made yet.
    pub change_waits: bool,
    /// Database time.
    pub now: DateTime<Utc>,
}

/// What differs, unless an event that is stored brings it; `priced`: the plan that the subscription's prices are of.
pub fn compare(found: &Subscription, ours: &Ours, priced: Option<PricedPlan>) -> Option<Difference> {
    if ours.event_waits {
        return None;
    }
    let goes_on_closed = ours.is_closed && !is_over(found) && !ours.change_waits;
    let differs = |row: &Held| {
        let (id, own, theirs) = (&found.id, ours.words(row), words(found, priced, ours.now));
        (
            Kind::SubscriptionDiffers,
            format!("Our tables have subscription {id} as {own}; at Stripe it is {theirs}."),
        )
    };
    let extra = || {
        let (id, theirs) = (&found.id, words(found, priced, ours.now));
        (
            Kind::SubscriptionExtra,
            format!("Stripe has subscription {id} of the account, {theirs}; our tables have not."),
        )
    };
    let (kind, message) = match decide(found, &ours.rows, ours.is_closed) {
        Decision::Nothing => return None,
        Decision::Note(row) if row.status == found.status && !goes_on_closed => return None,
        Decision::Keep(row) if is_kept(found, ours, row, priced) => return None,
        // It may have been over before the account was there, or be of something else that the customer has.
        Decision::Record if priced.is_none() || found.ended.is_none_or(|at| at < ours.created) => {
            return None;
        }
        Decision::Begin(None) if priced.is_none() && found.eco_id.is_none() => return None,
        Decision::Record | Decision::Begin(None) => extra(),
        Decision::Note(row) | Decision::Keep(row) | Decision::Begin(Some(row)) | Decision::End(row) => {
            differs(row)
        }
    };
    Some(ours.difference(kind, message))
}

/// What differs where Stripe has no such subscription; none: ours is not in force.
pub fn missing(id: &str, ours: &Ours) -> Option<Difference> {
    let row = ours.rows.iter().find(|row| row.is_current && row.stripe_id.as_deref() == Some(id))?;
    let message = format!("Our tables have subscription {id} as {}; Stripe has none such.", ours.words(row));
    Some(ours.difference(Kind::SubscriptionMissing, message))
}

/// What may differ, of one that could not be read, or brought to how it stands.
pub fn unread(id: &str, ours: &Ours, why: &str) -> Difference {
    let message = format!("Subscription {id} could not be compared: {why}");
    ours.difference(Kind::SubscriptionDiffers, message)
}

/// Whether the subscription in force is as it stands: what of its plan waits here is paid for at Stripe already. A price
/// that no plan is known of says nothing.
fn is_kept(found: &Subscription, ours: &Ours, row: &Held, priced: Option<PricedPlan>) -> bool {
    let (due, waiting) = match ours.waiting {
        Some(waiting) if waiting.time <= ours.now => (Some(waiting.plan), None),
        waiting => (None, waiting),
    };
    let has_plan = |priced: PricedPlan| {
        let plan = due.or(ours.plan);
        let other_version =
            due.is_none() && priced.version.is_some_and(|version| version != row.plan_version);
        match waiting {
            Some(waiting) if waiting.plan == priced.plan => true,
            Some(waiting) if !ours.change_waits && Some(waiting.plan) < plan => false,
            _ => plan == Some(priced.plan) && !other_version,
        }
    };
    let period = |anchor| Period::containing(anchor, ours.now);
    row.status == found.status
        && ours.cancel == found.cancel_at
        && priced.is_none_or(has_plan)
        && is_same(period(row.anchor), period(anchor_by(found.anchor, ours.now)))
}

impl Ours {
    fn words(&self, row: &Held) -> String {
        if !row.is_current {
            return format!("{}, not in force", row.status);
        }
        let waiting = self
            .waiting
            .map_or_else(String::new, |waiting| format!(", {} from {} on", waiting.plan, time(waiting.time)));
        let plan = self.plan.map_or_else(String::new, |plan| plan.to_string());
        format!("{plan}, {}{}{waiting}", row.status, terms(row.anchor, self.cancel, self.now))
    }

    fn difference(&self, kind: Kind, message: String) -> Difference {
        Difference {
            eco_id: self.eco_id.clone(),
            kind,
            message,
            amount: Micros(0),
            currency: self.currency.clone(),
            period_start: None,
            charge_id: String::new(),
            item_id: String::new(),
            repaired: false,
        }
    }
}

fn words(found: &Subscription, priced: Option<PricedPlan>, now: DateTime<Utc>) -> String {
    let plan = priced.map_or_else(|| "of no plan that is known".to_owned(), |priced| priced.plan.to_string());
    match found.ended {
        Some(ended) => format!("{plan}, {} since {}", found.status, time(ended)),
        None => {
            format!("{plan}, {}{}", found.status, terms(anchor_by(found.anchor, now), found.cancel_at, now))
        }
    }
}

fn terms(anchor: DateTime<Utc>, cancel: Option<DateTime<Utc>>, now: DateTime<Utc>) -> String {
    let ends = cancel.map_or_else(String::new, |at| format!(", to end on {}", time(at)));
    format!(", its period from {}{ends}", time(Period::containing(anchor, now).start))
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

#[cfg(test)]
#[path = "subscription_drift_tests.rs"]
mod tests;
