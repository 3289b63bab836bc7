//! `eco_identities` with `eco_subscriptions`: always read together, written together at creation.

use chrono::{DateTime, Utc};
use nexus_core::{id::EcoId, money::Micros, plan::Plan};
use sqlx::PgConnection;
use uuid::Uuid;

use super::unknown_word;
use crate::domain::account::{Account, NewAccount};

struct Row {
    eco_id: String,
    email: Option<String>,
    closed_time: Option<DateTime<Utc>>,
    plan: String,
    status: String,
    stripe_customer_id: Option<String>,
    stripe_subscription_id: Option<String>,
    anchor_time: DateTime<Utc>,
    currency_code: String,
    spend_cap_micros: Option<i64>,
    created_time: DateTime<Utc>,
}

impl TryFrom<Row> for Account {
    type Error = sqlx::Error;
    fn try_from(row: Row) -> Result<Self, sqlx::Error> {
        Ok(Self {
            plan: row.plan.parse().map_err(unknown_word)?,
            subscription_status: row.status.parse().map_err(unknown_word)?,
            eco_id: row.eco_id,
            email: row.email,
            closed_time: row.closed_time,
            stripe_customer_id: row.stripe_customer_id,
            stripe_subscription_id: row.stripe_subscription_id,
            anchor_time: row.anchor_time,
            currency_code: row.currency_code,
            spend_cap: row.spend_cap_micros.map(Micros),
            created_time: row.created_time,
        })
    }
}

/// Writes the account and its subscription, to the given version of its plan.
#[tracing::instrument(name = "db.eco_identities.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert(db: &mut PgConnection, new: &NewAccount, plan_version: i32) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into eco_identities (eco_id, email, currency_code, stripe_customer_id, create_request_id)
         values ($1, $2, $3, $4, $5)",
        new.eco_id.as_str(),
        new.email,
        new.currency.as_str(),
        new.stripe_customer_id,
        new.request_id,
    )
    .execute(&mut *db)
    .await?;
    sqlx::query!(
        "insert into eco_subscriptions (eco_id, plan, plan_version, status, anchor_time, stripe_subscription_id)
         values ($1, $2, $3, 'active', coalesce($4, now()), $5)",
        new.eco_id.as_str(),
        new.plan.as_str(),
        plan_version,
        new.anchor_time,
        new.stripe_subscription_id,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// An account, with the subscription it has or had last.
#[tracing::instrument(name = "db.eco_identities.get", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn get(db: &mut PgConnection, eco_id: &str) -> sqlx::Result<Option<Account>> {
    sqlx::query_as!(
        Row,
        r#"select i.eco_id, i.email, i.closed_time,
                case when s.next_plan_time <= now() then s.next_plan else s.plan end as "plan!", s.status,
                i.stripe_customer_id,
                s.stripe_subscription_id, s.anchor_time, i.currency_code, i.spend_cap_micros, i.created_time
         from eco_identities i
         join eco_subscriptions s on s.eco_id = i.eco_id
         where i.eco_id = $1
         order by s.ended_time desc nulls first, s.subscription_id desc
         limit 1"#,
        eco_id,
    )
    .fetch_optional(db)
    .await?
    .map(Account::try_from)
    .transpose()
}

/// Keeps others from changing the account until the transaction ends; whoever reads it, or writes what refers to it,
/// does not wait.
#[tracing::instrument(name = "db.eco_identities.lock", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn lock(db: &mut PgConnection, eco_id: &EcoId) -> sqlx::Result<()> {
    sqlx::query!("select from eco_identities where eco_id = $1 for no key update", eco_id.as_str())
        .execute(db)
        .await?;
    Ok(())
}

/// Sets what the account's overage may cost in a period; `None`: there is no cap.
#[tracing::instrument(name = "db.eco_identities.set_spend_cap", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn set_spend_cap(db: &mut PgConnection, eco_id: &EcoId, cap: Option<Micros>) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_identities set spend_cap_micros = $2, spend_cap_epoch = spend_cap_epoch + 1
         where eco_id = $1 and spend_cap_micros is distinct from $2",
        eco_id.as_str(),
        cap.map(|cap| cap.0),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Has the units that the account's spend cap allows computed anew: nothing is granted by those of before. To be called
/// whether there is a cap or not, as one may be set meanwhile.
#[tracing::instrument(name = "db.eco_identities.renew_spend_cap", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn renew_spend_cap(db: &mut PgConnection, eco_id: &EcoId) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_identities set spend_cap_epoch = spend_cap_epoch + 1 where eco_id = $1",
        eco_id.as_str(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The account's spend cap, and whether this version of its plan refuses overage by itself.
#[tracing::instrument(name = "db.eco_identities.spend_cap", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn spend_cap(
    db: &mut PgConnection,
    eco_id: &str,
    plan: Plan,
    plan_version: i32,
) -> sqlx::Result<Option<(Micros, bool)>> {
    let row = sqlx::query!(
        r#"select i.spend_cap_micros as "cap!", p.hard_limit from eco_identities i, eco_plans p
           where i.eco_id = $1 and i.spend_cap_micros is not null and p.plan = $2 and p.version = $3"#,
        eco_id,
        plan.as_str(),
        plan_version,
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| (Micros(row.cap), row.hard_limit)))
}

/// The account that was created by a request.
#[tracing::instrument(name = "db.eco_identities.find_by_request", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn find_by_request(db: &mut PgConnection, request_id: Uuid) -> sqlx::Result<Option<Account>> {
    let eco_id =
        sqlx::query_scalar!("select eco_id from eco_identities where create_request_id = $1", request_id,)
            .fetch_optional(&mut *db)
            .await?;
    match eco_id {
        Some(eco_id) => get(db, &eco_id).await,
        None => Ok(None),
    }
}

/// Accounts, newest first, after a place in that order.
#[tracing::instrument(name = "db.eco_identities.list", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn list(
    db: &mut PgConnection,
    plan: Option<Plan>,
    after: Option<&(DateTime<Utc>, String)>,
    limit: i64,
) -> sqlx::Result<Vec<Account>> {
    sqlx::query_as!(
        Row,
        r#"select i.eco_id, i.email, i.closed_time,
                case when s.next_plan_time <= now() then s.next_plan else s.plan end as "plan!", s.status,
                i.stripe_customer_id,
                s.stripe_subscription_id, s.anchor_time, i.currency_code, i.spend_cap_micros, i.created_time
         from eco_identities i
         join lateral (select * from eco_subscriptions s where s.eco_id = i.eco_id
                       order by s.ended_time desc nulls first, s.subscription_id desc limit 1) s on true
         where ($1::text is null or case when s.next_plan_time <= now() then s.next_plan else s.plan end = $1)
           and ($2::timestamptz is null
                or (i.created_time <= $2 and (i.created_time < $2 or i.eco_id > $3)))
         order by i.created_time desc, i.eco_id
         limit $4"#,
        plan.map(Plan::as_str),
        after.map(|(time, _)| *time),
        after.map(|(_, eco_id)| eco_id.as_str()),
        limit,
    )
    .fetch_all(db)
    .await?
    .into_iter()
    .map(Account::try_from)
    .collect()
}

/// Gives an account a customer at Stripe, if it has none; false: it has one.
#[tracing::instrument(name = "db.eco_identities.set_customer", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn set_customer(db: &mut PgConnection, eco_id: &EcoId, customer: &str) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update eco_identities set stripe_customer_id = $2 where eco_id = $1 and stripe_customer_id is null",
        eco_id.as_str(),
        customer,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Closes an account.
#[tracing::instrument(name = "db.eco_identities.close", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn close(db: &mut PgConnection, eco_id: &EcoId, at: DateTime<Utc>) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_identities set status = 'closed', closed_time = $2 where eco_id = $1 and closed_time is null",
        eco_id.as_str(),
        at,
    )
    .execute(db)
    .await?;
    Ok(())
}
