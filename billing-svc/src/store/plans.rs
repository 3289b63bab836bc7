//! `eco_plans` with `eco_plan_prices`.

use chrono::{DateTime, Utc};
use nexus_core::{money::Currency, plan::Plan};
use sqlx::PgConnection;

use super::unknown_word;
use crate::domain::plan::{PlanPrice, PlanVersion};

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

/// Every plan with its newest version and prices, in the order of [`Plan::ALL`].
#[tracing::instrument(name = "db.eco_plans.list", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn list_newest(db: &mut PgConnection) -> sqlx::Result<Vec<PlanVersion>> {
    let rows = sqlx::query!(
        r#"select p.plan, p.version, p.included_units, p.hard_limit, p.created_time,
                  r.currency_code as "currency_code?", r.monthly_micros as "monthly_micros?",
                  r.overage_micros as "overage_micros?", r.overage_per_units as "overage_per_units?"
           from (select distinct on (plan) * from eco_plans order by plan, version desc) p
           left join eco_plan_prices r on r.plan = p.plan and r.version = p.version
           order by p.plan, r.currency_code"#
    )
    .fetch_all(db)
    .await?;
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
    plans.sort_by_key(|version| version.plan);
    Ok(plans)
}
