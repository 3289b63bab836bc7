//! Where an account stands in its current period: subscription, plan and price, counters, corrections and closed segments,
//! in one statement and so at one instant. Tables of usage-svc and billing-svc, read only.

use nexus_core::{
    id::EcoId,
    money::{Micros, UnitPrice},
    period::Period,
    plan::SubscriptionStatus,
};
use sqlx::PgConnection;

use super::parse;
use crate::domain::forecast::Standing;

/// Nothing: the account has no subscription any more, or there is no such account. A subscription that does not grant its
/// plan has the limits of the newest free one, and nothing beyond them is billed.
#[tracing::instrument(
    name = "db.eco_subscriptions.standing",
    skip_all,
    err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn read(connection: &mut PgConnection, eco_id: &EcoId) -> sqlx::Result<Option<Standing>> {
    let row = sqlx::query!(
        r#"with account as (
               select i.eco_id, i.currency_code, i.spend_cap_micros, s.status,
                      case when s.next_plan_time <= now() then s.next_plan else s.plan end as plan,
                      case when s.next_plan_time <= now() then s.next_plan_version else s.plan_version end
                          as plan_version,
                      nexus_period_start(s.anchor_time, now()) as period_start,
                      nexus_period_end(s.anchor_time, now()) as period_end
               from eco_identities i join eco_subscriptions s on s.eco_id = i.eco_id and s.ended_time is null
               where i.eco_id = $1 and i.status = 'active'
           ), free as (
               select included_units, hard_limit from eco_plans
               where plan = 'free' order by version desc limit 1
           )
           select now() as "now!", a.status as "status!", a.currency_code as "currency_code!", a.spend_cap_micros,
                  p.included_units, p.hard_limit, f.included_units as free_included, f.hard_limit as free_hard,
                  a.period_start as "period_start!", a.period_end as "period_end!",
                  case when a.status in ('active', 'past_due') then coalesce(price.monthly_micros, 0) else 0 end
                      as "subscription_micros!",
                  coalesce(price.overage_micros, 0) as "price_micros!",
                  coalesce(price.overage_per_units, 1) as "price_per_units!",
                  coalesce(c.units, 0) as "counted!", coalesce(j.units, 0) as "adjusted!",
                  coalesce(z.recorded, 0) as "closed_recorded!", coalesce(z.overage, '{}') as "closed_overage!",
                  coalesce(z.price_micros, '{}') as "closed_price_micros!",
                  coalesce(z.price_per_units, '{}') as "closed_price_per_units!"
           from account a
           join eco_plans p on p.plan = a.plan and p.version = a.plan_version
           cross join free f
           left join eco_plan_prices price on price.plan = a.plan and price.version = a.plan_version
                                          and price.currency_code = a.currency_code
           left join lateral (select sum(u.recorded_units)::bigint as units from eco_usage_counters u
                              where u.eco_id = a.eco_id and u.period_start = a.period_start) c on true
           left join lateral (select sum(d.units)::bigint as units from eco_usage_adjustments d
                              where d.eco_id = a.eco_id and d.period_start = a.period_start) j on true
           left join lateral (select sum(g.recorded_units)::bigint as recorded,
                                     array_agg(g.overage_units) as overage,
                                     array_agg(coalesce(gp.overage_micros, 0)) as price_micros,
                                     array_agg(coalesce(gp.overage_per_units, 1)) as price_per_units
                              from eco_usage_segments g
                              left join eco_plan_prices gp on gp.plan = g.plan and gp.version = g.plan_version
                                                          and gp.currency_code = a.currency_code
                              where g.eco_id = a.eco_id and g.period_start = a.period_start
                                and g.recorded_units is not null) z on true"#,
        eco_id.as_str()
    )
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let status: SubscriptionStatus = parse(&row.status)?;
    let price = UnitPrice { micros: row.price_micros, per_units: row.price_per_units };
    let granted = (row.included_units, row.hard_limit, price, row.spend_cap_micros.map(Micros));
    let free = (row.free_included, row.free_hard, UnitPrice { micros: 0, per_units: 1 }, None);
    let (included, hard, price, spend_cap) = if status.grants_plan() { granted } else { free };
    let prices = row.closed_price_micros.into_iter().zip(row.closed_price_per_units);
    let prices = prices.map(|(micros, per_units)| UnitPrice { micros, per_units });
    Ok(Some(Standing {
        now: row.now,
        period: Period { start: row.period_start, end: row.period_end },
        recorded: row.counted + row.adjusted,
        adjusted: row.adjusted,
        included,
        hard,
        price,
        closed_recorded: row.closed_recorded,
        closed_overage: prices.zip(row.closed_overage).collect(),
        spend_cap,
        subscription: Micros(row.subscription_micros),
        currency: parse(&row.currency_code)?,
    }))
}
