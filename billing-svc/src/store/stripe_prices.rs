//! `eco_stripe_prices`: which plan a price at Stripe is of.

use std::collections::HashMap;

use nexus_core::plan::Plan;
use sqlx::PgConnection;

use super::unknown_word;
use crate::domain::{stripe_objects::Price, stripe_subscription::PricedPlan};

/// The plan of the first price that is of one; a price's id goes before its lookup key.
#[tracing::instrument(name = "db.eco_stripe_prices.find", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn find(db: &mut PgConnection, prices: &[Price]) -> sqlx::Result<Option<PricedPlan>> {
    let names: Vec<&str> = prices
        .iter()
        .flat_map(|price| [Some(price.id.as_str()), price.lookup_key.as_deref()])
        .flatten()
        .collect();
    let row = sqlx::query!(
        "select p.plan, p.plan_version
         from unnest($1::text[]) with ordinality as n (name, position)
         join eco_stripe_prices p on p.stripe_price = n.name
         order by n.position
         limit 1",
        &names as &[&str],
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| Ok(PricedPlan { plan: row.plan.parse().map_err(unknown_word)?, version: row.plan_version }))
        .transpose()
}

/// The plan that each name of a price is of.
#[tracing::instrument(name = "db.eco_stripe_prices.all", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn all(db: &mut PgConnection) -> sqlx::Result<HashMap<String, PricedPlan>> {
    let rows =
        sqlx::query!("select stripe_price, plan, plan_version from eco_stripe_prices").fetch_all(db).await?;
    rows.into_iter()
        .map(|row| {
            let plan = row.plan.parse().map_err(unknown_word)?;
            Ok((row.stripe_price, PricedPlan { plan, version: row.plan_version }))
        })
        .collect()
}

/// Names of the prices that a plan is sold at: those of its newest version, or of none.
#[tracing::instrument(name = "db.eco_stripe_prices.names", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn names(db: &mut PgConnection, plan: Plan) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        "select stripe_price from eco_stripe_prices
         where plan = $1
           and (plan_version is null or plan_version = (select max(version) from eco_plans where plan = $1))
         order by plan_version desc nulls last, stripe_price",
        plan.as_str(),
    )
    .fetch_all(db)
    .await
}
