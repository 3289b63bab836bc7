//! Where an account's periods begin otherwise: the current one is cut, and another is current. The one that is left
//! keeps what was counted in it, and its own end; the one that is entered may be one that was left before, and goes on
//! with its count.

use chrono::{DateTime, Utc};
use nexus_core::{id::EcoId, period::Period, plan::Plan};
use sqlx::PgConnection;

use crate::{
    app::change_plan::close_segment,
    domain::{
        period::PeriodKey,
        plan_change::Subscription,
        stripe_subscription::{cut, is_same},
    },
    error::Error,
    store::{changes, facts, records},
};

/// Leaves the current period for `next`, because of what happened at `at`: its open segment is closed by the terms
/// that hold so far, and where `next` is another it ends early. Returns since when something else holds. To be called
/// before the subscription changes, with the account seized.
pub(super) async fn leave(
    db: &mut PgConnection,
    eco_id: &EcoId,
    current: &Subscription,
    next: Period,
    at: DateTime<Utc>,
) -> Result<DateTime<Utc>, Error> {
    close_segment(db, eco_id, current).await?;
    let end = cut(current.period, at, current.now);
    if !is_same(current.period, next) {
        // The summary knows where a period ends: one that was cut is not to be told from its subscription.
        let own = [key(eco_id, current.period.start)];
        let facts = facts::read(db, &own).await?;
        records::upsert(db, &facts).await?;
        records::cut(db, &own[0], end).await?;
    }
    Ok(end)
}

/// Enters a period, which is current now, on a version of a plan. To be called after the subscription has changed.
pub(super) async fn enter(
    db: &mut PgConnection,
    eco_id: &EcoId,
    period: Period,
    plan: (Plan, i32),
) -> Result<(), Error> {
    let key = key(eco_id, period.start);
    records::open(db, &key, period.end, plan).await?;
    Ok(changes::add(db, &key).await?)
}

fn key(eco_id: &EcoId, start: DateTime<Utc>) -> PeriodKey {
    PeriodKey { eco_id: eco_id.to_string(), start }
}
