//! `eco_accounts_now`: the view of accounts with usage and revenue of their current period; it is made of two, of rows
//! that are ready in every order and of those that are computed anew. `eco_accounts_total`: what it adds up to.

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
    name = "db.eco_accounts_total.by_plan",
    skip_all,
    err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn totals(connection: &mut PgConnection) -> sqlx::Result<Vec<PlanTotals>> {
    sqlx::query!(
        r#"
        select plan as "plan!",
               sum(users)::bigint as "users!",
               sum(api_calls)::bigint as "api_calls!",
               coalesce(sum(subscription_micros) filter (where currency_code = $1), 0)::bigint as "mrr!",
               coalesce(sum(overage_micros) filter (where currency_code = $1), 0)::bigint as "overage!"
        from eco_accounts_total
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

/// The accounts with the most usage after a place, those without any left out; ties by id.
#[tracing::instrument(
    name = "db.eco_accounts_now.top",
    skip_all,
    err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn top(
    connection: &mut PgConnection,
    after: Option<&UserCursor>,
    limit: i64,
) -> sqlx::Result<Vec<TopUser>> {
    sqlx::query!(
        r#"
        select eco_id as "eco_id!", api_calls as "api_calls!", plan as "plan!"
        from ((select eco_id, api_calls, plan from eco_figures_that_hold
               where api_calls > 0 and api_calls <= $2 and (api_calls < $2 or eco_id > $3)
               order by api_calls desc, eco_id limit $1)
              union all
              (select eco_id, api_calls, plan from eco_figures_anew
               where api_calls > 0 and api_calls <= $2 and (api_calls < $2 or eco_id > $3)
               order by api_calls desc, eco_id limit $1)) as found
        order by api_calls desc, eco_id
        limit $1
        "#,
        limit,
        after.map_or(i64::MAX, |c| c.key),
        after.map_or("", |c| c.eco_id.as_str())
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

/// How many accounts match. Without a prefix the totals say it; with one, they are counted.
#[tracing::instrument(
    name = "db.eco_accounts_now.count",
    skip_all,
    err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn count(connection: &mut PgConnection, filter: &UserFilter) -> sqlx::Result<i64> {
    let (plan, status) = (filter.plan.map(|p| p.as_str()), filter.status.map(|s| s.as_str()));
    if filter.prefix.is_empty() {
        return sqlx::query_scalar!(
            r#"
            select coalesce(sum(users), 0)::bigint as "count!"
            from eco_accounts_total
            where ($1::text is null or plan = $1) and ($2::text is null or status = $2)
            "#,
            plan,
            status
        )
        .fetch_one(connection)
        .await;
    }
    sqlx::query_scalar!(
        r#"
        select count(*) as "count!"
        from eco_accounts_now
        where ($1::text is null or plan = $1)
          and ($2::text is null or status = $2)
          and (starts_with(eco_id collate "C", $3) or starts_with(lower(email) collate "C", lower($3)))
        "#,
        plan,
        status,
        filter.prefix
    )
    .fetch_one(connection)
    .await
}

/// A page in the order of a column. First the places of its accounts, of both views no more than could be on it; then
/// what is shown of them, so that the rows that are skipped are not carried along. `$order` is from which end places are
/// counted.
macro_rules! page {
    ($column:tt, $order:tt, $prefix:tt, $filter:expr, $rows:expr, $db:expr) => {
        sqlx::query_as!(
            Row,
            r#"with place as (
                   select key, eco_id, anew
                   from ((select "# + $column + r#" as key, eco_id, false as anew from eco_figures_that_hold
                          where ($1::text is null or plan = $1) and ($2::text is null or status = $2)
                            and "# + $prefix + r#"
                            and "# + $column + r#" <= $4 and ("# + $column + r#" < $4 or eco_id > $5)
                          order by "# + $column + $order + r#" limit $6::bigint + $7::bigint)
                         union all
                         (select "# + $column + r#" as key, eco_id, true as anew from eco_figures_anew
                          where ($1::text is null or plan = $1) and ($2::text is null or status = $2)
                            and "# + $prefix + r#"
                            and "# + $column + r#" <= $4 and ("# + $column + r#" < $4 or eco_id > $5)
                          order by "# + $column + $order + r#" limit $6::bigint + $7::bigint)) as found
                   order by key"# + $order + r#"
                   limit $6 offset $7)
               select key as "key!", place.eco_id as "eco_id!", email, plan as "plan!", status as "status!",
                      api_calls as "api_calls!", overage_units as "overage_units!",
                      overage_micros as "overage_micros!", subscription_micros as "subscription_micros!",
                      currency_code as "currency_code!", created_time as "created!", last_event_time
               from place cross join lateral (
                   select h.* from eco_figures_that_hold h where not place.anew and h.eco_id = place.eco_id
                   union all
                   select a.* from eco_figures_anew a where place.anew and a.eco_id = place.eco_id) as shown
               order by key desc, place.eco_id"#,
            $filter.plan.map(|p| p.as_str()),
            $filter.status.map(|s| s.as_str()),
            $filter.prefix,
            $rows.after.map_or(i64::MAX, |c| c.key),
            $rows.after.map_or("", |c| c.eco_id.as_str()),
            $rows.limit,
            $rows.skip
        )
        .fetch_all($db)
        .await
    };
}

/// A statement of its own for each end, and for a list without a prefix, which is read in the order of its index.
macro_rules! page_by {
    ($column:tt, $filter:expr, $rows:expr, $db:expr) => {
        match ($rows.from_the_end, $filter.prefix.is_empty()) {
            (false, true) => page!($column, " desc, eco_id", "$3::text = ''", $filter, $rows, $db),
            (true, true) => page!($column, " asc, eco_id desc", "$3::text = ''", $filter, $rows, $db),
            (false, false) => page!(
                $column,
                " desc, eco_id",
                r#"(starts_with(eco_id collate "C", $3) or starts_with(lower(email) collate "C", lower($3)))"#,
                $filter,
                $rows,
                $db
            ),
            (true, false) => page!(
                $column,
                " asc, eco_id desc",
                r#"(starts_with(eco_id collate "C", $3) or starts_with(lower(email) collate "C", lower($3)))"#,
                $filter,
                $rows,
                $db
            ),
        }
    };
}

/// Which rows of the list.
struct Rows<'a> {
    after: Option<&'a UserCursor>,
    /// Counted from the last account on.
    from_the_end: bool,
    skip: i64,
    limit: i64,
}

impl<'a> Rows<'a> {
    /// From whichever end is nearer, of so many accounts in all.
    fn of(start: &'a PageStart, limit: i64, total: i64) -> Self {
        match start {
            PageStart::After(cursor) => Self { after: Some(cursor), from_the_end: false, skip: 0, limit },
            PageStart::Skip(skip) if *skip > total / 2 => {
                let limit = limit.min(total - skip).max(0);
                Self { after: None, from_the_end: true, skip: (total - skip - limit).max(0), limit }
            }
            PageStart::Skip(skip) => Self { after: None, from_the_end: false, skip: *skip, limit },
        }
    }
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

/// The accounts of one page, of a list that has `total`. A statement for each order, since each has an index of its own.
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
    total: i64,
) -> sqlx::Result<Vec<User>> {
    let rows = Rows::of(start, limit, total);
    let found = match filter.sort {
        UserSort::Usage => page_by!("api_calls", filter, rows, connection),
        UserSort::Overage => page_by!("overage_units", filter, rows, connection),
        UserSort::Revenue => page_by!("revenue_micros", filter, rows, connection),
        UserSort::Created => page_by!("created_micros", filter, rows, connection),
    };
    found?.into_iter().map(user).collect()
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
