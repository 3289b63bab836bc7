//! `eco_stripe_listed_subscriptions`: the subscriptions that Stripe has, while they are compared with ours; and what ours
//! say of them.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::unknown_word;
use crate::domain::{
    plan_change::WaitingPlan, reconciliation::Scope, stripe_objects::Subscription, stripe_subscription::Held,
    subscription_drift::Ours,
};

/// Empties it.
#[tracing::instrument(name = "db.eco_stripe_listed_subscriptions.clear", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn clear(db: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!("truncate eco_stripe_listed_subscriptions").execute(db).await?;
    Ok(())
}

/// Keeps which subscriptions are there.
#[tracing::instrument(name = "db.eco_stripe_listed_subscriptions.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert(db: &mut PgConnection, found: &[Subscription]) -> sqlx::Result<()> {
    let ids: Vec<&str> = found.iter().map(|subscription| subscription.id.as_str()).collect();
    sqlx::query!(
        "insert into eco_stripe_listed_subscriptions select * from unnest($1::text[]) on conflict do nothing",
        &ids as &[&str],
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Subscriptions that accounts have and the listing has not, oldest first.
#[tracing::instrument(name = "db.eco_stripe_listed_subscriptions.missing", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn missing(db: &mut PgConnection, scope: &Scope, limit: i64) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"select s.stripe_subscription_id as "id!" from eco_subscriptions s
           where s.ended_time is null and s.stripe_subscription_id is not null
             and ($1::text[] is null or s.eco_id = any ($1))
             and not exists (select from eco_stripe_listed_subscriptions l
                             where l.subscription_id = s.stripe_subscription_id)
           order by s.subscription_id
           limit $2"#,
        scope.accounts.as_deref() as Option<&[String]>,
        limit,
    )
    .fetch_all(db)
    .await
}

/// A row of ours.
struct Row {
    position: i64,
    eco_id: String,
    currency_code: String,
    created_time: DateTime<Utc>,
    is_closed: bool,
    is_current: bool,
    subscription_id: i64,
    stripe_subscription_id: Option<String>,
    stripe_created_time: DateTime<Utc>,
    status: String,
    plan: String,
    plan_version: i32,
    anchor_time: DateTime<Utc>,
    next_plan: Option<String>,
    next_plan_time: Option<DateTime<Utc>>,
    cancel_time: Option<DateTime<Utc>>,
    event_waits: bool,
    change_waits: bool,
    now: DateTime<Utc>,
}

/// What our tables say of the account of each of these: that which has the subscription or its customer, else the one that
/// it names. `None`: of no account of ours.
#[tracing::instrument(name = "db.eco_subscriptions.of_listed", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn ours(
    db: &mut PgConnection,
    listed: &[(&str, &str, Option<&str>)],
) -> sqlx::Result<Vec<Option<Ours>>> {
    let ids: Vec<&str> = listed.iter().map(|(id, _, _)| *id).collect();
    let customers: Vec<&str> = listed.iter().map(|(_, customer, _)| *customer).collect();
    let names: Vec<Option<&str>> = listed.iter().map(|(_, _, eco_id)| *eco_id).collect();
    let rows = sqlx::query_as!(
        Row,
        r#"select u.position as "position!", i.eco_id, i.currency_code, i.created_time,
                  i.closed_time is not null as "is_closed!", s.ended_time is null as "is_current!",
                  s.subscription_id, s.stripe_subscription_id,
                  coalesce(s.stripe_created_time, s.started_time) as "stripe_created_time!", s.status, s.plan,
                  s.plan_version, s.anchor_time, s.next_plan, s.next_plan_time, s.cancel_time,
                  exists (select from eco_stripe_events e
                          where e.subscription_id = u.id and e.processed_time is null and e.parked_time is null)
                      as "event_waits!",
                  exists (select from eco_stripe_changes c
                          where c.stripe_subscription_id = u.id and c.finished_time is null) as "change_waits!",
                  now() as "now!"
           from unnest($1::text[], $2::text[], $3::text[]) with ordinality as u (id, customer, eco_id, position)
           join eco_identities i on i.eco_id = coalesce(
               (select o.eco_id from eco_subscriptions o where o.stripe_subscription_id = u.id),
               (select c.eco_id from eco_identities c where c.stripe_customer_id = u.customer), u.eco_id)
           join eco_subscriptions s on s.eco_id = i.eco_id
               and (s.ended_time is null or s.stripe_subscription_id = u.id)
           order by u.position, s.subscription_id"#,
        &ids as &[&str],
        &customers as &[&str],
        &names as &[Option<&str>],
    )
    .fetch_all(db)
    .await?;
    let mut found: Vec<Option<Ours>> = vec![None; listed.len()];
    for row in rows {
        let Some(place) = usize::try_from(row.position - 1).ok().and_then(|at| found.get_mut(at)) else {
            continue;
        };
        add(place, row)?;
    }
    Ok(found)
}

fn add(place: &mut Option<Ours>, row: Row) -> sqlx::Result<()> {
    let ours = place.get_or_insert_with(|| Ours {
        eco_id: row.eco_id,
        currency: row.currency_code,
        created: row.created_time,
        is_closed: row.is_closed,
        rows: Vec::new(),
        plan: None,
        waiting: None,
        cancel: None,
        event_waits: row.event_waits,
        change_waits: row.change_waits,
        now: row.now,
    });
    if row.is_current {
        ours.plan = Some(row.plan.parse().map_err(unknown_word)?);
        if let Some((plan, time)) = row.next_plan.zip(row.next_plan_time) {
            ours.waiting = Some(WaitingPlan { plan: plan.parse().map_err(unknown_word)?, time });
        }
        ours.cancel = row.cancel_time;
    }
    ours.rows.push(Held {
        subscription_id: row.subscription_id,
        stripe_id: row.stripe_subscription_id,
        created: row.stripe_created_time,
        status: row.status.parse().map_err(unknown_word)?,
        plan_version: row.plan_version,
        anchor: row.anchor_time,
        is_current: row.is_current,
    });
    Ok(())
}
