//! `eco_stripe_prices`: which plan a price at Stripe is of.

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
