//! Everything that decides about overage, read across tables in one statement and so at one instant:
//! counters, subscription, plan and price, summary, ledger.

use chrono::{DateTime, Utc};
use nexus_core::{
    money::{Micros, UnitPrice},
    period::Period,
};
use sqlx::PgConnection;

use super::unknown_word;
use crate::domain::{
    overage::{Facts, Ledger, Overage, Price},
    period::{ParkReason, PeriodKey},
};

struct Row {
    eco_id: String,
    period_start: DateTime<Utc>,
    period_end: DateTime<Utc>,
    plan: String,
    plan_version: i32,
    status: String,
    currency_code: String,
    included_units: Option<i64>,
    price_micros: Option<i64>,
    price_per_units: Option<i64>,
    segment_units: Vec<i64>,
    last_event_time: Option<DateTime<Utc>>,
    summary_units: Option<i64>,
    summary_micros: Option<i64>,
    parked_reason: Option<String>,
    stripe_customer_id: Option<String>,
    stripe_subscription_id: Option<String>,
    billed_micros: i64,
    billed_units: i64,
    last_sequence: i32,
    pending: bool,
    now: DateTime<Utc>,
}

/// The facts of these periods; periods of unknown accounts are left out. A period that has ended keeps the
/// plan its summary was made with; else it is the subscription's.
#[tracing::instrument(name = "db.eco_usage_counters.facts", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn read(db: &mut PgConnection, keys: &[PeriodKey]) -> sqlx::Result<Vec<Facts>> {
    let (eco_ids, starts): (Vec<&str>, Vec<DateTime<Utc>>) =
        keys.iter().map(|key| (key.eco_id.as_str(), key.start)).unzip();
    sqlx::query_as!(
        Row,
        r#"select k.eco_id as "eco_id!", k.period_start as "period_start!",
                  coalesce(r.period_end, nexus_period_end(s.anchor_time, k.period_start)) as "period_end!",
                  t.plan as "plan!", t.plan_version as "plan_version!", s.status as "status!",
                  coalesce(r.currency_code, i.currency_code) as "currency_code!", p.included_units,
                  pr.overage_micros as "price_micros?", pr.overage_per_units as "price_per_units?",
                  coalesce(c.segment_units, '{}') as "segment_units!", c.last_event_time,
                  r.overage_units as "summary_units?", r.overage_micros as "summary_micros?",
                  r.parked_reason as "parked_reason?",
                  i.stripe_customer_id, s.stripe_subscription_id as "stripe_subscription_id?",
                  coalesce(l.billed_micros, 0) as "billed_micros!", coalesce(l.billed_units, 0) as "billed_units!",
                  coalesce(l.last_sequence, 0) as "last_sequence!", coalesce(l.pending, false) as "pending!",
                  now() as "now!"
           from unnest($1::text[], $2::timestamptz[]) as k (eco_id, period_start)
           join eco_identities i on i.eco_id = k.eco_id
           cross join lateral (
               select s.* from eco_subscriptions s where s.eco_id = k.eco_id
               order by s.ended_time desc nulls first, s.subscription_id desc limit 1) s
           left join eco_usage_records r on r.eco_id = k.eco_id and r.period_start = k.period_start
           cross join lateral (
               select case when r.period_end <= now() then r.plan else s.plan end as plan,
                      case when r.period_end <= now() then r.plan_version else s.plan_version end as plan_version) t
           join eco_plans p on p.plan = t.plan and p.version = t.plan_version
           left join eco_plan_prices pr on pr.plan = t.plan and pr.version = t.plan_version
               and pr.currency_code = coalesce(r.currency_code, i.currency_code)
           left join lateral (
               select array_agg(g.units order by g.segment) as segment_units, max(g.last) as last_event_time
               from (select u.segment, sum(u.recorded_units)::bigint as units,
                            max(u.last_event_time) filter (where u.recorded_units > 0) as last
                     from eco_usage_counters u
                     where u.eco_id = k.eco_id and u.period_start = k.period_start
                     group by u.segment) g) c on true
           left join lateral (
               select sum(h.amount_micros) filter (where h.status in ('pending', 'succeeded'))::bigint as billed_micros,
                      (array_agg(h.units_to order by h.sequence desc)
                           filter (where h.status in ('pending', 'succeeded')))[1] as billed_units,
                      max(h.sequence) as last_sequence, bool_or(h.status = 'pending') as pending
               from eco_overage_charges h
               where h.eco_id = k.eco_id and h.period_start = k.period_start) l on true
           order by 1, 2"#,
        &eco_ids as &[&str],
        &starts,
    )
    .fetch_all(db)
    .await?
    .into_iter()
    .map(Facts::try_from)
    .collect()
}

/// The current period of an account, by database time.
#[tracing::instrument(name = "db.eco_subscriptions.current_period", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn current_period(db: &mut PgConnection, eco_id: &str) -> sqlx::Result<Option<PeriodKey>> {
    let start = sqlx::query_scalar!(
        r#"select nexus_period_start(anchor_time, now()) as "start!"
           from eco_subscriptions
           where eco_id = $1
           order by ended_time desc nulls first, subscription_id desc
           limit 1"#,
        eco_id,
    )
    .fetch_optional(db)
    .await?;
    Ok(start.map(|start| PeriodKey { eco_id: eco_id.to_owned(), start }))
}

impl TryFrom<Row> for Facts {
    type Error = sqlx::Error;
    fn try_from(row: Row) -> Result<Self, sqlx::Error> {
        let price = match row.price_micros.zip(row.price_per_units) {
            Some((micros, per_units)) => Price::Is(UnitPrice { micros, per_units }),
            None => Price::NoneInCurrency,
        };
        let summary = row.summary_units.zip(row.summary_micros);
        Ok(Self {
            plan: row.plan.parse().map_err(unknown_word)?,
            status: row.status.parse().map_err(unknown_word)?,
            currency: row.currency_code.parse().map_err(unknown_word)?,
            eco_id: row.eco_id,
            period: Period { start: row.period_start, end: row.period_end },
            plan_version: row.plan_version,
            included: row.included_units,
            price,
            segment_units: row.segment_units,
            last_event_time: row.last_event_time,
            summary: summary.map(|(units, micros)| Overage { units, exact: Micros(micros) }),
            parked: row.parked_reason.map(ParkReason::from),
            stripe_customer_id: row.stripe_customer_id,
            stripe_subscription_id: row.stripe_subscription_id,
            ledger: Ledger {
                billed: Micros(row.billed_micros),
                units: row.billed_units,
                last_sequence: row.last_sequence,
                pending: row.pending,
            },
            now: row.now,
        })
    }
}
