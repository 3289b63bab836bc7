//! What is asked of Stripe about a subscription, and about a checkout that leads to one: written down before it is sent,
//! and sent exactly so each time.

use std::ops::Range;

use chrono::{DateTime, TimeDelta, Utc};
use nexus_core::{id::EcoId, plan::Plan};
use serde::{Deserialize, Serialize};

use super::{
    plan_change::{self, Step},
    stripe_objects::Subscription,
    stripe_subscription::is_over,
};

/// A change of a subscription. What it asks for is a state, so that it may be asked for again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SubscriptionChange {
    /// It is of this price from now on, and goes on where it was to end.
    Price {
        /// The plan that it is of.
        plan: Plan,
        /// The item of the subscription that has a plan's price.
        item_id: String,
        /// The price.
        price_id: String,
        /// Whether what is left of the billing period is charged by the new price; else it begins with the next one.
        is_prorated: bool,
        /// Whether it was to end by a date, which is taken away otherwise than the end of a period.
        #[serde(default)]
        by_date: bool,
    },
    /// It ends with its billing period.
    EndWithPeriod,
    /// It goes on where it was to end.
    GoOn {
        /// As of a price.
        #[serde(default)]
        by_date: bool,
    },
    /// It ends now.
    EndNow,
}

impl SubscriptionChange {
    /// The same state, asked for as it is to be where the subscription stands as it was found.
    pub fn as_found(mut self, found: &Subscription) -> Self {
        if let Self::Price { by_date, .. } | Self::GoOn { by_date } = &mut self {
            *by_date = found.ends_by_date;
        }
        self
    }

    /// Whether the customer stops paying by it.
    pub fn is_end(&self) -> bool {
        matches!(self, Self::EndWithPeriod | Self::EndNow)
    }
}

/// A change that is written down, as far as it has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenChange {
    /// Its number.
    pub change_id: i64,
    /// Account.
    pub eco_id: EcoId,
    /// Subscription at Stripe.
    pub subscription: String,
    /// What is asked for.
    pub change: SubscriptionChange,
    /// From 1.
    pub attempt: i32,
    /// Whether the key of the attempt may still be used.
    pub is_young: bool,
    /// How often it failed.
    pub failures: i32,
}

impl WrittenChange {
    /// Idempotency key of the attempt.
    pub fn key(&self) -> String {
        format!("nexus-subscription-{}-{}-{}", self.eco_id, self.change_id, self.attempt)
    }
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeOutcome {
    /// It is made.
    Done,
    /// Stripe refused it, and why, in a sentence.
    Refused(String),
    /// Another one came after it.
    Superseded,
}

impl ChangeOutcome {
    /// As it is kept: a word, and why.
    pub fn parts(&self) -> (&'static str, Option<&str>) {
        match self {
            Self::Done => ("done", None),
            Self::Refused(why) => ("refused", Some(why)),
            Self::Superseded => ("superseded", None),
        }
    }

    /// What is kept, read again; `None`: no such word.
    pub fn of(word: &str, why: Option<String>) -> Option<Self> {
        match word {
            "done" => Some(Self::Done),
            "refused" => Some(Self::Refused(why.unwrap_or_default())),
            "superseded" => Some(Self::Superseded),
            _ => None,
        }
    }
}

/// Whether a subscription as it stands is what the change asks for.
pub fn is_so(found: &Subscription, change: &SubscriptionChange) -> bool {
    let ends = found.cancel_at.is_some();
    match change {
        SubscriptionChange::Price { item_id, price_id, .. } => {
            !ends && found.prices.iter().any(|price| price.item_id == *item_id && price.id == *price_id)
        }
        SubscriptionChange::EndWithPeriod => (ends && !found.ends_by_date) || is_over(found),
        SubscriptionChange::GoOn { .. } => !ends,
        SubscriptionChange::EndNow => is_over(found),
    }
}

/// What is to be done at Stripe so that an account has a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepAtStripe {
    /// Nothing: it is so, or it will be at the period's end already.
    Nothing,
    /// It was to end, and goes on.
    GoOn,
    /// It ends.
    End {
        /// Now, and not with its period.
        now: bool,
    },
    /// It is of another price.
    Price {
        /// The plan changes now, and what is left of the period is charged by it.
        is_prorated: bool,
        /// The plan waits for the period's end.
        waits: bool,
    },
}

/// What is to be done about a change of plan; what is due was done before. A free account needs no subscription at Stripe.
/// One that ends by a date ends with its period only if the date does not lie behind that.
pub fn step(
    subscription: &plan_change::Subscription,
    plan: Plan,
    apply_now: bool,
    ends_by_date: bool,
) -> StepAtStripe {
    let ends = subscription.cancel_time.is_some();
    if plan == Plan::Free {
        let ends_in_time = ends && !(ends_by_date && subscription.ends_after_period());
        return if ends_in_time && !apply_now {
            StepAtStripe::Nothing
        } else {
            StepAtStripe::End { now: apply_now }
        };
    }
    match subscription.step(plan, apply_now) {
        Step::Nothing if ends => StepAtStripe::GoOn,
        Step::Nothing => StepAtStripe::Nothing,
        Step::Keep => StepAtStripe::Price { is_prorated: false, waits: false },
        Step::Now => StepAtStripe::Price { is_prorated: true, waits: false },
        Step::AtPeriodEnd => StepAtStripe::Price { is_prorated: false, waits: true },
    }
}

/// What is to be done so that an account keeps the plan it has: neither an end nor another plan waits for the period's end.
pub fn step_to_keep(subscription: &plan_change::Subscription) -> StepAtStripe {
    match subscription.plan {
        Plan::Free if subscription.cancel_time.is_some() => StepAtStripe::GoOn,
        Plan::Free => StepAtStripe::Nothing,
        plan => step(subscription, plan, false, false),
    }
}

/// A checkout, exactly as it is sent: every attempt of a key sends the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewCheckout {
    /// Account that it is for.
    pub eco_id: String,
    /// Customer at Stripe; none: the checkout makes one.
    pub customer: Option<String>,
    /// Email that a new customer gets.
    pub email: Option<String>,
    /// Price of the subscription.
    pub price_id: String,
    /// Where the customer goes on after it.
    pub success_url: String,
    /// Where the customer goes back to.
    pub cancel_url: String,
    /// When it ends by itself.
    pub expires: DateTime<Utc>,
}

/// A checkout that is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenCheckout {
    /// Number within the account, from 1.
    pub number: i32,
    /// Plan that it is for.
    pub plan: Plan,
    /// As it is sent.
    pub checkout: NewCheckout,
    /// The session at Stripe, once it is heard of; nobody learns its address before that is kept.
    pub session_id: Option<String>,
    /// Whether its key may be used no more, and no session of it can be open.
    pub is_over: bool,
}

impl WrittenCheckout {
    /// When those of the account's sessions were opened that could be open when this one was written down, or later.
    pub fn opened(&self) -> Range<DateTime<Utc>> {
        self.checkout.expires - CHECKOUT_LIFE * 2..self.checkout.expires
    }
}

/// How long a checkout is open: less than its key lives, so that a repeat never makes a second one that is open as well.
pub const CHECKOUT_LIFE: TimeDelta = TimeDelta::hours(22);

/// Idempotency key of a checkout.
pub fn checkout_key(eco_id: &EcoId, number: i32) -> String {
    format!("nexus-checkout-{eco_id}-{number}")
}

#[cfg(test)]
mod tests {
    use nexus_core::plan::SubscriptionStatus;

    use super::*;
    use crate::domain::stripe_objects::Price;

    #[test]
    fn a_plan_is_had_by_a_price_and_a_free_one_by_an_end() {
        use Plan::{Enterprise, Free, Pro};
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(10);
        let end = now + TimeDelta::days(20);
        let price = |is_prorated, waits| StepAtStripe::Price { is_prorated, waits };
        for (waiting, ends, wanted, apply_now, expected) in [
            (None, false, Pro, false, StepAtStripe::Nothing),
            (None, true, Pro, false, StepAtStripe::GoOn),
            (None, false, Enterprise, false, price(true, false)),
            (None, true, Enterprise, false, price(true, false)),
            (None, false, Free, false, StepAtStripe::End { now: false }),
            (None, true, Free, false, StepAtStripe::Nothing),
            (None, true, Free, true, StepAtStripe::End { now: true }),
        ] {
            assert_eq!(
                step(&held(Pro, waiting, ends, now, end), wanted, apply_now, false),
                expected,
                "{wanted} {ends}"
            );
        }
        for (waiting, ends, wanted, apply_now, expected) in [
            (None, false, Pro, false, price(false, true)),
            (None, false, Pro, true, price(true, false)),
            (Some(Pro), false, Pro, false, StepAtStripe::Nothing),
            (Some(Pro), true, Pro, false, StepAtStripe::GoOn),
            (Some(Pro), false, Enterprise, false, price(false, false)),
        ] {
            let subscription = held(Enterprise, waiting, ends, now, end);
            assert_eq!(
                step(&subscription, wanted, apply_now, false),
                expected,
                "{waiting:?} {wanted} {ends}"
            );
        }
    }

    #[test]
    fn a_plan_is_kept_by_taking_back_what_waits() {
        use Plan::{Enterprise, Pro};
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(10);
        let end = now + TimeDelta::days(20);
        let price = StepAtStripe::Price { is_prorated: false, waits: false };
        for (waiting, ends, expected) in [
            (None, false, StepAtStripe::Nothing),
            (None, true, StepAtStripe::GoOn),
            (Some(Pro), false, price),
            (Some(Pro), true, price),
            // A newer version of the own plan goes on waiting.
            (Some(Enterprise), false, StepAtStripe::Nothing),
            (Some(Enterprise), true, StepAtStripe::GoOn),
        ] {
            assert_eq!(
                step_to_keep(&held(Enterprise, waiting, ends, now, end)),
                expected,
                "{waiting:?} {ends}"
            );
        }
    }

    #[test]
    fn a_date_is_the_periods_end_unless_it_is_later() {
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(10);
        let end = now + TimeDelta::days(20);
        let with_period = StepAtStripe::End { now: false };
        for (ends, by_date, expected) in [
            (end - TimeDelta::days(1), true, StepAtStripe::Nothing),
            (end, true, StepAtStripe::Nothing),
            (end + TimeDelta::days(1), true, with_period),
            // The end of a longer billing period than ours is no date.
            (end + TimeDelta::days(300), false, StepAtStripe::Nothing),
        ] {
            let mut subscription = held(Plan::Pro, None, true, now, end);
            subscription.cancel_time = Some(ends);
            assert_eq!(step(&subscription, Plan::Free, false, by_date), expected, "{ends} {by_date}");
        }
    }

    fn held(
        plan: Plan,
        waiting: Option<Plan>,
        ends: bool,
        now: DateTime<Utc>,
        end: DateTime<Utc>,
    ) -> plan_change::Subscription {
        plan_change::Subscription {
            subscription_id: 1,
            plan,
            waiting: waiting.map(|plan| plan_change::WaitingPlan { plan, time: end }),
            stripe_subscription_id: Some("sub_1".to_owned()),
            cancel_time: ends.then_some(end),
            currency: nexus_core::money::Currency::USD,
            closed_time: None,
            period: nexus_core::period::Period { start: DateTime::UNIX_EPOCH, end },
            now,
        }
    }

    #[test]
    fn a_state_tells_whether_a_change_has_come_about() {
        let price = |id: &str| Price { id: id.to_owned(), lookup_key: None, item_id: "si_1".to_owned() };
        let active = Subscription {
            id: "sub_1".to_owned(),
            customer: "cus_1".to_owned(),
            status: SubscriptionStatus::Active,
            prices: vec![price("price_pro")],
            anchor: DateTime::UNIX_EPOCH,
            created: DateTime::UNIX_EPOCH,
            ended: None,
            cancel_at: None,
            ends_by_date: false,
            eco_id: None,
        };
        let ending = Subscription { cancel_at: Some(DateTime::UNIX_EPOCH), ..active.clone() };
        let by_date = Subscription { ends_by_date: true, ..ending.clone() };
        let over = Subscription { ended: Some(DateTime::UNIX_EPOCH), ..active.clone() };
        let to = |price_id: &str| SubscriptionChange::Price {
            plan: Plan::Pro,
            item_id: "si_1".to_owned(),
            price_id: price_id.to_owned(),
            is_prorated: true,
            by_date: false,
        };
        let go_on = SubscriptionChange::GoOn { by_date: false };
        for (found, change, so) in [
            (&active, to("price_pro"), true),
            (&active, to("price_enterprise"), false),
            (&ending, to("price_pro"), false),
            (&active, SubscriptionChange::EndWithPeriod, false),
            (&ending, SubscriptionChange::EndWithPeriod, true),
            (&over, SubscriptionChange::EndWithPeriod, true),
            (&by_date, SubscriptionChange::EndWithPeriod, false),
            (&active, go_on.clone(), true),
            (&ending, go_on.clone(), false),
            (&by_date, go_on.clone(), false),
            (&ending, SubscriptionChange::EndNow, false),
            (&over, SubscriptionChange::EndNow, true),
        ] {
            assert_eq!(is_so(found, &change), so, "{change:?} of {found:?}");
        }
        assert_eq!(go_on.clone().as_found(&ending), go_on);
        assert_eq!(go_on.as_found(&by_date), SubscriptionChange::GoOn { by_date: true });
    }

    #[test]
    fn what_was_written_down_before_there_were_dates_is_read() {
        let read = |text| serde_json::from_str::<SubscriptionChange>(text).expect("a change");
        assert_eq!(read(r#"{"kind":"go_on"}"#), SubscriptionChange::GoOn { by_date: false });
        let price =
            read(r#"{"kind":"price","plan":"pro","item_id":"si_1","price_id":"price_1","is_prorated":true}"#);
        assert!(matches!(price, SubscriptionChange::Price { by_date: false, .. }), "{price:?}");
    }
}
