//! Brings the accounts of a seed into the database and to Stripe, and their usage into the counters.

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use sqlx::PgConnection;

use super::world::{Account, Period, Usage};
use crate::{
    stage::Seed,
    stripe::{Poison, Stripe},
};

/// A period that is over ended so many hours ago.
pub(super) const OVER_FOR_HOURS: i64 = 5;

/// What an account of a seed is like.
#[derive(Clone, Copy)]
struct Kind {
    is_subscribed: bool,
    /// Its last period is over, and takes late usage still.
    was_over: bool,
    poison: Option<(u32, Poison)>,
}

/// Which accounts a seed has: one or two of them poisoned in the course of it, others with a period that is over.
fn kinds(rounds: u32, rng: &mut StdRng) -> Vec<Kind> {
    let count = rng.random_range(4..=6);
    (0..count)
        .map(|n| {
            let poisons = [Poison::Declined, Poison::Deleted, Poison::Currency];
            let poisoned = n == 0 || (n == 1 && rng.random_bool(0.3));
            let poison = poisons.choose(rng).filter(|_| poisoned);
            Kind {
                is_subscribed: rng.random_bool(0.4),
                was_over: poison.is_none() && rng.random_bool(0.5),
                poison: poison.map(|poison| (rng.random_range(0..rounds), *poison)),
            }
        })
        .collect()
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
    ];
    let price = stripe.create("prices", &product).await?;
    let kinds = kinds(rounds, rng);
    let eco_ids: Vec<String> = (0..kinds.len()).map(|n| format!("eco_{n}")).collect();
    seed.accounts(&eco_ids.iter().map(String::as_str).collect::<Vec<_>>(), "pro").await?;
    let mut accounts = Vec::new();
    for (eco_id, kind) in eco_ids.into_iter().zip(kinds) {
        let customer = stripe.create("customers", &[("email", "a@example.com")]).await?;
        let subscription = if kind.is_subscribed {
            let form = [("customer", customer.as_str()), ("items[0][price]", &price)];
            Some(stripe.create("subscriptions", &form).await?)
        } else {
            None
        };
        let periods = write(db, &eco_id, &customer, subscription.as_deref(), kind.was_over).await?;
        accounts.push(Account {
            eco_id,
            customer,
            is_subscribed: kind.is_subscribed,
            poison: kind.poison,
            periods,
        });
    }
    Ok(accounts)
}

/// Gives an account its ids at Stripe, and its periods.
async fn write(
    db: &mut PgConnection,
    eco_id: &str,
    customer: &str,
    subscription: Option<&str>,
    was_over: bool,
) -> Result<Vec<Period>> {
    sqlx::query("update eco_identities set stripe_customer_id = $2 where eco_id = $1")
        .bind(eco_id)
        .bind(customer)
        .execute(&mut *db)
        .await?;
    // Four years ago every month had the days that it has now.
    let (before, current): (DateTime<Utc>, DateTime<Utc>) = sqlx::query_as(
        "with s as (
             update eco_subscriptions
             set stripe_subscription_id = $2,
                 anchor_time = case when $3 then now() - make_interval(months => 48, hours => $4) else anchor_time end
             where eco_id = $1 returning anchor_time)
         select nexus_period_start(anchor_time, nexus_period_start(anchor_time, now()) - interval '1 second'),
                nexus_period_start(anchor_time, now()) from s",
    )
    .bind(eco_id)
    .bind(subscription)
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
