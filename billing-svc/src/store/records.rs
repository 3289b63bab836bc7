//! `eco_usage_records`: the summary per account and period.

use chrono::{DateTime, Utc};
use nexus_core::{id::EcoId, money::Micros, period::SETTLEMENT_GRACE, plan::Plan};
use sqlx::PgConnection;

use super::unknown_word;
use crate::domain::{
    overage::Facts,
    period::{Candidate, ParkReason, PeriodKey},
    run::AccountError,
};

/// Writes what the facts say of usage, in the order of the keys. A settled period whose count has changed
/// after all is open again.
#[tracing::instrument(name = "db.eco_usage_records.upsert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn upsert(db: &mut PgConnection, facts: &[Facts]) -> sqlx::Result<()> {
    let mut columns = Columns::default();
    for fact in facts {
        columns.push(fact);
    }
    sqlx::query!(
        "insert into eco_usage_records as r
             (eco_id, period_start, period_end, plan, plan_version, currency_code, api_calls, overage_units,
              overage_micros, last_event_time)
         select * from unnest($1::text[], $2::timestamptz[], $3::timestamptz[], $4::text[], $5::int[],
                              $6::text[], $7::bigint[], $8::bigint[], $9::bigint[], $10::timestamptz[])
             as u (eco_id, period_start, period_end, plan, plan_version, currency_code, api_calls, overage_units,
                   overage_micros, last_event_time)
         order by u.eco_id, u.period_start
         on conflict (eco_id, period_start) do update set
             plan            = excluded.plan,
             plan_version    = excluded.plan_version,
             api_calls       = excluded.api_calls,
             overage_units   = excluded.overage_units,
             overage_micros  = excluded.overage_micros,
             last_event_time = excluded.last_event_time,
             settled_time    = case when r.api_calls = excluded.api_calls then r.settled_time end
         where (r.plan, r.plan_version, r.api_calls, r.overage_units, r.overage_micros, r.last_event_time)
               is distinct from (excluded.plan, excluded.plan_version, excluded.api_calls, excluded.overage_units,
                                 excluded.overage_micros, excluded.last_event_time)",
        &columns.eco_ids,
        &columns.starts,
        &columns.ends,
        &columns.plans as &[&str],
        &columns.plan_versions,
        &columns.currencies,
        &columns.api_calls,
        &columns.overage_units,
        &columns.overage_micros,
        &columns.last_event_times as &[Option<DateTime<Utc>>],
    )
    .execute(db)
    .await?;
    Ok(())
}

#[derive(Default)]
struct Columns {
    eco_ids: Vec<String>,
    starts: Vec<DateTime<Utc>>,
    ends: Vec<DateTime<Utc>>,
    plans: Vec<&'static str>,
    plan_versions: Vec<i32>,
    currencies: Vec<String>,
    api_calls: Vec<i64>,
    overage_units: Vec<i64>,
    overage_micros: Vec<i64>,
    last_event_times: Vec<Option<DateTime<Utc>>>,
}

impl Columns {
    fn push(&mut self, facts: &Facts) {
        let overage = facts.overage_of_summary();
        self.eco_ids.push(facts.eco_id.clone());
        self.starts.push(facts.period.start);
        self.ends.push(facts.period.end);
        self.plans.push(facts.plan.as_str());
        self.plan_versions.push(facts.plan_version);
        self.currencies.push(facts.currency.to_string());
        self.api_calls.push(facts.api_calls());
        self.overage_units.push(overage.units);
        self.overage_micros.push(overage.exact.0);
        self.last_event_times.push(facts.last_event_time);
    }
}

/// Locks the row of a period until the transaction ends: who charges it has it alone.
pub async fn lock(db: &mut PgConnection, key: &PeriodKey) -> sqlx::Result<bool> {
    Ok(!lock_all(db, std::slice::from_ref(key)).await?.is_empty())
}

/// Locks the rows of periods, in the order in which they are written, too; returns those that are there.
#[tracing::instrument(name = "db.eco_usage_records.lock", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn lock_all(db: &mut PgConnection, keys: &[PeriodKey]) -> sqlx::Result<Vec<PeriodKey>> {
    let (eco_ids, starts) = columns_of(keys);
    sqlx::query_as!(
        PeriodKey,
        "select r.eco_id, r.period_start as start
         from unnest($1::text[], $2::timestamptz[]) as k (eco_id, period_start)
         join eco_usage_records r on r.eco_id = k.eco_id and r.period_start = k.period_start
         order by r.eco_id, r.period_start
         for update of r",
        &eco_ids as &[&str],
        &starts,
    )
    .fetch_all(db)
    .await
}

fn columns_of(keys: &[PeriodKey]) -> (Vec<&str>, Vec<DateTime<Utc>>) {
    keys.iter().map(|key| (key.eco_id.as_str(), key.start)).unzip()
}

/// Periods that are neither settled nor parked (a period parked for want of a customer comes back once
/// there is one, for want of a price likewise, and one that cost too much once it can be counted), or that have a charge
/// in doubt; by account and in order, after an account.
#[tracing::instrument(name = "db.eco_usage_records.candidates", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn candidates(
    db: &mut PgConnection,
    accounts: Option<&[String]>,
    after: &str,
    limit: i64,
) -> sqlx::Result<Vec<Candidate>> {
    let rows = sqlx::query!(
        r#"select r.eco_id, r.period_start, r.currency_code, r.overage_micros, r.billed_micros,
                  coalesce(r.settle_time, r.period_end + $2::interval) <= now() as "settling!", r.rounded,
                  exists (select from eco_overage_charges h where h.eco_id = r.eco_id
                          and h.period_start = r.period_start and h.status = 'pending') as "pending!",
                  r.overage_units > 0 and r.overage_micros = 0 as "unpriced!"
           from eco_usage_records r
           join eco_identities i on i.eco_id = r.eco_id
           where r.settled_time is null and r.eco_id collate "C" > $5
             and ($1::text[] is null or r.eco_id = any ($1))
             and (r.parked_reason is null
                  or exists (select from eco_overage_charges h where h.eco_id = r.eco_id
                             and h.period_start = r.period_start and h.status = 'pending')
                  or (r.parked_reason = $7 and (r.overage_micros > 0 or r.overage_units = 0))
                  or (r.parked_reason = $3 and i.stripe_customer_id is not null)
                  or (r.parked_reason = $4
                      and exists (select from eco_plan_prices p where p.plan = r.plan
                                  and p.version = r.plan_version and p.currency_code = r.currency_code)))
           order by r.eco_id collate "C", r.period_start
           limit $6"#,
        accounts as Option<&[String]>,
        SETTLEMENT_GRACE as _,
        ParkReason::NoStripeCustomer.as_str(),
        ParkReason::NoPriceInCurrency.as_str(),
        after,
        limit,
        ParkReason::AmountOutOfRange.as_str(),
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Candidate {
                currency: row.currency_code.parse().map_err(unknown_word)?,
                key: PeriodKey { eco_id: row.eco_id, start: row.period_start },
                overage: Micros(row.overage_micros),
                billed: Micros(row.billed_micros),
                pending: row.pending,
                settling: row.settling,
                rounded: row.rounded,
                unpriced: row.unpriced,
            })
        })
        .collect()
}

/// Settles every period past its settlement time in which nothing was ever owed, of these accounts only if
/// any are named; returns how many.
#[tracing::instrument(name = "db.eco_usage_records.settle_empty", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn settle_empty(db: &mut PgConnection, accounts: Option<&[String]>) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        "update eco_usage_records r
         set settled_time = now(), parked_reason = null, parked_time = null, parked_message = null
         where settled_time is null and coalesce(settle_time, period_end + $1::interval) <= now()
           and overage_units = 0 and billed_micros = 0
           and ($2::text[] is null or r.eco_id = any ($2))
           and not exists (select from eco_overage_charges h where h.eco_id = r.eco_id
                           and h.period_start = r.period_start and h.status in ('pending', 'succeeded'))",
        SETTLEMENT_GRACE as _,
        accounts as Option<&[String]>,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Has an account's periods that ended by a time rounded for good from now on; of one that is closed all, for nothing is
/// counted in them any more.
#[tracing::instrument(name = "db.eco_usage_records.settle_early", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn settle_early(db: &mut PgConnection, eco_id: &str, ended: DateTime<Utc>) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_usage_records set settle_time = least(coalesce(settle_time, period_end + $3::interval), now())
         where eco_id = $1 and settled_time is null
           and (period_end <= least($2::timestamptz + interval '1 second', now())
                or exists (select from eco_identities i where i.eco_id = $1 and i.closed_time is not null))",
        eco_id,
        ended,
        SETTLEMENT_GRACE as _,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Start of an account's period that contains an instant, if anything was counted in it.
#[tracing::instrument(name = "db.eco_usage_records.period_at", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn period_at(
    db: &mut PgConnection,
    eco_id: &EcoId,
    at: DateTime<Utc>,
) -> sqlx::Result<Option<DateTime<Utc>>> {
    sqlx::query_scalar!(
        "select period_start from eco_usage_records
         where eco_id = $1 and period_start <= $2 and period_end > $2
         order by period_start desc limit 1",
        eco_id.as_str(),
        at,
    )
    .fetch_optional(db)
    .await
}

/// Marks a period as settled for good.
#[tracing::instrument(name = "db.eco_usage_records.settle", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn settle(db: &mut PgConnection, key: &PeriodKey) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_usage_records set settled_time = now() where eco_id = $1 and period_start = $2",
        key.eco_id,
        key.start,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// A settled period has something to come after all.
#[tracing::instrument(name = "db.eco_usage_records.reopen", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn reopen(db: &mut PgConnection, key: &PeriodKey) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_usage_records set settled_time = null where eco_id = $1 and period_start = $2",
        key.eco_id,
        key.start,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Parks a period with a reason, or takes it out of the park. What is `untold` the next run tells.
#[tracing::instrument(name = "db.eco_usage_records.park", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn park(
    db: &mut PgConnection,
    key: &PeriodKey,
    reason: Option<&ParkReason>,
    untold: Option<&AccountError>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_usage_records
         set parked_reason = $3, parked_time = case when $3::text is not null then now() end, parked_message = $4
         where eco_id = $1 and period_start = $2",
        key.eco_id,
        key.start,
        reason.map(ParkReason::as_str),
        untold.map(|error| error.message.as_str()),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Takes a period out of the park that is there because Stripe refused a charge; false: it is not.
#[tracing::instrument(name = "db.eco_usage_records.unpark_refused", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn unpark_refused(db: &mut PgConnection, key: &PeriodKey) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update eco_usage_records set parked_reason = null, parked_time = null, parked_message = null
         where eco_id = $1 and period_start = $2 and parked_reason not in ($3, $4, $5)",
        key.eco_id,
        key.start,
        ParkReason::NoStripeCustomer.as_str(),
        ParkReason::NoPriceInCurrency.as_str(),
        ParkReason::AmountOutOfRange.as_str(),
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Brings the row's copy of the ledger's sum up to date.
pub async fn set_billed(db: &mut PgConnection, key: &PeriodKey) -> sqlx::Result<()> {
    set_billed_all(db, std::slice::from_ref(key)).await
}

/// Brings the rows' copies of the ledger's sums up to date.
#[tracing::instrument(name = "db.eco_usage_records.set_billed", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn set_billed_all(db: &mut PgConnection, keys: &[PeriodKey]) -> sqlx::Result<()> {
    let (eco_ids, starts) = columns_of(keys);
    sqlx::query!(
        "update eco_usage_records r
         set billed_micros = (select coalesce(sum(h.amount_micros), 0) from eco_overage_charges h
                              where h.eco_id = r.eco_id and h.period_start = r.period_start
                                and h.status in ('pending', 'succeeded'))
         from unnest($1::text[], $2::timestamptz[]) as k (eco_id, period_start)
         where r.eco_id = k.eco_id and r.period_start = k.period_start",
        &eco_ids as &[&str],
        &starts,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Whether another period of the account waits for a customer already, so that it was listed.
#[tracing::instrument(name = "db.eco_usage_records.waits_for_customer", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn waits_for_customer(db: &mut PgConnection, eco_id: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select exists (select from eco_usage_records where eco_id = $1 and settled_time is null
                          and parked_reason = $2) as "waits!""#,
        eco_id,
        ParkReason::NoStripeCustomer.as_str(),
    )
    .fetch_one(db)
    .await
}

/// Ends a period early, where it would have ended later.
#[tracing::instrument(name = "db.eco_usage_records.cut", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn cut(db: &mut PgConnection, key: &PeriodKey, end: DateTime<Utc>) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_usage_records set period_end = $3
         where eco_id = $1 and period_start = $2 and period_start < $3 and period_end > $3",
        key.eco_id,
        key.start,
        end,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Has a period end at `end`, from now on: one that is new, or one that was cut and goes on after all. What was rounded
/// for good then stays so.
#[tracing::instrument(name = "db.eco_usage_records.open", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn open(
    db: &mut PgConnection,
    key: &PeriodKey,
    end: DateTime<Utc>,
    (plan, version): (Plan, i32),
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into eco_usage_records as r (eco_id, period_start, period_end, plan, plan_version, currency_code)
         select i.eco_id, $2::timestamptz, $3::timestamptz, $4, $5::int, i.currency_code from eco_identities i where i.eco_id = $1
         on conflict (eco_id, period_start) do update set period_end = excluded.period_end, settle_time = null, settled_time = null,
             rounded = r.rounded or coalesce(r.settle_time, r.period_end + $6::interval) <= now()
         where r.period_end < excluded.period_end",
        key.eco_id,
        key.start,
        end,
        plan.as_str(),
        version,
        SETTLEMENT_GRACE as _,
    )
    .execute(db)
    .await?;
    Ok(())
}
