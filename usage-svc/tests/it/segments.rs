//! Changes of plan within a period, made by billing-svc while calls are counted.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, AtomicI32, Ordering},
};

use anyhow::{Context, Result};
use chrono::{DateTime, Datelike, Months, TimeDelta, Utc};
use futures::future::try_join_all;
use nexus_core::plan::Plan;
use nexus_proto::usage::v1::UsageEvent;
use nexus_testkit::{db::TestDb, seed};
use rand::{Rng, SeedableRng, rngs::StdRng};
use uuid::Uuid;

use crate::{billing::Billing, support::*};

/// An account whose period began two hours ago, after one before it, so that late events still come to that.
async fn account_of_two_hours(db: &TestDb, eco_id: &str, plan: Plan) -> Result<DateTime<Utc>> {
    let start = now() - TimeDelta::hours(2);
    let months =
        (1..).find_map(|n| start.checked_sub_months(Months::new(n)).filter(|a| a.day() == start.day()));
    seed::account(&db.pool, eco_id, plan, months.context("a month with that day")?).await?;
    Ok(start)
}

/// Plans whose limits are passed in a test.
async fn small_plans(db: &TestDb) -> Result<()> {
    for statement in [
        "insert into eco_plans (plan, version, included_units, hard_limit)
         values ('pro', 2, 30, false), ('enterprise', 2, 60, false)",
        "insert into eco_plan_prices (plan, version, currency_code, monthly_micros, overage_micros, overage_per_units)
         values ('pro', 2, 'USD', 0, 1000, 1), ('enterprise', 2, 'USD', 0, 700, 3)",
        "update eco_subscriptions set plan_version = 2 where plan <> 'free'",
    ] {
        sqlx::query(statement).execute(&db.pool).await?;
    }
    Ok(())
}

/// What is counted of a period: units of each segment, in order.
type Segments = HashMap<(String, DateTime<Utc>), Vec<i64>>;

async fn by_segment(db: &TestDb, statement: &'static str) -> Result<Segments> {
    let rows: Vec<(String, DateTime<Utc>, i32, i64)> = sqlx::query_as(statement).fetch_all(&db.pool).await?;
    let mut all = Segments::new();
    for (eco_id, period, segment, units) in rows {
        let units_of = all.entry((eco_id, period)).or_default();
        let segment = usize::try_from(segment)?;
        units_of.resize(units_of.len().max(segment + 1), 0);
        units_of[segment] = units;
    }
    Ok(all)
}

async fn raw_segments(db: &TestDb) -> Result<Segments> {
    let statement =
        "select eco_id, period_start, segment, sum(units_count)::bigint from eco_api_usage group by 1, 2, 3";
    by_segment(db, statement).await
}

/// Overage by the definition, unit by unit: of those of each plan that are beyond what that plan includes.
fn overage(segments: &[i64], plans: &[Plan]) -> (i64, i64) {
    let (mut count, mut pro, mut enterprise) = (0, 0, 0);
    for (units, plan) in segments.iter().zip(plans) {
        for _ in 0..*units {
            count += 1;
            match plan {
                Plan::Pro if count > 30 => pro += 1,
                Plan::Enterprise if count > 60 => enterprise += 1,
                _ => {}
            }
        }
    }
    (pro + enterprise, pro * 1000 + enterprise * 700 / 3)
}

const ACCOUNTS: [&str; 3] = ["eco_a", "eco_b", "eco_c"];

/// What an account's changes have come to, as far as others may know.
#[derive(Default)]
struct Progress {
    asked: AtomicI32,
    done: AtomicI32,
}

/// An event that was counted, and the segments that may have been open then.
struct Counted {
    event: UsageEvent,
    from: i32,
    to: i32,
}

/// Sends batches until the plans have stopped changing.
async fn send(
    server: &Server,
    progress: &[Progress; 3],
    ended: &AtomicBool,
    seed: u64,
) -> Result<Vec<Counted>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut counted = Vec::new();
    while !ended.load(Ordering::Acquire) || counted.len() < 100 {
        let batch: Vec<(usize, UsageEvent)> = (0..rng.random_range(1..20))
            .map(|_| {
                let account = rng.random_range(0..ACCOUNTS.len());
                // Of this period and, late, of the one before.
                let at = now() - TimeDelta::seconds(rng.random_range(0..4 * 3600));
                let units_count = rng.random_range(1..4);
                (account, UsageEvent { units_count, ..event_at(ACCOUNTS[account], at) })
            })
            .collect();
        let from: Vec<i32> = progress.iter().map(|p| p.done.load(Ordering::SeqCst)).collect();
        let answer = record_batch(server, batch.iter().map(|(_, event)| event.clone()).collect()).await?;
        assert_eq!(usize::try_from(answer.accepted_count)?, batch.len());
        let to: Vec<i32> = progress.iter().map(|p| p.asked.load(Ordering::SeqCst)).collect();
        counted.extend(batch.into_iter().map(|(a, event)| Counted { event, from: from[a], to: to[a] }));
    }
    Ok(counted)
}

/// Changes the plans of all accounts again and again; returns the plans each has had.
async fn change_plans(
    db: &TestDb,
    billing: &Billing,
    progress: &[Progress; 3],
    rng: &mut StdRng,
) -> Result<Vec<Vec<Plan>>> {
    let mut plans = vec![vec![Plan::Pro]; ACCOUNTS.len()];
    for _ in 0..30 {
        let account = rng.random_range(0..ACCOUNTS.len());
        let current = plans[account].last().copied();
        let others: Vec<Plan> = Plan::ALL.into_iter().filter(|plan| Some(*plan) != current).collect();
        let plan = others[rng.random_range(0..others.len())];
        progress[account].asked.fetch_add(1, Ordering::SeqCst);
        billing.change(ACCOUNTS[account], plan).await?;
        progress[account].done.fetch_add(1, Ordering::SeqCst);
        plans[account].push(plan);
        closed_sums_hold(db).await?;
    }
    Ok(plans)
}

/// What was added up when segments were closed is what the raw log has of them, now and ever after.
pub(crate) async fn closed_sums_hold(db: &TestDb) -> Result<()> {
    let wrong: i64 = sqlx::query_scalar(
        "select count(*) from eco_usage_segments s
         left join (select eco_id, period_start, segment, sum(units_count)::bigint as units
                    from eco_api_usage group by 1, 2, 3) u using (eco_id, period_start, segment)
         where s.recorded_units is distinct from coalesce(u.units, 0)",
    )
    .fetch_one(&db.pool)
    .await?;
    assert_eq!(wrong, 0, "a closed segment has other rows than when it was closed");
    Ok(())
}

/// Each row is in a segment that was open between its call and its answer.
async fn rows_are_of_open_segments(db: &TestDb, counted: &[Counted], starts: &[DateTime<Utc>]) -> Result<()> {
    let rows: Vec<(Uuid, DateTime<Utc>, i32)> =
        sqlx::query_as("select event_id, period_start, segment from eco_api_usage")
            .fetch_all(&db.pool)
            .await?;
    let rows: HashMap<Uuid, _> =
        rows.into_iter().map(|(id, period, segment)| (id, (period, segment))).collect();
    assert_eq!(rows.len(), counted.len());
    for Counted { event, from, to } in counted {
        let (period, segment) = rows[&event.event_id.parse::<Uuid>()?];
        // No change of plan came in the period before: all of it is one segment.
        let open = if starts.contains(&period) { *from..=*to } else { 0..=0 };
        assert!(open.contains(&segment), "{event:?} is in {segment} and not in {open:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_two_replicas_and_changes_of_plan_add_up_in_every_order() -> Result<()> {
    for seed in 0..3 {
        let db = TestDb::new().await?;
        let mut starts = Vec::new();
        for eco_id in ACCOUNTS {
            starts.push(account_of_two_hours(&db, eco_id, Plan::Pro).await?);
        }
        small_plans(&db).await?;
        let billing = Billing::start(&db).await?;
        let servers = [Server::start(db.args()).await?, Server::start(db.args()).await?];
        let (progress, ended) = (<[Progress; 3]>::default(), AtomicBool::new(false));
        let changing = async {
            let plans = change_plans(&db, &billing, &progress, &mut StdRng::seed_from_u64(seed)).await;
            ended.store(true, Ordering::Release);
            plans
        };
        let senders = (0..4u64).map(|n| send(&servers[(n % 2) as usize], &progress, &ended, seed * 4 + n));
        let (plans, counted) = tokio::join!(changing, try_join_all(senders));
        let (plans, counted) = (plans?, counted?.into_iter().flatten().collect::<Vec<_>>());
        rows_are_of_open_segments(&db, &counted, &starts).await?;
        // Sent again, whatever segment is open by now, they are counted no more.
        for again in counted.chunks(500) {
            let events: Vec<UsageEvent> = again.iter().map(|c| c.event.clone()).collect();
            assert_eq!(
                usize::try_from(record_batch(&servers[0], events).await?.duplicate_count)?,
                again.len()
            );
        }
        closed_sums_hold(&db).await?;
        sums_and_overage_agree(&db, &billing, &servers[1], &plans, &starts).await?;
        let before = rollups(&db).await?;
        sqlx::query(
            "select aggregate_daily_usage((now() at time zone 'UTC')::date - n) from generate_series(0, 1) n",
        )
        .execute(&db.pool)
        .await?;
        assert_eq!(rollups(&db).await?, before, "a rebuild knows no segments");
    }
    Ok(())
}

async fn sums_and_overage_agree(
    db: &TestDb,
    billing: &Billing,
    server: &Server,
    plans: &[Vec<Plan>],
    starts: &[DateTime<Utc>],
) -> Result<()> {
    let raw = raw_segments(db).await?;
    let counted = "select eco_id, period_start, segment, sum(recorded_units)::bigint from eco_usage_counters group by 1, 2, 3";
    assert_eq!(by_segment(db, counted).await?, raw);
    for ((eco_id, plans), start) in ACCOUNTS.into_iter().zip(plans).zip(starts) {
        let segments = &raw[&(eco_id.to_owned(), *start)];
        assert!(segments.len() > 1 && segments.len() <= plans.len(), "{segments:?} {plans:?}");
        let (units, micros) = overage(segments, plans);
        assert!(units > 0);
        assert_eq!(billing.overage(eco_id).await?, (units, micros), "{eco_id} {segments:?} {plans:?}");
        let shown = current(server, eco_id).await?;
        assert_eq!((shown.overage_count, shown.api_calls_count), (units, segments.iter().sum()));
        // The period before has its own plan's overage, however late its events came.
        let (_, earlier) = raw.iter().find(|((e, p), _)| e == eco_id && p != start).context("late events")?;
        assert_eq!(earlier.len(), 1);
        for (overage, units) in
            [((units, micros), segments.iter().sum()), (overage(earlier, &plans[..1]), earlier[0])]
        {
            let summary = "select exists (select from eco_usage_records where eco_id = $1 and api_calls = $2
                                          and overage_units = $3 and overage_micros = $4)";
            eventually(async || {
                let summary = sqlx::query_scalar(summary).bind(eco_id).bind::<i64>(units);
                Ok(summary.bind(overage.0).bind(overage.1).fetch_one(&db.pool).await?)
            })
            .await?;
        }
    }
    Ok(())
}
