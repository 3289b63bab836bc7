//! `eco_sale_requests`: what requests about subscriptions at Stripe led to, for repeats.

use nexus_core::id::EcoId;
use serde::Serialize;
use serde_json::Value;
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use crate::domain::{of_a_day::OfADay, sale::Asked};

/// A request that came before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// What it was for.
    pub asked: Asked,
    /// The change that was written down for it, if anything was to be changed.
    pub change_id: Option<i64>,
    /// What it was answered, if that is known.
    pub answer: Option<Value>,
}

/// A request that came before.
#[tracing::instrument(name = "db.eco_sale_requests.get", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn get(db: &mut PgConnection, eco_id: &EcoId, request_id: Uuid) -> sqlx::Result<Option<Kept>> {
    let row = sqlx::query!(
        r#"select asked as "asked: Json<Asked>", change_id, answer
           from eco_sale_requests where eco_id = $1 and request_id = $2"#,
        eco_id.as_str(),
        request_id,
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| Kept { asked: row.asked.0, change_id: row.change_id, answer: row.answer }))
}

/// Keeps a request with the change that is written down for it; false: it came before.
#[tracing::instrument(name = "db.eco_sale_requests.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert(
    db: &mut PgConnection,
    eco_id: &EcoId,
    request_id: Uuid,
    asked: Asked,
    change_id: Option<i64>,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "insert into eco_sale_requests (eco_id, request_id, asked, change_id) values ($1, $2, $3, $4)
         on conflict do nothing",
        eco_id.as_str(),
        request_id,
        Json(asked) as _,
        change_id,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The requests of an account that are kept since less than 24 hours.
#[tracing::instrument(name = "db.eco_sale_requests.of_a_day", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn of_a_day(db: &mut PgConnection, eco_id: &EcoId) -> sqlx::Result<OfADay> {
    sqlx::query_as!(
        OfADay,
        r#"select count(*) as "count!",
                  coalesce(extract(epoch from min(created_time) + interval '24 hours' - now()) * 1000, 0)::bigint
                      as "oldest_leaves_in_ms!"
           from eco_sale_requests where eco_id = $1 and created_time > now() - interval '24 hours'"#,
        eco_id.as_str(),
    )
    .fetch_one(db)
    .await
}

/// Keeps the answer of a request, if none is kept.
#[tracing::instrument(name = "db.eco_sale_requests.answer", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn answer(
    db: &mut PgConnection,
    eco_id: &EcoId,
    request_id: Uuid,
    answer: &(impl Serialize + Sync),
) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_sale_requests set answer = $3 where eco_id = $1 and request_id = $2 and answer is null",
        eco_id.as_str(),
        request_id,
        Json(answer) as _,
    )
    .execute(db)
    .await?;
    Ok(())
}
