//! `eco_plans` with `eco_plan_prices`.

use chrono::{DateTime, Utc};
use nexus_core::{money::Currency, plan::Plan};
use sqlx::PgConnection;

use super::{segments, subscriptions, unknown_word};
use crate::domain::plan::{NewPlanVersion, PlanPrice, PlanVersion};

/// What a new account needs to know of its plan, and the database's time.
#[derive(Debug, Clone, Copy)]
pub struct Newest {
    /// Newest version.
    pub version: i32,
    /// Whether it has prices in the currency asked for.
    pub has_currency: bool,
    /// Database time.
    pub now: DateTime<Utc>,
}

/// The newest version of a plan.
#[tracing::instrument(name = "db.eco_plans.newest", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn newest(db: &mut PgConnection, plan: Plan, currency: Currency) -> sqlx::Result<Newest> {
    sqlx::query_as!(
        Newest,
        r#"select p.version, now() as "now!",
                  exists (select from eco_plan_prices r where r.plan = p.plan and r.version = p.version
                          and r.currency_code = $2) as "has_currency!"
           from eco_plans p
           where p.plan = $1
           order by p.version desc
           limit 1"#,
        plan.as_str(),
        currency.as_str(),
    )
    .fetch_one(db)
    .await
}

struct Row {
    plan: String,
    version: i32,
    included_units: Option<i64>,
    hard_limit: bool,
    created_time: DateTime<Utc>,
    currency_code: Option<String>,
    monthly_micros: Option<i64>,
    overage_micros: Option<i64>,
    overage_per_units: Option<i64>,
}

/// Every plan with its newest version and prices, in the order of [`Plan::ALL`].
#[tracing::instrument(name = "db.eco_plans.list", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn list_newest(db: &mut PgConnection) -> sqlx::Result<Vec<PlanVersion>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select p.plan, p.version, p.included_units, p.hard_limit, p.created_time,
                  r.currency_code as "currency_code?", r.monthly_micros as "monthly_micros?",
                  r.overage_micros as "overage_micros?", r.overage_per_units as "overage_per_units?"
           from (select distinct on (plan) * from eco_plans order by plan, version desc) p
           left join eco_plan_prices r on r.plan = p.plan and r.version = p.version
           order by p.plan, r.currency_code"#
    )
    .fetch_all(db)
    .await?;
    let mut plans = versions(rows)?;
    plans.sort_by_key(|version| version.plan);
    Ok(plans)
}

/// A version of a plan.
#[tracing::instrument(name = "db.eco_plans.get", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn get(db: &mut PgConnection, plan: Plan, version: i32) -> sqlx::Result<Option<PlanVersion>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select p.plan, p.version, p.included_units, p.hard_limit, p.created_time,
                  r.currency_code as "currency_code?", r.monthly_micros as "monthly_micros?",
                  r.overage_micros as "overage_micros?", r.overage_per_units as "overage_per_units?"
           from eco_plans p
           left join eco_plan_prices r on r.plan = p.plan and r.version = p.version
           where p.plan = $1 and p.version = $2
           order by r.currency_code"#,
        plan.as_str(),
        version,
    )
    .fetch_all(db)
    .await?;
    Ok(versions(rows)?.pop())
}

/// One version of several rows, one a price.
fn versions(rows: Vec<Row>) -> sqlx::Result<Vec<PlanVersion>> {
    let mut plans: Vec<PlanVersion> = Vec::new();
    for row in rows {
        let plan: Plan = row.plan.parse().map_err(unknown_word)?;
        if plans.last().is_none_or(|last| last.plan != plan) {
            plans.push(PlanVersion {
                plan,
                version: row.version,
                included_units: row.included_units,
                hard_limit: row.hard_limit,
                created_time: row.created_time,
                prices: Vec::new(),
            });
        }
        let price = row.currency_code.zip(row.monthly_micros);
        let overage = row.overage_micros.zip(row.overage_per_units);
        if let (Some(version), Some((currency_code, monthly_micros)), Some((overage_micros, per))) =
            (plans.last_mut(), price, overage)
        {
            version.prices.push(PlanPrice {
                currency_code,
                monthly_micros,
                overage_micros,
                overage_per_units: per,
            });
        }
    }
    Ok(plans)
}

/// Has whoever makes versions come one after the other, until the transaction ends.
#[tracing::instrument(name = "db.plan_locks.lock", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn lock(db: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!("select pg_advisory_xact_lock(hashtext('nexus_plan_versions'))").execute(db).await?;
    Ok(())
}

/// Makes the next version of a plan, and returns its number.
#[tracing::instrument(name = "db.eco_plans.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert(db: &mut PgConnection, new: &NewPlanVersion) -> sqlx::Result<i32> {
    let version = sqlx::query_scalar!(
        "insert into eco_plans (plan, version, included_units, hard_limit)
         select $1, coalesce(max(version), 0) + 1, $2::bigint, $3::boolean from eco_plans where plan = $1
         returning version",
        new.plan.as_str(),
        new.included_units,
        new.hard_limit,
    )
    .fetch_one(&mut *db)
    .await?;
    for price in &new.prices {
        sqlx::query!(
            "insert into eco_plan_prices
                 (plan, version, currency_code, monthly_micros, overage_micros, overage_per_units)
             values ($1, $2, $3, $4, $5, $6)",
            new.plan.as_str(),
            version,
            price.currency_code,
            price.monthly_micros,
            price.overage_micros,
            price.overage_per_units,
        )
        .execute(&mut *db)
        .await?;
    }
    Ok(version)
}

/// Currencies of the accounts that have a plan, or get it at their period's end.
#[tracing::instrument(name = "db.eco_subscriptions.currencies", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn currencies_of_accounts(db: &mut PgConnection, plan: Plan) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        "select distinct i.currency_code from eco_subscriptions s join eco_identities i on i.eco_id = s.eco_id
         where s.ended_time is null and (s.plan = $1 or s.next_plan = $1)
         order by i.currency_code",
        plan.as_str(),
    )
    .fetch_all(db)
    .await
}

/// Ranges of accounts in which a subscription neither has the newest version of its plan nor waits for it.
#[tracing::instrument(name = "db.eco_subscriptions.ranges_behind", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn ranges_behind(db: &mut PgConnection) -> sqlx::Result<Vec<i32>> {
    sqlx::query_scalar!(
        r#"select distinct nexus_plan_range(s.eco_id) as "range!"
           from eco_subscriptions s
           join (select plan, max(version) as version from eco_plans group by plan) n on n.plan = coalesce(s.next_plan, s.plan)
           where s.ended_time is null and n.version > coalesce(s.next_plan_version, s.plan_version)
           order by 1"#
    )
    .fetch_all(db)
    .await
}

/// Keeps everybody out who counts calls of a range of accounts, until the transaction ends.
#[tracing::instrument(name = "db.plan_locks.seize_range", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn seize_range(db: &mut PgConnection, range: i32) -> sqlx::Result<()> {
    sqlx::query!("select pg_advisory_xact_lock(hashtext('nexus_plan_range'), $1)", range).execute(db).await?;
    Ok(())
}

/// Has subscriptions wait for the newest version of their plan, which comes with their next period, or of the plan that
/// they wait for: those of a range of accounts, or one. What waited and is due is applied before.
#[tracing::instrument(name = "db.eco_subscriptions.hand_out", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn hand_out(
    db: &mut PgConnection,
    range: Option<i32>,
    subscription_id: Option<i64>,
) -> sqlx::Result<()> {
    let due = sqlx::query_scalar!(
        "select s.subscription_id from eco_subscriptions s
         where s.ended_time is null and s.next_plan_time <= clock_timestamp()
           and ($1::int is null or nexus_plan_range(s.eco_id) = $1)
           and ($2::bigint is null or s.subscription_id = $2)
           and s.next_plan_version < (select max(p.version) from eco_plans p where p.plan = s.next_plan)",
        range,
        subscription_id,
    )
    .fetch_all(&mut *db)
    .await?;
    for id in due {
        segments::end_with_period(db, id).await?;
        subscriptions::apply_waiting(db, id).await?;
    }
    sqlx::query!(
        "update eco_subscriptions s
         set next_plan = n.plan, next_plan_version = n.version,
             next_plan_time = coalesce(s.next_plan_time, nexus_period_end(s.anchor_time, clock_timestamp()))
         from (select plan, max(version) as version from eco_plans group by plan) n
         where n.plan = coalesce(s.next_plan, s.plan)
           and n.version > coalesce(s.next_plan_version, s.plan_version)
           and s.ended_time is null
           and (s.next_plan_time is null or s.next_plan_time > clock_timestamp())
           and ($1::int is null or nexus_plan_range(s.eco_id) = $1)
           and ($2::bigint is null or s.subscription_id = $2)",
        range,
        subscription_id,
    )
    .execute(db)
    .await?;
    Ok(())
}
