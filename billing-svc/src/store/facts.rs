//! Everything that decides about overage, read across tables in one statement and so at one instant:
//! counters, subscription, plan and price, summary, ledger.

use chrono::{DateTime, Utc};
use nexus_core::{
    money::{Micros, UnitPrice},
    period::{Period, SETTLEMENT_GRACE},
};
use sqlx::PgConnection;

use super::unknown_word;
use crate::domain::{
    overage::{ClosedSegment, Facts, Ledger, Overage, Price, Terms},
    period::{ParkReason, PeriodKey},
};

struct Row {
    eco_id: String,
    period_start: DateTime<Utc>,
    period_end: DateTime<Utc>,
    plan: String,
    plan_version: i32,
    granted: bool,
    currency_code: String,
    included_units: Option<i64>,
    price_micros: Option<i64>,
    price_per_units: Option<i64>,
    recorded_units: i64,
    closed_plans: Vec<String>,
    closed_versions: Vec<i32>,
    closed_units: Vec<i64>,
    closed_overage: Vec<i64>,
    closed_granted: Vec<Option<bool>>,
    closed_included: Vec<Option<i64>>,
    closed_price_micros: Vec<Option<i64>>,
    closed_price_per_units: Vec<Option<i64>>,
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
    settle_time: DateTime<Utc>,
    rounded: bool,
    now: DateTime<Utc>,
}

/// The facts of these periods; periods of unknown accounts are left out. The plan of a period's open segment is
/// that in force at the period's end, as far as is known: that of the period's own segment that was closed then or
/// later, else of the account's first one that was, else the subscription's. A period that has no summary ends with
/// the subscription that was in force when it began, at the latest. Before its first change of plan, an account's
/// period that has ended keeps the plan that its summary was made with. Whether the plan is granted is what held at the
/// period's end.
#[tracing::instrument(name = "db.eco_usage_counters.facts", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn read(db: &mut PgConnection, keys: &[PeriodKey]) -> sqlx::Result<Vec<Facts>> {
    let (eco_ids, starts): (Vec<&str>, Vec<DateTime<Utc>>) =
        keys.iter().map(|key| (key.eco_id.as_str(), key.start)).unzip();
    sqlx::query_as!(
        Row,
        r#"select k.eco_id as "eco_id!", k.period_start as "period_start!",
                  e.period_end as "period_end!",
                  t.plan as "plan!", t.plan_version as "plan_version!", w.granted as "granted!",
                  e.currency_code as "currency_code!", p.included_units,
                  pr.overage_micros as "price_micros?", pr.overage_per_units as "price_per_units?",
                  coalesce(c.recorded_units, 0) + coalesce(j.units, 0) as "recorded_units!", c.last_event_time,
                  coalesce(z.plans, '{}') as "closed_plans!", coalesce(z.versions, '{}') as "closed_versions!",
                  coalesce(z.units, '{}') as "closed_units!", coalesce(z.overage, '{}') as "closed_overage!",
                  coalesce(z.granted, '{}') as "closed_granted!: Vec<Option<bool>>",
                  coalesce(z.included, '{}') as "closed_included!: Vec<Option<i64>>",
                  coalesce(z.price_micros, '{}') as "closed_price_micros!: Vec<Option<i64>>",
                  coalesce(z.price_per_units, '{}') as "closed_price_per_units!: Vec<Option<i64>>",
                  r.overage_units as "summary_units?", r.overage_micros as "summary_micros?",
                  r.parked_reason as "parked_reason?",
                  i.stripe_customer_id, case when s.ended_time is null then s.stripe_subscription_id end as "stripe_subscription_id?",
                  coalesce(l.billed_micros, 0) as "billed_micros!", coalesce(l.billed_units, 0) as "billed_units!",
                  coalesce(l.last_sequence, 0) as "last_sequence!", coalesce(l.pending, false) as "pending!",
                  coalesce(r.settle_time, e.period_end + $3::interval) as "settle_time!",
                  coalesce(r.rounded, false) as "rounded!", now() as "now!"
           from unnest($1::text[], $2::timestamptz[]) as k (eco_id, period_start)
           join eco_identities i on i.eco_id = k.eco_id
           cross join lateral (
               select s.* from eco_subscriptions s where s.eco_id = k.eco_id
               order by s.ended_time desc nulls first, s.subscription_id desc limit 1) s
           left join eco_usage_records r on r.eco_id = k.eco_id and r.period_start = k.period_start
           cross join lateral (
               select coalesce(r.period_end,
                               (select least(nexus_period_end(x.anchor_time, k.period_start), x.ended_time)
                                from eco_subscriptions x
                                where x.eco_id = k.eco_id and x.ended_time > k.period_start
                                  and x.started_time < x.ended_time
                                order by x.ended_time limit 1),
                               nexus_period_end(s.anchor_time, k.period_start)) as period_end,
                      coalesce(r.currency_code, i.currency_code) as currency_code,
                      s.plan_epoch = 0 and r.period_end <= now() as keeps_plan,
                      s.next_plan_time < coalesce(r.period_end, nexus_period_end(s.anchor_time, k.period_start))
                          as has_next) e
           cross join lateral (
               select case when e.period_end > now() then s.status in ('trialing', 'active', 'past_due')
                           else coalesce((select g.granted from eco_plan_grants g
                                          where g.eco_id = k.eco_id and g.changed_time < e.period_end
                                          order by g.changed_time desc limit 1),
                                         (select g.granted from eco_plan_grants g
                                          where g.eco_id = k.eco_id order by g.changed_time limit 1),
                                         s.status in ('trialing', 'active', 'past_due')) end as granted) w
           left join lateral (
               select g.plan, g.plan_version from eco_usage_segments g
               where g.eco_id = k.eco_id and g.closed_time >= e.period_end
               order by g.period_start <> k.period_start, g.closed_time, g.period_start, g.segment limit 1) f on true
           cross join lateral (
               select coalesce(f.plan, case when e.keeps_plan then r.plan
                                            when e.has_next then s.next_plan else s.plan end) as plan,
                      coalesce(f.plan_version, case when e.keeps_plan then r.plan_version
                                                    when e.has_next then s.next_plan_version
                                                    else s.plan_version end) as plan_version) t
           join eco_plans p on p.plan = t.plan and p.version = t.plan_version
           left join eco_plan_prices pr on pr.plan = t.plan and pr.version = t.plan_version
               and pr.currency_code = e.currency_code
           left join lateral (
               select sum(u.recorded_units)::bigint as recorded_units,
                      max(u.last_event_time) filter (where u.recorded_units > 0) as last_event_time
               from eco_usage_counters u
               where u.eco_id = k.eco_id and u.period_start = k.period_start) c on true
           left join lateral (
               select sum(a.units)::bigint as units from eco_usage_adjustments a
               where a.eco_id = k.eco_id and a.period_start = k.period_start) j on true
           left join lateral (
               select array_agg(g.plan order by g.segment) as plans,
                      array_agg(g.plan_version order by g.segment) as versions,
                      array_agg(g.recorded_units order by g.segment) as units,
                      array_agg(g.overage_units order by g.segment) as overage,
                      array_agg(g.granted order by g.segment) as granted,
                      array_agg(gp.included_units order by g.segment) as included,
                      array_agg(gr.overage_micros order by g.segment) as price_micros,
                      array_agg(gr.overage_per_units order by g.segment) as price_per_units
               from eco_usage_segments g
               join eco_plans gp on gp.plan = g.plan and gp.version = g.plan_version
               left join eco_plan_prices gr on gr.plan = g.plan and gr.version = g.plan_version
                   and gr.currency_code = e.currency_code
               where g.eco_id = k.eco_id and g.period_start = k.period_start
                 and g.recorded_units is not null) z on true
           left join lateral (
               select sum(h.amount_micros) filter (where h.status in ('pending', 'succeeded'))::bigint as billed_micros,
                      sum(h.units_to - h.units_from) filter (where h.status in ('pending', 'succeeded'))::bigint
                          as billed_units,
                      max(h.sequence) as last_sequence, bool_or(h.status = 'pending') as pending
               from eco_overage_charges h
               where h.eco_id = k.eco_id and h.period_start = k.period_start) l on true
           order by 1, 2"#,
        &eco_ids as &[&str],
        &starts,
        SETTLEMENT_GRACE as _,
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
        let closed = row.closed_segments()?;
        let summary = row.summary_units.zip(row.summary_micros);
        Ok(Self {
            plan: row.plan.parse().map_err(unknown_word)?,
            granted: row.granted,
            currency: row.currency_code.parse().map_err(unknown_word)?,
            eco_id: row.eco_id,
            period: Period { start: row.period_start, end: row.period_end },
            plan_version: row.plan_version,
            terms: terms(row.included_units, row.price_micros, row.price_per_units),
            open_units: row.recorded_units - closed.iter().map(|segment| segment.units).sum::<i64>(),
            closed,
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
            settle_time: row.settle_time,
            rounded: row.rounded,
            now: row.now,
        })
    }
}

impl Row {
    fn closed_segments(&self) -> sqlx::Result<Vec<ClosedSegment>> {
        let plans = self.closed_plans.iter().zip(&self.closed_versions);
        let prices = self.closed_price_micros.iter().zip(&self.closed_price_per_units);
        let terms = self.closed_included.iter().zip(prices).map(|(i, (m, n))| terms(*i, *m, *n));
        let units = self.closed_units.iter().zip(&self.closed_overage).zip(&self.closed_granted);
        let mut start = 0;
        plans
            .zip(units)
            .zip(terms)
            .map(|(((plan, plan_version), ((units, overage_units), granted)), terms)| {
                let mut segment = ClosedSegment {
                    plan: plan.parse().map_err(unknown_word)?,
                    plan_version: *plan_version,
                    units: *units,
                    overage_units: *overage_units,
                    terms,
                    granted: granted.unwrap_or(true),
                };
                // Where it was not kept: what has other overage than its counts accrue was not granted.
                segment.granted = granted.unwrap_or(segment.accrues(start) == *overage_units);
                start += units;
                Ok(segment)
            })
            .collect()
    }
}

fn terms(included: Option<i64>, micros: Option<i64>, per_units: Option<i64>) -> Terms {
    let price = match micros.zip(per_units) {
        Some((micros, per_units)) => Price::Is(UnitPrice { micros, per_units }),
        None => Price::NoneInCurrency,
    };
    Terms { included, price }
}
