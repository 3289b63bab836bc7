use anyhow::{Context, Result};
use nexus_core::plan::Plan;
use nexus_kit::{auth::Scope, convert::timestamp};
use nexus_proto::analytics::v1::{
    GetOverviewRequest, GetRevenueHistoryRequest, GetRevenueHistoryResponse, MonthlyRevenue,
};
use nexus_testkit::settings;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use sqlx::{AssertSqlSafe, PgPool};
use tonic::{Code, Response, Status};

use crate::support::*;

const DOLLAR: i64 = 1_000_000;

async fn call(
    app: &App,
    request: GetRevenueHistoryRequest,
) -> Result<Response<GetRevenueHistoryResponse>, Status> {
    let admin = admin().map_err(|e| Status::internal(e.to_string()))?;
    app.client.clone().get_revenue_history(admin.request(request)).await
}

async fn history(app: &App, months_count: i32, currency_code: &str) -> Result<GetRevenueHistoryResponse> {
    let request = GetRevenueHistoryRequest { months_count, currency_code: currency_code.to_owned() };
    Ok(call(app, request).await?.into_inner())
}

async fn this_month(app: &App) -> Result<MonthlyRevenue> {
    let mut months = history(app, 1, "").await?.months;
    let month = months.pop().context("this month")?;
    assert_eq!(months, [], "one month");
    Ok(month)
}

async fn overview_mrr(app: &App) -> Result<i64> {
    let overview = app.client.clone().get_overview(admin()?.request(GetOverviewRequest {})).await?;
    Ok(overview.into_inner().mrr_micros)
}

/// The month so many months ago, by the database's clock.
async fn month(pool: &PgPool, months_ago: i32) -> Result<String> {
    let query = "select to_char(now() at time zone 'UTC' - make_interval(months => $1), 'YYYY-MM')";
    Ok(sqlx::query_scalar(query).bind(months_ago).fetch_one(pool).await?)
}

/// As one transaction.
async fn run(pool: &PgPool, statements: &str) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(format!("begin; {statements}; commit"))).execute(pool).await?;
    Ok(())
}

/// Moves what was noted so far into the past.
async fn age(pool: &PgPool, months: i32) -> Result<()> {
    run(
        pool,
        &format!(
            "set local session_replication_role = replica;
             update eco_mrr_movements set movement_time = movement_time - interval '{months} months';
             update eco_account_mrr set noted_time = noted_time - interval '{months} months'"
        ),
    )
    .await
}

/// Has time pass until the plan that an account waits for is in force: nobody writes anything then.
async fn let_it_come(pool: &PgPool, eco_id: &str, ago: &str) -> Result<()> {
    run(
        pool,
        &format!(
            "set local session_replication_role = replica;
             update eco_subscriptions set next_plan_time = now() - interval '{ago}'
             where eco_id = '{eco_id}' and ended_time is null and next_plan_time is not null;
             update eco_account_mrr set next_plan_time = now() - interval '{ago}', noted_time = least(noted_time, now() - interval '{ago}')
             where eco_id = '{eco_id}' and next_plan_time is not null;
             insert into eco_account_changes (eco_id) values ('{eco_id}')"
        ),
    )
    .await
}

fn set(eco_id: &str, what: &str) -> String {
    format!("update eco_subscriptions set {what} where eco_id = '{eco_id}' and ended_time is null")
}

fn waits_for(plan: &str) -> String {
    format!(
        "next_plan = '{plan}', next_plan_version = 1, next_plan_time = nexus_period_end(anchor_time, now())"
    )
}

#[tokio::test]
async fn an_empty_system_has_zeros_for_every_month() -> Result<()> {
    let app = App::start().await?;
    let answer = history(&app, 0, "").await?;
    assert_eq!(answer.months.len(), 12);
    for (months_ago, shown) in answer.months.iter().rev().enumerate() {
        let month = month(app.pool(), months_ago as i32).await?;
        let zeros = MonthlyRevenue { month, currency_code: "USD".to_owned(), ..Default::default() };
        assert_eq!(*shown, zeros);
    }
    assert_eq!((answer.history_start_time, answer.currency_codes), (None, vec!["USD".to_owned()]));
    for (asked, shown) in [(1, 1), (60, 60), (61, 60), (i32::MAX, 60)] {
        assert_eq!(history(&app, asked, "usd").await?.months.len(), shown);
    }
    Ok(())
}

#[tokio::test]
async fn each_kind_of_movement_is_in_the_month_it_happened() -> Result<()> {
    let app = App::start().await?;
    let pool = app.pool();
    accounts(pool, Plan::Pro, &["eco_a", "eco_b", "eco_c", "eco_d"]).await?;
    accounts(pool, Plan::Enterprise, &["eco_e"]).await?;
    accounts(pool, Plan::Free, &["eco_f"]).await?;
    set_status(pool, "eco_d", "paused").await?;
    age(pool, 2).await?;
    run(pool, &set("eco_a", "plan = 'enterprise'")).await?; // expansion
    run(pool, &set("eco_e", "plan = 'pro'")).await?; // contraction
    age(pool, 1).await?;
    close(pool, "eco_b").await?; // churn
    run(pool, &set("eco_c", "plan = 'free'")).await?; // churn
    set_status(pool, "eco_d", "past_due").await?; // reactivation
    run(pool, &set("eco_f", "plan = 'pro'")).await?; // new: it never paid before

    let shown = history(&app, 5, "").await?.months;
    let named = |n: usize| MonthlyRevenue {
        month: shown[n].month.clone(),
        currency_code: "USD".to_owned(),
        ..Default::default()
    };
    let (pro, enterprise) = (49 * DOLLAR, 500 * DOLLAR);
    let began = 3 * pro + enterprise;
    assert_eq!(
        shown,
        [
            named(0),
            MonthlyRevenue { mrr_micros: began, new_micros: began + pro, churn_micros: pro, ..named(1) },
            MonthlyRevenue { mrr_micros: began, ..named(2) },
            MonthlyRevenue {
                mrr_micros: began,
                expansion_micros: enterprise - pro,
                contraction_micros: enterprise - pro,
                ..named(3)
            },
            MonthlyRevenue {
                mrr_micros: began,
                churn_micros: 2 * pro,
                reactivation_micros: pro,
                new_micros: pro,
                ..named(4)
            },
        ]
    );
    assert_eq!(began, overview_mrr(&app).await?);
    Ok(())
}

#[tokio::test]
async fn what_happens_in_one_transaction_is_one_movement() -> Result<()> {
    let app = App::start().await?;
    let pool = app.pool();
    accounts(pool, Plan::Pro, &["eco_a", "eco_b"]).await?;
    // As when a subscription at Stripe begins; and a change that is taken back.
    run(
        pool,
        "update eco_subscriptions set ended_time = now() where eco_id = 'eco_a';
         insert into eco_subscriptions (eco_id, plan, plan_version, status, anchor_time)
         values ('eco_a', 'enterprise', 1, 'active', now());
         update eco_subscriptions set plan = 'free' where eco_id = 'eco_b';
         update eco_subscriptions set plan = 'pro' where eco_id = 'eco_b'",
    )
    .await?;
    let movements: Vec<String> = sqlx::query_scalar(
        "select concat_ws(' ', eco_id, kind, coalesce(from_plan, 'nothing'), to_plan, delta_micros / 1000000)
         from eco_mrr_movements order by movement_id",
    )
    .fetch_all(pool)
    .await?;
    assert_eq!(
        movements,
        ["eco_a new nothing pro 49", "eco_b new nothing pro 49", "eco_a expansion pro enterprise 451"]
    );
    Ok(())
}

#[tokio::test]
async fn a_plan_that_has_waited_moves_the_mrr_when_it_is_in_force_whoever_writes_that_down() -> Result<()> {
    let app = App::start().await?;
    let pool = app.pool();
    let ids = ["eco_a", "eco_b", "eco_c", "eco_d"];
    accounts(pool, Plan::Enterprise, &ids).await?;
    for eco_id in ids {
        run(pool, &set(eco_id, &waits_for(if eco_id == "eco_b" { "free" } else { "pro" }))).await?;
    }
    assert_eq!(this_month(&app).await?.mrr_micros, 2_000 * DOLLAR, "it is still to come");
    // One that is dropped does not come.
    run(pool, &set("eco_c", "next_plan = null, next_plan_version = null, next_plan_time = null")).await?;
    age(pool, 2).await?;
    for eco_id in ["eco_a", "eco_b"] {
        // Over a month ago.
        let_it_come(pool, eco_id, "40 days").await?;
    }
    let before = history(&app, 6, "").await?;
    let written: i64 = sqlx::query_scalar("select count(*) from eco_mrr_movements").fetch_one(pool).await?;
    assert_eq!(written, 4, "nobody has written it down");
    assert_eq!(this_month(&app).await?.mrr_micros, overview_mrr(&app).await?);
    let sum = |of: fn(&MonthlyRevenue) -> i64| before.months.iter().map(of).sum::<i64>();
    assert_eq!(sum(|m| m.contraction_micros), 451 * DOLLAR);
    assert_eq!(sum(|m| m.churn_micros), 500 * DOLLAR);
    assert_eq!(this_month(&app).await?.churn_micros, 0, "it was before this month");
    // The account's next change writes it down, and so does the refresher: the history stays as it was.
    run(pool, &set("eco_a", "status = 'past_due'")).await?;
    let noted: i32 = sqlx::query_scalar("select nexus_note_due_mrr(10)").fetch_one(pool).await?;
    assert_eq!(noted, 1);
    assert_eq!(history(&app, 6, "").await?, before);
    let again: i32 = sqlx::query_scalar("select nexus_note_due_mrr(10)").fetch_one(pool).await?;
    assert_eq!(again, 0);
    // What is applied later than it was due is no second movement.
    run(
        pool,
        &set(
            "eco_b",
            "plan = next_plan, plan_version = next_plan_version, next_plan = null, next_plan_version = null, next_plan_time = null",
        ),
    )
    .await?;
    assert_eq!(history(&app, 6, "").await?, before);
    Ok(())
}

#[tokio::test]
async fn a_currency_has_a_history_of_its_own() -> Result<()> {
    let app = App::start().await?;
    let pool = app.pool();
    accounts(pool, Plan::Pro, &["eco_usd", "eco_eur"]).await?;
    run(pool, "update eco_identities set currency_code = 'EUR' where eco_id = 'eco_eur'").await?;
    let gone = this_month(&app).await?;
    assert_eq!((gone.mrr_micros, gone.churn_micros), (49 * DOLLAR, 49 * DOLLAR), "no plan has a price in it");
    run(
        pool,
        "insert into eco_plan_prices (plan, version, currency_code, monthly_micros) values ('pro', 1, 'EUR', 45000000)",
    )
    .await?;
    let euros = history(&app, 1, "EUR").await?;
    assert_eq!(euros.currency_codes, ["EUR", "USD"]);
    let month = &euros.months[0];
    assert_eq!((month.mrr_micros, month.reactivation_micros), (45 * DOLLAR, 45 * DOLLAR));
    assert_eq!(month.currency_code, "EUR");
    assert_eq!(this_month(&app).await?, gone);
    Ok(())
}

#[tokio::test]
async fn overage_is_what_was_charged_in_the_month() -> Result<()> {
    let app = App::start().await?;
    let pool = app.pool();
    accounts(pool, Plan::Pro, &["eco_a"]).await?;
    usage(pool, "eco_a", 1).await?;
    for (sequence, micros, status, currency, months_ago) in [
        (1, 5 * DOLLAR, "succeeded", "USD", 1),
        (2, 2 * DOLLAR, "succeeded", "USD", 0),
        (3, -DOLLAR / 2, "succeeded", "USD", 0),
        (4, 7 * DOLLAR, "succeeded", "EUR", 0),
        (5, 9 * DOLLAR, "superseded", "USD", 0),
        (6, 11 * DOLLAR, "pending", "USD", 0),
        (7, 13 * DOLLAR, "failed", "USD", 0),
    ] {
        sqlx::query(
            "insert into eco_overage_charges
                 (charge_id, attempt, eco_id, period_start, period_end, sequence, units_from, units_to, amount_micros,
                  amount_minor, currency_code, status, idempotency_key, payload, stripe_invoice_item_id, finished_time)
             select gen_random_uuid(), 1, eco_id, period_start, period_end, $1, 0, 1, $2, $2 / 10000, $4, $3, 'k' || $1, '{}',
                    case when $3 = 'succeeded' then 'ii_' || $1 end,
                    case when $3 <> 'pending' then now() - make_interval(months => $5) end
             from eco_usage_records",
        )
        .bind(sequence)
        .bind(micros)
        .bind(status)
        .bind(currency)
        .bind(months_ago)
        .execute(pool)
        .await?;
    }
    let charged = |answer: GetRevenueHistoryResponse| -> Vec<i64> {
        answer.months.iter().map(|m| m.overage_micros).collect()
    };
    assert_eq!(charged(history(&app, 3, "").await?), [0, 5 * DOLLAR, 3 * DOLLAR / 2]);
    assert_eq!(charged(history(&app, 2, "EUR").await?), [0, 7 * DOLLAR]);
    assert_eq!(charged(history(&app, 1, "CHF").await?), [0]);
    Ok(())
}

/// What happens to an account, at random; each as one transaction.
fn happening(random: &mut StdRng) -> String {
    let eco_id = format!("eco_{}", random.random_range(0..6));
    let plan = ["free", "pro", "enterprise"].choose(random).expect("a plan");
    let status =
        ["trialing", "active", "active", "active", "past_due", "unpaid"].choose(random).expect("a status");
    match random.random_range(0..14) {
        0..=4 => set(&eco_id, &format!("plan = '{plan}', plan_version = 1")),
        5 | 6 => set(&eco_id, &format!("status = '{status}'")),
        7 | 8 => set(&eco_id, &waits_for(plan)),
        9 => set(&eco_id, "next_plan = null, next_plan_version = null, next_plan_time = null"),
        10 | 11 => format!(
            "update eco_subscriptions set ended_time = now(), next_plan = null, next_plan_version = null, next_plan_time = null
             where eco_id = '{eco_id}' and ended_time is null;
             insert into eco_subscriptions (eco_id, plan, plan_version, status, anchor_time)
             values ('{eco_id}', '{plan}', 1, '{status}', now() - interval '3 days')"
        ),
        12 => {
            let currency = if random.random_bool(0.5) { "EUR" } else { "USD" };
            format!("update eco_identities set currency_code = '{currency}' where eco_id = '{eco_id}'")
        }
        _ => {
            let (status, time) = if random.random_bool(0.3) { ("closed", "now()") } else { ("active", "null") };
            format!(
                "update eco_identities set status = '{status}', closed_time = {time} where eco_id = '{eco_id}'"
            )
        }
    }
}

/// Of every currency and every account, what moved adds up to what the lists show, after each of many happenings: also
/// while plans come into force by themselves.
#[tokio::test]
async fn the_movements_add_up_to_the_mrr_whatever_happens() -> Result<()> {
    let app = App::start().await?;
    let pool = app.pool();
    run(
        pool,
        "insert into eco_plan_prices (plan, version, currency_code, monthly_micros)
         values ('pro', 1, 'EUR', 45000000), ('enterprise', 1, 'EUR', 480000000)",
    )
    .await?;
    accounts(pool, Plan::Pro, &["eco_0", "eco_1", "eco_2"]).await?;
    accounts(pool, Plan::Free, &["eco_3", "eco_4", "eco_5"]).await?;
    let mut random = StdRng::seed_from_u64(41);
    for step in 0..150 {
        let what = if random.random_bool(0.15) {
            let eco_id = format!("eco_{}", random.random_range(0..6));
            let_it_come(pool, &eco_id, "1 hour").await?;
            format!("{eco_id}'s plan has come")
        } else if random.random_bool(0.1) {
            sqlx::query("select nexus_note_due_mrr(2)").execute(pool).await?;
            "some are noted".to_owned()
        } else {
            let what = happening(&mut random);
            run(pool, &what).await?;
            what
        };
        let dollars = history(&app, 1, "USD").await?.months[0].mrr_micros;
        assert_eq!(dollars, overview_mrr(&app).await?, "step {step}: {what}");
        let euros = history(&app, 1, "EUR").await?.months[0].mrr_micros;
        let shown: i64 = sqlx::query_scalar(
            "select coalesce(sum(subscription_micros), 0)::bigint from eco_accounts_now where currency_code = 'EUR'",
        )
        .fetch_one(pool)
        .await?;
        assert_eq!(euros, shown, "step {step}: {what}");
    }
    // Once all is noted, each account's movements follow on one another and end where it is.
    sqlx::query("select nexus_note_due_mrr(100)").execute(pool).await?;
    let broken: Vec<String> = sqlx::query_scalar(
        "select m.eco_id from (
             select eco_id, from_micros,
                    lag(to_micros, 1, 0::bigint) over (partition by eco_id, currency_code order by movement_id) as before
             from eco_mrr_movements) m
         where m.from_micros <> m.before
         union all
         select a.eco_id from eco_account_mrr a
         where a.mrr_micros <> (select coalesce(sum(delta_micros), 0) from eco_mrr_movements m
                                where m.eco_id = a.eco_id and m.currency_code = a.currency_code)",
    )
    .fetch_all(pool)
    .await?;
    assert_eq!(broken, Vec::<String>::new());
    let kinds: Vec<String> =
        sqlx::query_scalar("select distinct kind from eco_mrr_movements order by 1").fetch_all(pool).await?;
    assert_eq!(kinds, ["churn", "contraction", "expansion", "new", "reactivation"], "each but the opening");
    Ok(())
}

#[tokio::test]
async fn nobody_alters_the_history() -> Result<()> {
    let app = App::start().await?;
    accounts(app.pool(), Plan::Pro, &["eco_a"]).await?;
    for statement in [
        "update eco_mrr_movements set kind = 'churn'",
        "delete from eco_mrr_movements",
        "truncate eco_mrr_movements",
    ] {
        let error = sqlx::query(statement).execute(app.pool()).await.expect_err(statement);
        let code = error.as_database_error().and_then(|e| e.code()).unwrap_or_default();
        assert_eq!(code, "42501", "{statement}: {error}");
    }
    Ok(())
}

/// A database of before this history: what is paid then is told as its opening, and nothing is made up.
#[tokio::test]
async fn what_was_paid_before_the_history_is_its_opening() -> Result<()> {
    let db = database_before(41).await?;
    accounts(&db.pool, Plan::Pro, &["eco_a", "eco_b"]).await?;
    accounts(&db.pool, Plan::Free, &["eco_former", "eco_free"]).await?;
    set_status(&db.pool, "eco_b", "unpaid").await?;
    run(
        &db.pool,
        "insert into eco_subscriptions (eco_id, plan, plan_version, status, anchor_time, started_time, ended_time)
         values ('eco_former', 'pro', 1, 'canceled', now(), now() - interval '3 months', now() - interval '2 months')",
    )
    .await?;
    migrate(&db).await?;
    let app = App::on(db).await?;
    let pool = app.pool();
    let answer = history(&app, 2, "").await?;
    let began: chrono::DateTime<chrono::Utc> =
        sqlx::query_scalar("select min(noted_time) from eco_account_mrr").fetch_one(pool).await?;
    assert_eq!(answer.history_start_time, Some(timestamp(began)));
    let (before, now) = (&answer.months[0], &answer.months[1]);
    assert_eq!(before.mrr_micros, 0);
    assert_eq!((now.mrr_micros, now.opening_micros, now.new_micros), (49 * DOLLAR, 49 * DOLLAR, 0));
    assert_eq!(now.mrr_micros, overview_mrr(&app).await?);
    // Who paid before comes back, who did not is new.
    for eco_id in ["eco_former", "eco_free"] {
        run(pool, &set(eco_id, "plan = 'pro'")).await?;
    }
    let now = this_month(&app).await?;
    assert_eq!((now.reactivation_micros, now.new_micros), (49 * DOLLAR, 49 * DOLLAR));
    assert_eq!(now.mrr_micros, overview_mrr(&app).await?);
    Ok(())
}

#[tokio::test]
async fn every_bad_field_is_named() -> Result<()> {
    let app = App::start().await?;
    let bad = GetRevenueHistoryRequest { months_count: -1, currency_code: "dollars".to_owned() };
    assert_eq!(fields_at_fault(call(&app, bad).await)?, ["months_count", "currency_code"]);
    Ok(())
}

#[tokio::test]
async fn it_is_for_admins() -> Result<()> {
    let app = App::start().await?;
    let service = bearer(&settings::service_token(&[Scope::Admin])?)?;
    app.client.clone().get_revenue_history(service.request(GetRevenueHistoryRequest::default())).await?;
    for caller in [user("eco_a")?, bearer(&settings::service_token(&[Scope::BillingRun])?)?] {
        let request = caller.request(GetRevenueHistoryRequest::default());
        let call = app.client.clone().get_revenue_history(request).await;
        assert_refused(call, Code::PermissionDenied, "PERMISSION_DENIED")?;
    }
    Ok(())
}
