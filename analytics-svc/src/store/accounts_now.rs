//! `eco_accounts_now`: the view of accounts with usage and revenue of their current period; it is made of two, of rows
//! that are ready in every order and of those that are computed anew.

use chrono::{DateTime, Utc};
use nexus_core::money::Micros;
use sqlx::PgConnection;

use super::{eco_id, parse};
use crate::domain::{
    overview::{CURRENCY, PlanTotals, TopUser},
    users::{PageStart, User, UserCursor, UserFilter, UserSort},
};

/// The accounts added up by plan; plans without accounts are absent.
#[tracing::instrument(
    name = "db.eco_accounts_now.totals",
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
        from eco_accounts_now
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
    name = "db.eco_accounts_now.top",
    skip_all,
    err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn top(connection: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<TopUser>> {
    sqlx::query!(
        r#"
        select eco_id as "eco_id!", api_calls as "api_calls!", plan as "plan!"
        from ((select eco_id, api_calls, plan from eco_figures_that_hold
               where api_calls > 0 order by api_calls desc, eco_id limit $1)
              union all
              (select eco_id, api_calls, plan from eco_figures_anew
               where api_calls > 0 order by api_calls desc, eco_id limit $1)) as found
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
    name = "db.eco_accounts_now.time",
    skip_all,
    err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn time(connection: &mut PgConnection) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar!(r#"select now() as "now!""#).fetch_one(connection).await
}

/// How many accounts match.
#[tracing::instrument(
    name = "db.eco_accounts_now.count",
    skip_all,
    err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn count(connection: &mut PgConnection, filter: &UserFilter) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"
        select count(*) as "count!"
        from eco_accounts_now
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

/// A page in the order of a column; of both views no more is read than could be on it.
macro_rules! page {
    ($column:tt, $filter:expr, $start:expr, $limit:expr, $db:expr) => {{
        let (skip, after) = match $start {
            PageStart::Skip(rows) => (*rows, None),
            PageStart::After(cursor) => (0, Some(cursor)),
        };
        sqlx::query_as!(
            Row,
            r#"select "#
                + $column
                + r#" as "key!", eco_id as "eco_id!", email, plan as "plan!", status as "status!",
                      api_calls as "api_calls!", overage_units as "overage_units!",
                      overage_micros as "overage_micros!", subscription_micros as "subscription_micros!",
                      currency_code as "currency_code!", created_time as "created!", last_event_time
               from ((select * from eco_figures_that_hold
                      where ($1::text is null or plan = $1) and ($2::text is null or status = $2)
                        and (starts_with(eco_id, $3) or starts_with(lower(email), lower($3)))
                        and "#
                + $column
                + r#" <= $4 and ("#
                + $column
                + r#" < $4 or eco_id > $5)
                      order by "#
                + $column
                + r#" desc, eco_id limit $6::bigint + $7::bigint)
                     union all
                     (select * from eco_figures_anew
                      where ($1::text is null or plan = $1) and ($2::text is null or status = $2)
                        and (starts_with(eco_id, $3) or starts_with(lower(email), lower($3)))
                        and "#
                + $column
                + r#" <= $4 and ("#
                + $column
                + r#" < $4 or eco_id > $5)
                      order by "#
                + $column
                + r#" desc, eco_id limit $6::bigint + $7::bigint)) as found
               order by "#
                + $column
                + r#" desc, eco_id
               limit $6 offset $7"#,
            $filter.plan.map(|p| p.as_str()),
            $filter.status.map(|s| s.as_str()),
            $filter.prefix,
            after.map_or(i64::MAX, |c| c.key),
            after.map_or("", |c| c.eco_id.as_str()),
            $limit,
            skip
        )
        .fetch_all($db)
        .await?
    }};
}

struct Row {
    key: i64,
    eco_id: String,
    email: Option<String>,
    plan: String,
    status: String,
    api_calls: i64,
    overage_units: i64,
    overage_micros: i64,
    subscription_micros: i64,
    currency_code: String,
    created: DateTime<Utc>,
    last_event_time: Option<DateTime<Utc>>,
}

/// The accounts of one page. A statement for each order, since each has an index of its own.
#[tracing::instrument(
    name = "db.eco_accounts_now.page",
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
    let rows = match filter.sort {
        UserSort::Usage => page!("api_calls", filter, start, limit, connection),
        UserSort::Overage => page!("overage_units", filter, start, limit, connection),
        UserSort::Revenue => page!("revenue_micros", filter, start, limit, connection),
        UserSort::Created => page!("created_micros", filter, start, limit, connection),
    };
    rows.into_iter().map(user).collect()
}

fn user(row: Row) -> sqlx::Result<User> {
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
}
