use chrono::TimeDelta;
use nexus_core::plan::SubscriptionStatus;

use super::*;

fn at(text: &str) -> DateTime<Utc> {
    text.parse().expect("a time")
}

const JAN: &str = "2025-01-10T00:00:00Z";
const FEB: &str = "2025-02-10T00:00:00Z";
const MAR: &str = "2025-03-10T00:00:00Z";
const NOW: &str = "2025-03-20T00:00:00Z";

fn found(id: &str, created: &str, status: SubscriptionStatus) -> Subscription {
    Subscription {
        id: id.to_owned(),
        customer: "cus_1".to_owned(),
        status,
        prices: Vec::new(),
        anchor: at(created),
        created: at(created),
        ended: (status == SubscriptionStatus::Canceled).then(|| at(MAR)),
        cancel_at: None,
        ends_by_date: false,
        eco_id: None,
    }
}

fn held(id: i64, stripe_id: Option<&str>, created: &str, is_current: bool) -> Held {
    Held {
        subscription_id: id,
        stripe_id: stripe_id.map(str::to_owned),
        created: at(created),
        status: SubscriptionStatus::Active,
        plan_version: 1,
        anchor: at(created),
        is_current,
    }
}

/// On pro by `sub_1` since February.
fn ours() -> Ours {
    Ours {
        eco_id: "eco_a".to_owned(),
        currency: "USD".to_owned(),
        created: at(JAN),
        is_closed: false,
        rows: vec![held(2, Some("sub_1"), FEB, true)],
        plan: Some(Plan::Pro),
        waiting: None,
        cancel: None,
        event_waits: false,
        change_waits: false,
        now: at(NOW),
    }
}

fn priced(plan: Plan) -> Option<PricedPlan> {
    Some(PricedPlan { plan, version: None })
}

fn kind(found: &Subscription, ours: &Ours, priced: Option<PricedPlan>) -> Option<Kind> {
    compare(found, ours, priced).map(|difference| difference.kind)
}

#[test]
fn what_is_in_force_differs_by_state_plan_end_and_period() {
    use SubscriptionStatus::*;
    let (same, pro) = (found("sub_1", FEB, Active), priced(Plan::Pro));
    assert_eq!(kind(&same, &ours(), pro), None);
    assert_eq!(kind(&same, &ours(), None), None, "of a price that is not known");
    let differs = Some(Kind::SubscriptionDiffers);
    for status in [PastDue, Unpaid, Canceled, IncompleteExpired] {
        assert_eq!(kind(&found("sub_1", FEB, status), &ours(), pro), differs, "{status}");
    }
    assert_eq!(kind(&same, &ours(), priced(Plan::Enterprise)), differs);
    assert_eq!(kind(&same, &ours(), Some(PricedPlan { plan: Plan::Pro, version: Some(2) })), differs);
    let ending = Subscription { cancel_at: Some(at("2025-04-10T00:00:00Z")), ..same.clone() };
    assert_eq!(kind(&ending, &ours(), pro), differs);
    let other_day = Subscription { anchor: at("2025-03-12T00:00:00Z"), ..same.clone() };
    assert_eq!(kind(&other_day, &ours(), pro), differs);
    assert_eq!(
        kind(&Subscription { anchor: at(JAN), ..same.clone() }, &ours(), pro),
        None,
        "the same period"
    );
    let told = compare(&found("sub_1", FEB, Canceled), &ours(), pro).expect("a difference");
    assert_eq!(
        told.message,
        "Our tables have subscription sub_1 as pro, active, its period from 2025-03-10T00:00:00Z; \
         at Stripe it is pro, canceled since 2025-03-10T00:00:00Z."
    );
    let waits = Ours { event_waits: true, ..ours() };
    assert_eq!(kind(&found("sub_1", FEB, Canceled), &waits, pro), None, "an event is to be applied");
}

#[test]
fn a_plan_that_waits_is_the_one_that_is_paid_for() {
    let enterprise = |waiting: Plan, days| Ours {
        plan: Some(Plan::Enterprise),
        waiting: Some(WaitingPlan { plan: waiting, time: at(NOW) + TimeDelta::days(days) }),
        ..ours()
    };
    let same = found("sub_1", FEB, SubscriptionStatus::Active);
    let (pro, differs) = (priced(Plan::Pro), Some(Kind::SubscriptionDiffers));
    assert_eq!(kind(&same, &enterprise(Plan::Pro, 9), pro), None);
    assert_eq!(kind(&same, &enterprise(Plan::Pro, -9), pro), None, "it waits no more");
    assert_eq!(
        kind(&same, &enterprise(Plan::Pro, 9), priced(Plan::Enterprise)),
        differs,
        "nobody asks for it"
    );
    let asked = Ours { change_waits: true, ..enterprise(Plan::Pro, 9) };
    assert_eq!(kind(&same, &asked, priced(Plan::Enterprise)), None);
    assert_eq!(kind(&same, &enterprise(Plan::Pro, -9), priced(Plan::Enterprise)), differs);
}

#[test]
fn one_that_was_not_heard_of_is_named_if_it_is_of_a_plan() {
    use SubscriptionStatus::*;
    let free = Ours { rows: vec![held(1, None, JAN, true)], plan: Some(Plan::Free), ..ours() };
    let (pro, extra) = (priced(Plan::Pro), Some(Kind::SubscriptionExtra));
    assert_eq!(kind(&found("sub_1", FEB, Active), &free, pro), extra);
    assert_eq!(kind(&found("sub_1", FEB, Active), &free, None), None, "of another product");
    let named = Subscription { eco_id: Some("eco_a".to_owned()), ..found("sub_1", FEB, Active) };
    assert_eq!(kind(&named, &free, None), extra, "its price is not known");
    for status in [Incomplete, IncompleteExpired, Unpaid] {
        assert_eq!(kind(&found("sub_1", FEB, status), &free, pro), None, "{status}");
    }
    assert_eq!(kind(&found("sub_0", JAN, Active), &ours(), pro), None, "older than the one in force");
    // It has begun and ended unheard; or before the account was there.
    let over = found("sub_1", FEB, Canceled);
    assert_eq!(kind(&over, &free, pro), extra);
    assert_eq!(kind(&over, &free, None), None);
    assert_eq!(kind(&over, &Ours { created: at(NOW), ..free.clone() }, pro), None);
    let closed = Ours { is_closed: true, ..free };
    assert_eq!(kind(&found("sub_1", FEB, Active), &closed, pro), None);
}

#[test]
fn one_that_is_not_in_force_differs_by_its_state_and_goes_on_for_no_closed_account() {
    use SubscriptionStatus::*;
    let differs = Some(Kind::SubscriptionDiffers);
    let rows = vec![held(2, Some("sub_1"), FEB, false), held(3, Some("sub_2"), MAR, true)];
    let superseded = Ours { rows, ..ours() };
    assert_eq!(kind(&found("sub_1", FEB, Active), &superseded, None), None);
    assert_eq!(kind(&found("sub_1", FEB, Canceled), &superseded, None), differs);
    let closed = Ours { rows: vec![held(2, Some("sub_1"), FEB, false)], is_closed: true, ..ours() };
    assert_eq!(kind(&found("sub_1", FEB, Active), &closed, None), differs);
    let ends = Ours { change_waits: true, ..closed };
    assert_eq!(kind(&found("sub_1", FEB, Active), &ends, None), None, "it is being ended");

    assert_eq!(missing("sub_2", &superseded).map(|d| d.kind), Some(Kind::SubscriptionMissing));
    assert_eq!(missing("sub_1", &superseded), None);
}
