//! What lists of accounts show is what would be computed for each anew, at every moment.

use anyhow::{Result, ensure};
use chrono::{DateTime, Utc};
use nexus_core::plan::Plan;
use nexus_testkit::{db::TestDb, seed};
use sqlx::PgPool;

use crate::support::*;

const NO_STRIPE: &str = "http://127.0.0.1:9/";
/// Rows of the list that differ from the account's figures, of both sides.
const DIFFERENT: &str = "
    select count(*) from eco_accounts_now a full join eco_current_usage u on u.eco_id = a.eco_id
    where (a.email, a.currency_code, a.created_time, a.plan, a.status, a.api_calls, a.overage_units, a.overage_micros,
           a.subscription_micros, a.last_event_time, a.revenue_micros, a.created_micros, a.eco_id)
          is distinct from
          (u.email, u.currency_code, u.created_time, u.plan, u.status, u.api_calls, u.overage_units, u.overage_micros,
           u.subscription_micros, u.last_event_time, u.revenue_micros, u.created_micros, u.eco_id)";
/// Plans, statuses and currencies whose totals differ from what the accounts add up to, of both sides.
const DIFFERENT_TOTALS: &str = "
    select count(*)
    from (select * from eco_accounts_total where (users, api_calls, overage_micros, subscription_micros) <> (0, 0, 0, 0)) t
         full join (select plan, status, currency_code, count(*) as users, sum(api_calls) as api_calls,
                           sum(overage_micros) as overage_micros, sum(subscription_micros) as subscription_micros
                    from eco_current_usage group by plan, status, currency_code) u using (plan, status, currency_code)
    where (t.users, t.api_calls, t.overage_micros, t.subscription_micros)
          is distinct from (u.users, u.api_calls, u.overage_micros, u.subscription_micros)";
/// Every account has its row, and every row holds.
const READY: &str = "
    select not exists (select from eco_account_changes) and not exists (select from eco_usage_changes)
           and not exists (select from eco_figure_deltas)
           and (select count(*) from eco_figures_that_hold) = (select count(*) from eco_current_usage)
           and (select count(*) from eco_account_figures) = (select count(*) from eco_current_usage)";

async fn same(pool: &PgPool, when: &str) -> Result<()> {
    let different: i64 = sqlx::query_scalar(DIFFERENT).fetch_one(pool).await?;
    ensure!(different == 0, "{different} rows differ {when}");
    let different: i64 = sqlx::query_scalar(DIFFERENT_TOTALS).fetch_one(pool).await?;
    ensure!(different == 0, "{different} totals differ {when}");
    Ok(())
}

/// What becomes of accounts, each as one statement, so that nobody sees half of it.
const HAPPENINGS: [(&str, &str); 12] = [
    ("an email", "update eco_identities set email = 'x@example.org' where eco_id = 'eco_1'"),
    ("a status", "update eco_subscriptions set status = 'unpaid' where eco_id = 'eco_2'"),
    ("a plan", "update eco_subscriptions set plan = 'enterprise' where eco_id = 'eco_3'"),
    ("a closing", "update eco_identities set status = 'closed', closed_time = now() where eco_id = 'eco_4'"),
    (
        "a plan that waits",
        "update eco_subscriptions set next_plan = 'free', next_plan_version = 1,
                                      next_plan_time = nexus_period_end(anchor_time, now()) where eco_id = 'eco_5'",
    ),
    ("a period that begins now", "update eco_subscriptions set anchor_time = now() where eco_id = 'eco_6'"),
    (
        "another subscription",
        "do $$ begin
             update eco_subscriptions set ended_time = now() where eco_id = 'eco_7';
             insert into eco_subscriptions (eco_id, plan, plan_version, status, anchor_time)
             values ('eco_7', 'enterprise', 1, 'active', now());
         end $$",
    ),
    ("a currency", "update eco_identities set currency_code = 'EUR' where eco_id = 'eco_8'"),
    (
        "its price",
        "insert into eco_plan_prices (plan, version, currency_code, monthly_micros) values ('pro', 1, 'EUR', 45000000)",
    ),
    ("usage", "select increment_api_calls('eco_1', 100500)"),
    ("usage of an account on other terms", "select increment_api_calls('eco_6', 7)"),
    (
        "a new account",
        "do $$ begin
             insert into eco_identities (eco_id) values ('eco_new');
             insert into eco_subscriptions (eco_id, plan, plan_version, status, anchor_time)
             values ('eco_new', 'free', 1, 'active', now());
         end $$",
    ),
];

#[tokio::test]
async fn lists_show_what_is_computed_anew_whatever_happens() -> Result<()> {
    let db = TestDb::new().await?;
    for n in 0..10 {
        seed::account(&db.pool, &format!("eco_{n}"), Plan::Pro, anchor()).await?;
    }
    same(&db.pool, "before anybody has computed a row").await?;
    let billing = Billing::start(&db, NO_STRIPE).await?;
    until(&db, READY).await?;
    for (what, statement) in HAPPENINGS {
        sqlx::query(statement).execute(&db.pool).await?;
        same(&db.pool, &format!("right after {what}")).await?;
        until(&db, READY).await?;
        same(&db.pool, &format!("after {what}")).await?;
    }
    let shown: (i64, i64) =
        sqlx::query_as("select api_calls, revenue_micros from eco_figures_that_hold where eco_id = 'eco_1'")
            .fetch_one(&db.pool)
            .await?;
    assert_eq!(shown, (100_500, 49_000_000 + 500_000), "usage is in the row that is ready");
    billing.stop().await
}

/// Nothing is written when a period ends: the row says how long it holds.
#[tokio::test]
async fn a_row_whose_time_is_over_is_shown_by_nobody_and_computed_anew() -> Result<()> {
    let db = TestDb::new().await?;
    for eco_id in ["eco_a", "eco_b"] {
        seed::account(&db.pool, eco_id, Plan::Free, anchor()).await?;
    }
    sqlx::raw_sql(
        "delete from eco_account_changes;
         update eco_subscriptions set next_plan = 'pro', next_plan_version = 1,
                                      next_plan_time = nexus_period_end(anchor_time, now()) where eco_id = 'eco_b';
         select nexus_compute_figures('{eco_a, eco_b}');
         delete from eco_account_changes;",
    )
    .execute(&db.pool)
    .await?;
    let ends: Vec<(DateTime<Utc>, DateTime<Utc>)> = sqlx::query_as(
        "select f.valid_until, nexus_period_end(s.anchor_time, now())
         from eco_account_figures f join eco_subscriptions s using (eco_id)",
    )
    .fetch_all(&db.pool)
    .await?;
    assert!(ends.len() == 2 && ends.iter().all(|(until, end)| until == end), "{ends:?}");
    // As it is when the period has ended: what the row has is of the one before.
    let over = "update eco_account_figures set api_calls = 900, valid_until = now(), period_start = period_start - interval '1 month'";
    sqlx::query(over).execute(&db.pool).await?;
    same(&db.pool, "when the rows are over").await?;
    let billing = Billing::start(&db, NO_STRIPE).await?;
    until(&db, READY).await?;
    same(&db.pool, "when they were computed").await?;
    billing.stop().await
}
