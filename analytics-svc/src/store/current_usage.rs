//! `eco_current_usage`: the view of accounts with usage and revenue of their current period.

use chrono::{DateTime, Utc};
use nexus_core::money::Micros;
use sqlx::PgConnection;

use super::{eco_id, parse};
use crate::domain::{
    overview::{CURRENCY, PlanTotals, TopUser},
    users::{PageStart, User, UserCursor, UserFilter},
};

/// The accounts added up by plan; plans without accounts are absent.
#[tracing::instrument(
    name = "db.eco_current_usage.totals",
    skip_all,
    err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn totals(connection: &mut PgConnection) -> sqlx::Result<Vec<PlanTotals>> {
    sqlx::query!(
        r#"
        select plan as "plan!",
               count(*) as "users!",
               sum(api_calls)::bigint as "api_calls!",
               coalesce(sum(subscription_micros) filter (where currency_code = $1), 0)::bigint as "mrr!",
               coalesce(sum(overage_micros) filter (where currency_code = $1), 0)::bigint as "overage!"
        from eco_current_usage
        group by plan
        "#,
        CURRENCY.as_str()
    )
    .try_map(|row| {
        Ok(PlanTotals {
            plan: parse(&row.plan)?,
            users: row.users,
            api_calls: row.api_calls,
            mrr: Micros(row.mrr),
            overage: Micros(row.overage),
        })
    })
    .fetch_all(connection)
    .await
}

/// The accounts with the most usage, those without any left out; ties by id.
#[tracing::instrument(
    name = "db.eco_current_usage.top",
    skip_all,
    err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn top(connection: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<TopUser>> {
    sqlx::query!(
        r#"
        select eco_id as "eco_id!", api_calls as "api_calls!", plan as "plan!"
        from eco_current_usage
        where api_calls > 0
        order by api_calls desc, eco_id
        limit $1
        "#,
        limit
    )
    .try_map(|row| {
        Ok(TopUser { eco_id: eco_id(row.eco_id)?, api_calls: row.api_calls, plan: parse(&row.plan)? })
    })
    .fetch_all(connection)
    .await
}

/// Time of the transaction, by the database's clock.
#[tracing::instrument(
    name = "db.eco_current_usage.time",
    skip_all,
    err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn time(connection: &mut PgConnection) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar!(r#"select now() as "now!""#).fetch_one(connection).await
}

/// How many accounts match.
#[tracing::instrument(
    name = "db.eco_current_usage.count",
    skip_all,
    err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn count(connection: &mut PgConnection, filter: &UserFilter) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"
        select count(*) as "count!"
        from eco_current_usage
        where ($1::text is null or plan = $1)
          and ($2::text is null or status = $2)
          and (starts_with(eco_id, $3) or starts_with(lower(email), lower($3)))
        "#,
        filter.plan.map(|p| p.as_str()),
        filter.status.map(|s| s.as_str()),
        filter.prefix
    )
    .fetch_one(connection)
    .await
}

/// The accounts of one page.
#[tracing::instrument(
    name = "db.eco_current_usage.page",
    skip_all,
    err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn page(
    connection: &mut PgConnection,
    filter: &UserFilter,
    start: &PageStart,
    limit: i64,
) -> sqlx::Result<Vec<User>> {
    let (skip, after) = match start {
        PageStart::Skip(rows) => (*rows, None),
        PageStart::After(cursor) => (0, Some(cursor)),
    };
    sqlx::query!(
        r#"
        select key as "key!", eco_id as "eco_id!", email, plan as "plan!", status as "status!",
               api_calls as "api_calls!", overage_units as "overage_units!",
               overage_micros as "overage_micros!", subscription_micros as "subscription_micros!",
               currency_code as "currency_code!", created_time as "created!", last_event_time
        from (select *, case $4 when 'overage' then overage_units
                                when 'revenue' then overage_micros + subscription_micros
                                when 'created' then (extract(epoch from created_time) * 1000000)::bigint
                                else api_calls end as key
              from eco_current_usage) as keyed
        where ($1::text is null or plan = $1)
          and ($2::text is null or status = $2)
          and (starts_with(eco_id, $3) or starts_with(lower(email), lower($3)))
          and ($5::bigint is null or key < $5 or (key = $5 and eco_id > $6))
        order by key desc, eco_id
        limit $7 offset $8
        "#,
        filter.plan.map(|p| p.as_str()),
        filter.status.map(|s| s.as_str()),
        filter.prefix,
        filter.sort.as_str(),
        after.map(|c| c.key),
        after.map(|c| c.eco_id.as_str()),
        limit,
        skip
    )
    .try_map(|row| {
        Ok(User {
            cursor: UserCursor { key: row.key, eco_id: eco_id(row.eco_id)? },
            email: row.email,
            plan: parse(&row.plan)?,
            status: parse(&row.status)?,
            api_calls: row.api_calls,
            overage_units: row.overage_units,
            overage: Micros(row.overage_micros),
            subscription: Micros(row.subscription_micros),
            currency_code: row.currency_code,
            created: row.created,
            last_event: row.last_event_time,
        })
    })
    .fetch_all(connection)
    .await
}
