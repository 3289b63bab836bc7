//! Brings the accounts of a seed into the database and to Stripe, and their usage into the counters.

use anyhow::{Context, Result};
use chrono::{DateTime, TimeDelta, Utc};
use rand::{Rng, rngs::StdRng};
use sqlx::PgConnection;

use super::world::{Account, Ending, Period, Subscription, Trouble, Usage};
use crate::{
    stage::Seed,
    stripe::{Poison, Stripe},
};

/// A period that is over ended so many hours ago.
pub(super) const OVER_FOR_HOURS: i64 = 5;

/// What an account of a seed is like.
#[derive(Clone, Copy)]
struct Kind {
    /// Its subscription: in which round that renews, and how it ends.
    subscribed: Option<(u32, Option<Ending>)>,
    /// Its last period is over, and takes late usage still.
    was_over: bool,
    trouble: Option<Trouble>,
}

/// Which accounts a seed has: one or two of them poisoned in the course of it, others with a subscription that renews,
/// others with a period that is over.
fn kinds(rounds: u32, rng: &mut StdRng) -> Vec<Kind> {
    let count = rng.random_range(4..=6);
    (0..count)
        .map(|n| {
            let is_poisoned = n == 0 || (n == 1 && rng.random_bool(0.3));
            let trouble = is_poisoned.then(|| trouble(rounds, rng));
            let subscribed = (!is_poisoned && rng.random_bool(0.6)).then(|| subscribed(rounds, rng));
            let was_over = !is_poisoned && (subscribed.is_some() || rng.random_bool(0.4));
            Kind { subscribed, was_over, trouble }
        })
        .collect()
}

fn trouble(rounds: u32, rng: &mut StdRng) -> Trouble {
    let poison = [Poison::Declined, Poison::Deleted, Poison::Currency][rng.random_range(0..3)];
    let from = rng.random_range(0..rounds);
    let can_be_mended = poison != Poison::Deleted && from + 1 < rounds;
    let is_mended = can_be_mended && rng.random_bool(0.7);
    Trouble { poison, from, until: is_mended.then(|| rng.random_range(from + 1..rounds)) }
}

fn subscribed(rounds: u32, rng: &mut StdRng) -> (u32, Option<Ending>) {
    let renews_in = rng.random_range(0..rounds);
    let ending = match rng.random_range(0..10) {
        0..4 => None,
        4..8 => Some(Ending::AtOnce(rng.random_range(renews_in..rounds))),
        _ => Some(Ending::WithPeriod),
    };
    (renews_in, ending)
}

/// Makes the accounts of a seed.
pub(super) async fn accounts(
    seed: &Seed,
    db: &mut PgConnection,
    stripe: &Stripe,
    rounds: u32,
    rng: &mut StdRng,
) -> Result<Vec<Account>> {
    let product = [
        ("currency", "usd"),
        ("unit_amount", "4900"),
        ("recurring[interval]", "month"),
        ("product_data[name]", "Pro"),
        ("lookup_key", "pro"),
    ];
    let price = stripe.create("prices", &product).await?;
    let kinds = kinds(rounds, rng);
    let eco_ids: Vec<String> = (0..kinds.len()).map(|n| format!("eco_{n}")).collect();
    seed.accounts(&eco_ids.iter().map(String::as_str).collect::<Vec<_>>(), "pro").await?;
    let mut accounts = Vec::new();
    for (eco_id, kind) in eco_ids.into_iter().zip(kinds) {
        let periods = write(db, &eco_id, kind.was_over).await?;
        let renewal = periods.last().context("a period")?.start;
        let (customer, subscription) = match kind.subscribed {
            Some((renews_in, ending)) => {
                let (customer, made) = subscribe(stripe, &price, renewal).await?;
                link(db, &eco_id, &made).await?;
                (customer, Some(Subscription { renews_in, ending, ..made }))
            }
            None => (stripe.create("customers", &[("email", "a@example.com")]).await?, None),
        };
        sqlx::query("update eco_identities set stripe_customer_id = $2 where eco_id = $1")
            .bind(&eco_id)
            .bind(&customer)
            .execute(&mut *db)
            .await?;
        accounts.push(Account { eco_id, customer, subscription, trouble: kind.trouble, periods });
    }
    Ok(accounts)
}

/// Makes a customer with a subscription at Stripe whose first period is short, and ends when the account's current one
/// began.
async fn subscribe(stripe: &Stripe, price: &str, renewal: DateTime<Utc>) -> Result<(String, Subscription)> {
    let time = renewal - TimeDelta::hours(1);
    let frozen = [("frozen_time", &*time.timestamp().to_string())];
    let clock = stripe.create("test_helpers/test_clocks", &frozen).await?;
    let form = [("email", "a@example.com"), ("test_clock", &*clock)];
    let customer = stripe.create("customers", &form).await?;
    let form = [
        ("customer", &*customer),
        ("items[0][price]", price),
        ("billing_cycle_anchor", &*renewal.timestamp().to_string()),
        ("proration_behavior", "none"),
    ];
    let id = stripe.create("subscriptions", &form).await?;
    let made = Subscription { id, clock, time, renewal, renews_in: 0, ending: None, has_ended: false };
    Ok((customer, made))
}

/// Gives an account its subscription. Before, it was on the free plan, in periods of other days: it goes back to those.
async fn link(db: &mut PgConnection, eco_id: &str, made: &Subscription) -> Result<()> {
    sqlx::query(
        "insert into eco_subscriptions (eco_id, plan, plan_version, status, anchor_time, started_time, ended_time)
         values ($1, 'free', 1, 'active', $2 - interval '9 days', $2 - interval '9 days', $2)",
    )
    .bind(eco_id)
    .bind(made.time)
    .execute(&mut *db)
    .await?;
    sqlx::query(
        "update eco_subscriptions set stripe_subscription_id = $2, stripe_created_time = $3
         where eco_id = $1 and ended_time is null",
    )
    .bind(eco_id)
    .bind(&made.id)
    .bind(made.time)
    .execute(&mut *db)
    .await?;
    Ok(())
}

/// Gives an account its periods.
async fn write(db: &mut PgConnection, eco_id: &str, was_over: bool) -> Result<Vec<Period>> {
    // Four years ago every month had the days that it has now. Stripe's times are whole seconds.
    let (before, current): (DateTime<Utc>, DateTime<Utc>) = sqlx::query_as(
        "with s as (
             update eco_subscriptions
             set anchor_time = case when $2 then date_trunc('second', now() - make_interval(months => 48, hours => $3))
                                    else anchor_time end
             where eco_id = $1 returning anchor_time)
         select nexus_period_start(anchor_time, nexus_period_start(anchor_time, now()) - interval '1 second'),
                nexus_period_start(anchor_time, now()) from s",
    )
    .bind(eco_id)
    .bind(was_over)
    .bind(i32::try_from(OVER_FOR_HOURS)?)
    .fetch_one(&mut *db)
    .await
    .context("the account")?;
    let mut periods = Vec::new();
    if was_over {
        sqlx::query(
            "insert into eco_usage_records (eco_id, period_start, period_end, settle_time, plan, plan_version, currency_code)
             values ($1, $2, $3, $3 + interval '24 hours', 'pro', 1, 'USD')",
        )
        .bind(eco_id)
        .bind(before)
        .bind(current)
        .execute(&mut *db)
        .await?;
        periods.push(Period::new(before, true));
    }
    periods.push(Period::new(current, false));
    Ok(periods)
}

/// Counts usage, as a flush of usage-svc does.
pub(super) async fn count(db: &mut PgConnection, usage: &[Usage]) -> Result<()> {
    let eco_ids: Vec<&str> = usage.iter().map(|usage| usage.eco_id.as_str()).collect();
    let starts: Vec<DateTime<Utc>> = usage.iter().map(|usage| usage.period_start).collect();
    let segments: Vec<i32> = usage.iter().map(|usage| usage.segment).collect();
    let units: Vec<i64> = usage.iter().map(|usage| usage.units).collect();
    sqlx::query(
        "with e as (
             insert into eco_api_usage
                 (event_id, eco_id, event_day, event_time, period_start, segment, units_count, endpoint, method,
                  status_code, response_time_ms, test_mode, late)
             select gen_random_uuid(), u.eco_id, (now() at time zone 'UTC')::date, now(), u.period_start, u.segment,
                    u.units, '/v1/x', 'GET', 200, 10, false, false
             from unnest($1::text[], $2::timestamptz[], $3::int[], $4::bigint[])
                  as u (eco_id, period_start, segment, units))
         select increment_api_calls($1, $2, $3, 0::smallint, $4, $4, array_fill(0::bigint, array[cardinality($1)]),
                                    array_fill(now(), array[cardinality($1)]))",
    )
    .bind(eco_ids)
    .bind(starts)
    .bind(segments)
    .bind(units)
    .execute(db)
    .await?;
    Ok(())
}
