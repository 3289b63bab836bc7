//! `eco_checkouts`: checkouts that were opened for accounts; at most one of an account is open.

use std::time::Duration;

use nexus_core::{id::EcoId, plan::Plan};
use sqlx::{PgConnection, types::Json};

use super::unknown_word;
use crate::domain::{
    charge::KEY_LIFE,
    of_a_day::OfADay,
    stripe_change::{NewCheckout, WrittenCheckout},
};

/// The checkout of an account that is not known to be over.
#[tracing::instrument(name = "db.eco_checkouts.open", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn open(db: &mut PgConnection, eco_id: &EcoId) -> sqlx::Result<Option<WrittenCheckout>> {
    let row = sqlx::query!(
        r#"select number, plan, checkout as "checkout: Json<NewCheckout>", session_id,
                  created_time <= now() - $2::interval as "over!"
           from eco_checkouts where eco_id = $1 and closed_time is null"#,
        eco_id.as_str(),
        KEY_LIFE as _,
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        Ok(WrittenCheckout {
            number: row.number,
            plan: row.plan.parse().map_err(unknown_word)?,
            checkout: row.checkout.0,
            session_id: row.session_id,
            is_over: row.over,
        })
    })
    .transpose()
}

/// Writes a checkout down; it ends with its key, and a worker looks then what came of it. False: another one of the account
/// is open.
#[tracing::instrument(name = "db.eco_checkouts.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert(
    db: &mut PgConnection,
    eco_id: &EcoId,
    plan: Plan,
    checkout: &NewCheckout,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "insert into eco_checkouts (eco_id, number, plan, checkout)
         select $1, coalesce(max(number), 0) + 1, $2, $3::jsonb from eco_checkouts where eco_id = $1
         on conflict do nothing",
        eco_id.as_str(),
        plan.as_str(),
        Json(checkout) as _,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The checkouts of an account that were written down within 24 hours.
#[tracing::instrument(name = "db.eco_checkouts.of_a_day", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn of_a_day(db: &mut PgConnection, eco_id: &EcoId) -> sqlx::Result<OfADay> {
    sqlx::query_as!(
        OfADay,
        r#"select count(*) as "count!",
                  coalesce(extract(epoch from min(created_time) + interval '24 hours' - now()) * 1000, 0)::bigint
                      as "oldest_leaves_in_ms!"
           from eco_checkouts where eco_id = $1 and created_time > now() - interval '24 hours'"#,
        eco_id.as_str(),
    )
    .fetch_one(db)
    .await
}

/// Has the account's checkout ended that is not known to be over, by whoever asks for that; by another after a while.
#[tracing::instrument(name = "db.eco_checkouts.end", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn end(
    db: &mut PgConnection,
    eco_id: &EcoId,
    left_to_others_after: Duration,
) -> sqlx::Result<Option<WrittenCheckout>> {
    sqlx::query!(
        "update eco_checkouts set end_due_time = now() + make_interval(secs => $2)
         where eco_id = $1 and closed_time is null",
        eco_id.as_str(),
        left_to_others_after.as_secs_f64(),
    )
    .execute(&mut *db)
    .await?;
    open(db, eco_id).await
}

/// Takes a checkout that is to be ended, or looked at for its time is over, and was not, for as long as is given; nobody else
/// gets it meanwhile. Whose it is, and how often that failed.
#[tracing::instrument(name = "db.eco_checkouts.take", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn take(
    db: &mut PgConnection,
    within: Duration,
) -> sqlx::Result<Option<(EcoId, WrittenCheckout, i32)>> {
    let taken = sqlx::query!(
        "update eco_checkouts
         set look_due_time = now() + make_interval(secs => $1),
             end_due_time = case when end_due_time is not null then now() + make_interval(secs => $1) end
         where (eco_id, number) = (select eco_id, number from eco_checkouts
                                   where closed_time is null and least(end_due_time, look_due_time) <= now()
                                   order by least(end_due_time, look_due_time) limit 1
                                   for update skip locked)
         returning eco_id, failures",
        within.as_secs_f64(),
    )
    .fetch_optional(&mut *db)
    .await?;
    let Some(taken) = taken else { return Ok(None) };
    let eco_id = EcoId::parse(&taken.eco_id).map_err(unknown_word)?;
    let written = open(db, &eco_id).await?;
    Ok(written.map(|written| (eco_id, written, taken.failures)))
}

/// What came of it goes on: it stays for whoever comes next, and no worker looks at it.
#[tracing::instrument(name = "db.eco_checkouts.leave", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn leave(db: &mut PgConnection, eco_id: &EcoId, number: i32) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_checkouts set look_due_time = null, end_due_time = null
         where eco_id = $1 and number = $2 and closed_time is null",
        eco_id.as_str(),
        number,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// It could not be ended, or looked at, now: that is due again after a while.
#[tracing::instrument(name = "db.eco_checkouts.fail", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn fail(
    db: &mut PgConnection,
    eco_id: &EcoId,
    number: i32,
    again_in: Duration,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_checkouts
         set failures = failures + 1, look_due_time = now() + make_interval(secs => $3),
             end_due_time = case when end_due_time is not null then now() + make_interval(secs => $3) end
         where eco_id = $1 and number = $2 and closed_time is null",
        eco_id.as_str(),
        number,
        again_in.as_secs_f64(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The session is there.
#[tracing::instrument(name = "db.eco_checkouts.set_session", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn set_session(
    db: &mut PgConnection,
    eco_id: &EcoId,
    number: i32,
    session_id: &str,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_checkouts set session_id = $3 where eco_id = $1 and number = $2",
        eco_id.as_str(),
        number,
        session_id,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// No session of it is open any more.
#[tracing::instrument(name = "db.eco_checkouts.close", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn close(db: &mut PgConnection, eco_id: &EcoId, number: i32) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_checkouts set closed_time = now() where eco_id = $1 and number = $2 and closed_time is null",
        eco_id.as_str(),
        number,
    )
    .execute(db)
    .await?;
    Ok(())
}
