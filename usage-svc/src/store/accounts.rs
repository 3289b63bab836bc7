//! `eco_identities` with `eco_subscriptions` and the plans: billing-svc's tables, read only.

use std::{collections::HashMap, str::FromStr};

use chrono::{DateTime, Utc};
use nexus_core::{
    id::EcoId,
    money::{Micros, UnitPrice},
    period::Period,
    plan::{Plan, SubscriptionStatus},
    quota::{Consumption, Limit},
    spend_cap::{self, OpenSegment},
};
use sqlx::PgConnection;

use crate::domain::{
    judge::Account,
    quota::{ClosedSegments, Outlook, Standing, Terms},
};

/// The accounts that exist of these, as recording needs them. A closed account's last subscription holds
/// its anchor; one that was over before it was heard of was never in force. Which segments are open holds for as long as
/// the accounts' plans are held (see [`super::plan_locks`]).
#[tracing::instrument(name = "db.eco_identities.select", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn for_recording(
    connection: &mut PgConnection,
    ids: &[&str],
) -> sqlx::Result<HashMap<EcoId, Account>> {
    let rows = sqlx::query!(
        // Row by row from the ids, so that the cost is that of these accounts, however many there are. Nothing is
        // counted in a period that began longer ago.
        r#"select i.eco_id, i.closed_time, s.anchors as "anchors!", s.ends as "ends!: Vec<Option<DateTime<Utc>>>",
                  z.closed_segments as "closed_segments!"
           from unnest($1::text[]) as k (eco_id) join eco_identities i using (eco_id)
           cross join lateral (select array_agg(anchor_time order by ended_time, subscription_id) as anchors,
                                      array_agg(ended_time order by ended_time, subscription_id) as ends
                               from eco_subscriptions
                               where eco_id = i.eco_id
                                 and (ended_time is null or started_time < ended_time)
                               having count(*) > 0) s
           cross join lateral (select coalesce(array_agg(period_start), '{}') as closed_segments
                               from eco_usage_segments
                               where eco_id = i.eco_id and recorded_units is not null
                                 and period_start > now() - interval '40 days') z"#,
        ids as &[&str],
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let id = EcoId::parse(&row.eco_id).map_err(decode)?;
            let (anchor, before) = row.anchors.split_last().ok_or(sqlx::Error::RowNotFound)?;
            let former =
                before.iter().zip(row.ends).filter_map(|(anchor, end)| Some((*anchor, end?))).collect();
            let (anchor, closed) = (*anchor, row.closed_time);
            Ok((id, Account { anchor, closed, former, closed_segments: row.closed_segments }))
        })
        .collect()
}

/// Whether the account exists, and if so, whether it is closed.
#[tracing::instrument(name = "db.eco_identities.select", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn is_closed(connection: &mut PgConnection, eco_id: &EcoId) -> sqlx::Result<Option<bool>> {
    sqlx::query_scalar!(
        r#"select status = 'closed' as "closed!" from eco_identities where eco_id = $1"#,
        eco_id.as_str()
    )
    .fetch_optional(connection)
    .await
}

/// Where the account stands in the period that contains the database's now; `None`: unknown. What is forfeited,
/// the leases tell: here it is 0.
#[tracing::instrument(name = "db.eco_identities.standing", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn standing(connection: &mut PgConnection, eco_id: &EcoId) -> sqlx::Result<Option<Standing>> {
    // The newest free plan has the limits of a subscription that does not grant its own plan.
    let row = sqlx::query!(
        r#"with account as (
               select i.eco_id, i.closed_time, i.currency_code, i.spend_cap_micros,
                      s.plan_epoch + i.spend_cap_epoch as epoch, s.status, s.anchor_time,
                      case when s.next_plan_time <= now() then s.next_plan else s.plan end as plan,
                      case when s.next_plan_time <= now() then s.next_plan_version else s.plan_version end
                          as plan_version,
                      case when s.next_plan_time > now() then s.next_plan end as next_plan,
                      s.next_plan_version, s.next_plan_time,
                      nexus_period_start(s.anchor_time, now()) as period_start,
                      nexus_period_end(s.anchor_time, now()) as period_end
               from eco_identities i join eco_subscriptions s using (eco_id)
               where i.eco_id = $1
               order by s.ended_time desc nulls first, s.subscription_id desc
               limit 1
           ), free as (
               select included_units, hard_limit from eco_plans
               where plan = 'free' order by version desc limit 1
           )
           select now() as "now!", a.closed_time is not null as "closed!", a.plan as "plan!", a.epoch as "epoch!", a.status,
                  p.included_units, p.hard_limit, a.spend_cap_micros,
                  price.overage_micros as "price_micros?", price.overage_per_units as "price_per_units?",
                  free.included_units as free_included, free.hard_limit as free_hard,
                  a.next_plan, a.next_plan_time, next.included_units as next_included, next.hard_limit as "next_hard?",
                  coalesce(next_price.overage_micros, 0) > 0 as "next_priced!",
                  a.anchor_time, a.period_start as "period_start!", a.period_end as "period_end!",
                  coalesce(c.recorded, 0) as "counted!", coalesce(j.units, 0) as "adjusted!",
                  coalesce(c.unadmitted, 0) as "unadmitted!",
                  coalesce(z.recorded, 0) as "closed_recorded!", coalesce(z.overage, '{}') as "closed_overage!",
                  coalesce(z.price_micros, '{}') as "closed_price_micros!: Vec<Option<i64>>",
                  coalesce(z.price_per_units, '{}') as "closed_price_per_units!: Vec<Option<i64>>",
                  coalesce(q.granted_units, 0) as "granted!", coalesce(q.returned_units, 0) as "returned!"
           from account a
           join eco_plans p on p.plan = a.plan and p.version = a.plan_version
           cross join free
           left join eco_plan_prices price on price.plan = a.plan and price.version = a.plan_version
                                          and price.currency_code = a.currency_code
           left join eco_plans next on next.plan = a.next_plan and next.version = a.next_plan_version
           left join eco_plan_prices next_price on next_price.plan = a.next_plan
                                               and next_price.version = a.next_plan_version
                                               and next_price.currency_code = a.currency_code
           left join eco_quota_usage q on q.eco_id = a.eco_id and q.period_start = a.period_start
           left join lateral (select sum(recorded_units)::bigint as recorded,
                                     sum(unadmitted_units)::bigint as unadmitted
                              from eco_usage_counters u
                              where u.eco_id = a.eco_id and u.period_start = a.period_start) c on true
           left join lateral (select sum(d.units)::bigint as units from eco_usage_adjustments d
                              where d.eco_id = a.eco_id and d.period_start = a.period_start) j on true
           left join lateral (select sum(g.recorded_units)::bigint as recorded,
                                     array_agg(g.overage_units) as overage,
                                     array_agg(gp.overage_micros) as price_micros,
                                     array_agg(gp.overage_per_units) as price_per_units
                              from eco_usage_segments g
                              left join eco_plan_prices gp on gp.plan = g.plan and gp.version = g.plan_version
                                                          and gp.currency_code = a.currency_code
                              where g.eco_id = a.eco_id and g.period_start = a.period_start
                                and g.recorded_units is not null) z on true"#,
        eco_id.as_str(),
    )
    .fetch_optional(connection)
    .await?;
    row.map(|row| {
        let plan = Plan::from_str(&row.plan).map_err(decode)?;
        let status = SubscriptionStatus::from_str(&row.status).map_err(decode)?;
        let epoch = row.epoch;
        let price = unit_price(row.price_micros, row.price_per_units);
        let (micros, per_units) = (row.closed_price_micros, row.closed_price_per_units);
        let prices = micros.into_iter().zip(per_units).map(|(micros, per)| unit_price(micros, per));
        let overage: Vec<(UnitPrice, i64)> = prices.zip(row.closed_overage).collect();
        let open = OpenSegment { included: row.included_units, start_count: row.closed_recorded, price };
        let free = (row.free_included, row.free_hard);
        let of_plan = |plan, (included, hard), priced, capped| {
            terms_of(status, Terms { plan, included, hard, priced, capped, epoch }, free)
        };
        let capped = row
            .spend_cap_micros
            .and_then(|cap| spend_cap::limit(Micros(cap), &overage, &open))
            .map(|limit| spend_cap::admitted(limit, row.adjusted));
        let terms = of_plan(plan, (row.included_units, row.hard_limit), price.micros > 0, capped);
        let next = match (row.next_plan, row.next_plan_time, row.next_hard) {
            (Some(plan), Some(from), Some(hard)) => {
                let plan = Plan::from_str(&plan).map_err(decode)?;
                let (included, priced) = (row.next_included, row.next_priced);
                let capped = capped_at_least(row.spend_cap_micros, included, priced);
                Some((from, of_plan(plan, (included, hard), priced, capped)))
            }
            _ => None,
        };
        Ok(Standing {
            now: row.now,
            closed: row.closed,
            terms,
            next,
            anchor: row.anchor_time,
            period: Period { start: row.period_start, end: row.period_end },
            recorded: row.counted + row.adjusted,
            closed_segments: ClosedSegments {
                recorded: row.closed_recorded,
                overage: overage.iter().map(|(_, units)| units).sum(),
            },
            consumption: Consumption {
                granted: row.granted,
                returned: row.returned,
                unadmitted: row.unadmitted,
            },
            forfeited: 0,
        })
    })
    .transpose()
}

/// The terms of these accounts, as far as they exist, and as far as they say who is limited: of what a spend cap allows
/// the least.
#[tracing::instrument(name = "db.eco_subscriptions.select", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn terms(connection: &mut PgConnection, ids: &[&str]) -> sqlx::Result<HashMap<EcoId, Outlook>> {
    // Of each account first the plan that is recorded, then one that is to follow, if there is any.
    let rows = sqlx::query!(
        r#"with free as (
               select included_units, hard_limit from eco_plans
               where plan = 'free' order by version desc limit 1
           )
           select i.eco_id, s.plan_epoch + i.spend_cap_epoch as "epoch!", s.status as "status!", i.spend_cap_micros,
                  t.plan as "plan!", t.from_time, p.included_units, p.hard_limit,
                  coalesce(price.overage_micros, 0) > 0 as "priced!",
                  free.included_units as free_included, free.hard_limit as free_hard
           from unnest($1::text[]) as k (eco_id) join eco_identities i using (eco_id)
           cross join lateral (
               select * from eco_subscriptions
               where eco_id = i.eco_id
               order by ended_time desc nulls first, subscription_id desc limit 1) s
           cross join lateral (values (s.plan, s.plan_version, null), (s.next_plan, s.next_plan_version, s.next_plan_time))
               as t (plan, version, from_time)
           join eco_plans p on p.plan = t.plan and p.version = t.version
           cross join free
           left join eco_plan_prices price on price.plan = t.plan and price.version = t.version
                                          and price.currency_code = i.currency_code
           order by t.from_time nulls first"#,
        ids as &[&str],
    )
    .fetch_all(connection)
    .await?;
    let mut outlooks = HashMap::<EcoId, Outlook>::new();
    for row in rows {
        let plan = Plan::from_str(&row.plan).map_err(decode)?;
        let status = SubscriptionStatus::from_str(&row.status).map_err(decode)?;
        let (included, hard, priced, epoch) = (row.included_units, row.hard_limit, row.priced, row.epoch);
        let capped = capped_at_least(row.spend_cap_micros, included, priced);
        let terms = Terms { plan, included, hard, priced, capped, epoch };
        let terms = terms_of(status, terms, (row.free_included, row.free_hard));
        let outlook = outlooks
            .entry(EcoId::parse(&row.eco_id).map_err(decode)?)
            .or_insert(Outlook { terms, next: None });
        outlook.next = row.from_time.map(|from| (from, terms));
    }
    Ok(outlooks)
}

/// The terms of the plan, where the subscription grants it; else the limits of the newest free one, and nothing beyond
/// them is billed.
fn terms_of(status: SubscriptionStatus, of_plan: Terms, (included, hard): (Limit, bool)) -> Terms {
    if status.grants_plan() {
        of_plan
    } else {
        Terms { included, hard, priced: false, capped: None, ..of_plan }
    }
}

/// What a spend cap allows at least: the included units. How many more is not asked.
fn capped_at_least(cap_micros: Option<i64>, included: Limit, priced: bool) -> Limit {
    cap_micros.filter(|_| priced).and(included)
}

/// A price; without one in the account's currency nothing is billed.
fn unit_price(micros: Option<i64>, per_units: Option<i64>) -> UnitPrice {
    UnitPrice { micros: micros.unwrap_or(0), per_units: per_units.unwrap_or(1) }
}

fn decode(error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::Decode(Box::new(error))
}
