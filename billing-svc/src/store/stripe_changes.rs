//! `eco_stripe_changes`: what is asked of Stripe about subscriptions.

use std::time::Duration;

use nexus_core::id::EcoId;
use sqlx::{PgConnection, types::Json};

use super::unknown_word;
use crate::domain::{
    charge::KEY_LIFE,
    of_a_day::OfADay,
    stripe_change::{ChangeOutcome, SubscriptionChange, WrittenChange},
};

struct Row {
    change_id: i64,
    eco_id: String,
    stripe_subscription_id: String,
    change: Json<SubscriptionChange>,
    attempt: i32,
    young: bool,
    failures: i32,
}

impl TryFrom<Row> for WrittenChange {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> Result<Self, sqlx::Error> {
        Ok(Self {
            change_id: row.change_id,
            eco_id: EcoId::parse(&row.eco_id).map_err(unknown_word)?,
            subscription: row.stripe_subscription_id,
            change: row.change.0,
            attempt: row.attempt,
            is_young: row.young,
            failures: row.failures,
        })
    }
}

/// Writes a change down, to be made by whoever writes it; by another after a while, where that does not come to it. One
/// of the same subscription that is open is superseded, but for one that ends it now.
#[tracing::instrument(name = "db.eco_stripe_changes.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert(
    db: &mut PgConnection,
    eco_id: &EcoId,
    subscription: &str,
    change: &SubscriptionChange,
    left_to_others_after: Duration,
) -> sqlx::Result<WrittenChange> {
    if let Some(open) = open(db, subscription).await? {
        if open.change == *change || open.change == SubscriptionChange::EndNow {
            return Ok(open);
        }
        end(db, open.change_id, &ChangeOutcome::Superseded).await?;
    }
    let row = sqlx::query_as!(
        Row,
        r#"insert into eco_stripe_changes (eco_id, stripe_subscription_id, change, due_time)
           values ($1, $2, $3, now() + make_interval(secs => $4))
           returning change_id, eco_id, stripe_subscription_id, change as "change: Json<SubscriptionChange>", attempt,
                     true as "young!", failures"#,
        eco_id.as_str(),
        subscription,
        Json(change) as _,
        left_to_others_after.as_secs_f64(),
    )
    .fetch_one(db)
    .await?;
    row.try_into()
}

/// The change of a subscription that is not made yet.
#[tracing::instrument(name = "db.eco_stripe_changes.open", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn open(db: &mut PgConnection, subscription: &str) -> sqlx::Result<Option<WrittenChange>> {
    let row = sqlx::query_as!(
        Row,
        r#"select change_id, eco_id, stripe_subscription_id, change as "change: Json<SubscriptionChange>", attempt,
                  attempt_time > now() - $2::interval as "young!", failures
           from eco_stripe_changes where stripe_subscription_id = $1 and finished_time is null
           for update"#,
        subscription,
        KEY_LIFE as _,
    )
    .fetch_optional(db)
    .await?;
    row.map(WrittenChange::try_from).transpose()
}

/// Takes a change that is due and was not made, for as long as is given; nobody else gets it meanwhile.
#[tracing::instrument(name = "db.eco_stripe_changes.take", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn take(db: &mut PgConnection, within: Duration) -> sqlx::Result<Option<WrittenChange>> {
    let row = sqlx::query_as!(
        Row,
        r#"update eco_stripe_changes set due_time = now() + make_interval(secs => $1)
           where change_id = (select change_id from eco_stripe_changes
                              where finished_time is null and due_time <= now()
                              order by due_time limit 1
                              for update skip locked)
           returning change_id, eco_id, stripe_subscription_id, change as "change: Json<SubscriptionChange>", attempt,
                     attempt_time > now() - $2::interval as "young!", failures"#,
        within.as_secs_f64(),
        KEY_LIFE as _,
    )
    .fetch_optional(db)
    .await?;
    row.map(WrittenChange::try_from).transpose()
}

/// Begins the next attempt, under a key of its own and in the form that the change is given in; `None`: somebody else did,
/// or it is over.
#[tracing::instrument(name = "db.eco_stripe_changes.next_attempt", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn next_attempt(
    db: &mut PgConnection,
    change: &WrittenChange,
) -> sqlx::Result<Option<WrittenChange>> {
    let done = sqlx::query!(
        "update eco_stripe_changes set attempt = attempt + 1, attempt_time = now(), change = $3
         where change_id = $1 and attempt = $2 and finished_time is null",
        change.change_id,
        change.attempt,
        Json(&change.change) as _,
    )
    .execute(db)
    .await?;
    let next = WrittenChange { attempt: change.attempt + 1, is_young: true, ..change.clone() };
    Ok((done.rows_affected() == 1).then_some(next))
}

/// Keeps what became of a change; false: that is known already.
#[tracing::instrument(name = "db.eco_stripe_changes.end", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn end(db: &mut PgConnection, change_id: i64, outcome: &ChangeOutcome) -> sqlx::Result<bool> {
    let (word, why) = outcome.parts();
    let done = sqlx::query!(
        "update eco_stripe_changes set outcome = $2, failure = $3, finished_time = now()
         where change_id = $1 and finished_time is null",
        change_id,
        word,
        why,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The changes of an account that were written down within 24 hours.
#[tracing::instrument(name = "db.eco_stripe_changes.of_a_day", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn of_a_day(db: &mut PgConnection, eco_id: &EcoId) -> sqlx::Result<OfADay> {
    sqlx::query_as!(
        OfADay,
        r#"select count(*) as "count!",
                  coalesce(extract(epoch from min(created_time) + interval '24 hours' - now()) * 1000, 0)::bigint
                      as "oldest_leaves_in_ms!"
           from eco_stripe_changes where eco_id = $1 and created_time > now() - interval '24 hours'"#,
        eco_id.as_str(),
    )
    .fetch_one(db)
    .await
}

/// A change, and what became of it, if that is known.
#[tracing::instrument(name = "db.eco_stripe_changes.get", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn get(
    db: &mut PgConnection,
    change_id: i64,
) -> sqlx::Result<(WrittenChange, Option<ChangeOutcome>)> {
    let row = sqlx::query!(
        r#"select eco_id, stripe_subscription_id, change as "change: Json<SubscriptionChange>", attempt,
                  attempt_time > now() - $2::interval as "young!", failures, outcome, failure
           from eco_stripe_changes where change_id = $1"#,
        change_id,
        KEY_LIFE as _,
    )
    .fetch_one(db)
    .await?;
    let outcome = row.outcome.and_then(|word| ChangeOutcome::of(&word, row.failure));
    let change = Row {
        change_id,
        eco_id: row.eco_id,
        stripe_subscription_id: row.stripe_subscription_id,
        change: row.change,
        attempt: row.attempt,
        young: row.young,
        failures: row.failures,
    };
    Ok((change.try_into()?, outcome))
}

/// It could not be made now: it is due again after a while.
#[tracing::instrument(name = "db.eco_stripe_changes.fail", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn fail(
    db: &mut PgConnection,
    change_id: i64,
    failure: &str,
    again_in: Duration,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_stripe_changes
         set failures = failures + 1, failure = $2, due_time = now() + make_interval(secs => $3)
         where change_id = $1 and finished_time is null",
        change_id,
        failure,
        again_in.as_secs_f64(),
    )
    .execute(db)
    .await?;
    Ok(())
}
