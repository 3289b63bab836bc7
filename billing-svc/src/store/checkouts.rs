//! `eco_checkouts`: checkouts that were opened for accounts; at most one of an account is open.

use nexus_core::{id::EcoId, plan::Plan};
use sqlx::{PgConnection, types::Json};

use super::unknown_word;
use crate::domain::{
    charge::KEY_LIFE,
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

/// Writes a checkout down; it ends with its key. False: another one of the account is open.
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
