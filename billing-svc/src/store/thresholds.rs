//! `eco_usage_thresholds`: the percentages of each plan.

use nexus_core::plan::Plan;
use sqlx::PgConnection;

use super::unknown_word;
use crate::domain::threshold::Rules;

/// The percentages of all plans, and what the newest free plan includes.
#[tracing::instrument(name = "db.eco_usage_thresholds.rules", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn rules(db: &mut PgConnection) -> sqlx::Result<Rules> {
    let rows = sqlx::query!(
        r#"select t.plan, t.percents,
                  (select p.included_units from eco_plans p where p.plan = 'free' order by p.version desc limit 1)
                      as free_included
           from eco_usage_thresholds t"#
    )
    .fetch_all(db)
    .await?;
    let mut rules = Rules::default();
    for row in rows {
        rules.free_included = row.free_included;
        rules.percents.insert(row.plan.parse().map_err(unknown_word)?, row.percents);
    }
    Ok(rules)
}

/// Sets the percentages of a plan, ascending.
#[tracing::instrument(name = "db.eco_usage_thresholds.set", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn set(db: &mut PgConnection, plan: Plan, percents: &[i32]) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into eco_usage_thresholds (plan, percents) values ($1, $2)
         on conflict (plan) do update set percents = excluded.percents, updated_time = now()",
        plan.as_str(),
        percents,
    )
    .execute(db)
    .await?;
    Ok(())
}
