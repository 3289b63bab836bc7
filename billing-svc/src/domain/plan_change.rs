//! A change of an account's plan: what is asked for, and what is to be done about it.

use chrono::{DateTime, TimeDelta, Utc};
use nexus_core::{id::EcoId, money::Currency, period::Period, plan::Plan};
use uuid::Uuid;

use super::account::Account;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanChange {
    /// Account.
    pub eco_id: EcoId,
    /// The plan it is to have.
    pub plan: Plan,
    /// A downgrade does not wait for the period's end.
    pub apply_now: bool,
    /// Makes a repeat return the first answer.
    pub request_id: Option<Uuid>,
    /// Whether the account's own user asks, who pays for a plan at Stripe.
    pub by_user: bool,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanChanged {
    /// The account after the change.
    pub account: Account,
    /// When the plan asked for is in force.
    pub apply_time: DateTime<Utc>,
}

/// A change that waits for the end of a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitingPlan {
    /// The plan.
    pub plan: Plan,
    /// When it is in force.
    pub time: DateTime<Utc>,
}

/// The subscription of an account that is not closed, as a change of its plan needs it.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// Its row.
    pub subscription_id: i64,
    /// Plan, but for what waits.
    pub plan: Plan,
    /// What waits.
    pub waiting: Option<WaitingPlan>,
    /// Subscription at Stripe.
    pub stripe_subscription_id: Option<String>,
    /// When that will end by itself, if it will.
    pub cancel_time: Option<DateTime<Utc>>,
    /// Currency of the account.
    pub currency: Currency,
    /// When the account was closed.
    pub closed_time: Option<DateTime<Utc>>,
    /// The current period.
    pub period: Period,
    /// Database time.
    pub now: DateTime<Utc>,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it is so, or it is waiting for the period's end already.
    Nothing,
    /// The account keeps its plan: what waits is dropped.
    Keep,
    /// The plan changes now, and a segment ends.
    Now,
    /// The plan changes at the period's end.
    AtPeriodEnd,
}

impl Subscription {
    /// What waits and is in force by now.
    pub fn due(&self) -> Option<WaitingPlan> {
        self.waiting.filter(|waiting| waiting.time <= self.now)
    }

    /// What is to be done about a change; what is due was done before. Upgrades apply now, downgrades at the
    /// period's end or now, as is asked for.
    pub fn step(&self, plan: Plan, apply_now: bool) -> Step {
        let waiting = self.waiting.map(|waiting| waiting.plan);
        if plan == self.plan {
            // A newer version of the plan goes on waiting.
            if waiting.is_some_and(|waiting| waiting != plan) { Step::Keep } else { Step::Nothing }
        } else if plan > self.plan || apply_now {
            Step::Now
        } else if waiting == Some(plan) {
            Step::Nothing
        } else {
            Step::AtPeriodEnd
        }
    }

    /// Whether it ends by itself later than with its current period: Stripe's times are whole seconds, ours need not be.
    pub fn ends_after_period(&self) -> bool {
        self.cancel_time.is_some_and(|time| time - self.period.end >= TimeDelta::seconds(1))
    }

    /// When a plan is in force that was asked for, and that everything was done for.
    pub fn in_force(&self, plan: Plan) -> DateTime<Utc> {
        match self.waiting {
            _ if plan == self.plan => self.now,
            Some(waiting) if waiting.plan == plan => waiting.time,
            _ if plan == Plan::Free => self.cancel_time.unwrap_or(self.now),
            _ => self.now,
        }
    }

    /// When a plan is in force after the step that was taken for it.
    pub fn apply_time(&self, step: Step) -> DateTime<Utc> {
        match step {
            Step::AtPeriodEnd => self.period.end,
            Step::Nothing => match self.waiting {
                Some(waiting) if waiting.plan != self.plan => waiting.time,
                _ => self.now,
            },
            Step::Keep | Step::Now => self.now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upgrades_apply_now_and_downgrades_at_the_end_of_the_period_unless_now_is_asked_for() {
        use Plan::{Enterprise, Free, Pro};
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(10);
        let period = Period { start: DateTime::UNIX_EPOCH, end: now + TimeDelta::days(20) };
        let mut subscription = Subscription {
            subscription_id: 1,
            plan: Pro,
            waiting: None,
            stripe_subscription_id: None,
            cancel_time: None,
            currency: Currency::USD,
            closed_time: None,
            period,
            now,
        };
        for (waiting, wanted, apply_now, step, apply_time) in [
            (None, Pro, false, Step::Nothing, now),
            (None, Pro, true, Step::Nothing, now),
            (None, Enterprise, false, Step::Now, now),
            (None, Free, false, Step::AtPeriodEnd, period.end),
            (None, Free, true, Step::Now, now),
            (Some(Free), Free, false, Step::Nothing, period.end),
            (Some(Free), Free, true, Step::Now, now),
            (Some(Free), Pro, false, Step::Keep, now),
            (Some(Free), Enterprise, false, Step::Now, now),
            // A newer version of the own plan waits.
            (Some(Pro), Pro, false, Step::Nothing, now),
            (Some(Pro), Free, false, Step::AtPeriodEnd, period.end),
        ] {
            subscription.waiting = waiting.map(|plan| WaitingPlan { plan, time: period.end });
            let case = format!("{waiting:?} {wanted} {apply_now}");
            assert_eq!(subscription.step(wanted, apply_now), step, "{case}");
            assert_eq!(subscription.apply_time(step), apply_time, "{case}");
            assert_eq!(subscription.due(), None, "{case}");
        }
        subscription.now = period.end;
        subscription.waiting = Some(WaitingPlan { plan: Free, time: period.end });
        assert_eq!(subscription.due(), subscription.waiting);
    }
}
