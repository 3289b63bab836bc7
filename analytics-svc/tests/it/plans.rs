//! How the database answers each statement of the service, with enough rows that it matters: never from the raw log, and
//! by an index wherever one is meant.

use std::collections::HashSet;

use anyhow::{Context, Result, ensure};
use chrono::NaiveDate;
use nexus_analytics::{
    domain::{
        endpoints::{EndpointCursor, EndpointFilter},
        export::{ExportRange, HourCursor},
        overview::CURRENCY,
        users::{PageStart, UserCursor, UserFilter, UserSort},
    },
    store,
};
use nexus_core::id::EcoId;
use nexus_kit::db::{self, Role};
use nexus_testkit::db::TestDb;
use sqlx::{AssertSqlSafe, PgConnection};

/// Tables that grow with accounts or with time. A statement names those that it reads whole on purpose.
const BIG: [&str; 12] = [
    "eco_account_figures",
    "eco_account_mrr",
    "eco_identities",
    "eco_mrr_movements",
    "eco_overage_charges",
    "eco_subscriptions",
    "eco_usage_adjustments",
    "eco_usage_counters",
    "eco_usage_daily",
    "eco_usage_records",
    "eco_usage_segments",
    "eco_usage_totals",
];

const ACCOUNTS: i32 = 20_000;
const NOBODY_READS: &str = "eco_api_usage";

/// Accounts, each with a summary, counters and rollups, movements, segments and charges; one of them with many.
async fn seed(db: &TestDb) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(format!(
        "set session_replication_role = replica;
         insert into eco_identities (eco_id, email) select 'eco_' || n, n || '@example.com' from generate_series(1, {ACCOUNTS}) n;
         insert into eco_subscriptions (eco_id, plan, plan_version, status, anchor_time)
         select eco_id, 'pro', 1, 'active', now() - interval '10 days' from eco_identities;
         insert into eco_usage_records (eco_id, period_start, period_end, plan, plan_version, currency_code, api_calls)
         select eco_id, nexus_period_start(anchor_time, now()), nexus_period_end(anchor_time, now()), 'pro', 1, 'USD', subscription_id
         from eco_subscriptions;
         insert into eco_usage_counters (eco_id, period_start, segment, slot, recorded_units, unadmitted_units, test_units, last_event_time)
         select eco_id, period_start, 0, 1, 5, 5, 0, now() from eco_usage_records;
         insert into eco_usage_adjustments (eco_id, period_start, segment, units, reason, request_id, api_calls)
         select eco_id, period_start, 0, 1, 'x', gen_random_uuid(), 1 from eco_usage_records;
         insert into eco_usage_segments (eco_id, period_start, segment, plan, plan_version, closed_time, recorded_units, overage_units)
         select eco_id, period_start, 0, 'pro', 1, now(), 1, 0 from eco_usage_records;
         insert into eco_account_mrr (eco_id, currency_code, plan, plan_version, counts, mrr_micros, has_paid, noted_time)
         select eco_id, 'USD', 'pro', 1, true, 49000000, true, now() from eco_identities;
         insert into eco_mrr_movements (eco_id, movement_time, kind, currency_code, from_micros, to_micros, delta_micros)
         select eco_id, now() - make_interval(days => subscription_id::int % 600), 'new', 'USD', 0, 49000000, 49000000
         from eco_subscriptions;
         insert into eco_overage_charges (charge_id, attempt, eco_id, period_start, period_end, sequence, units_from, units_to,
             amount_micros, amount_minor, currency_code, status, idempotency_key, payload, stripe_invoice_item_id, finished_time)
         select gen_random_uuid(), 1, eco_id, period_start, period_end, 1, 0, 1, 10000, 1, 'USD', 'succeeded', eco_id, '{{}}', eco_id,
                now() - make_interval(days => api_calls::int % 600)
         from eco_usage_records;
         insert into eco_usage_daily (eco_id, day, route, method, status_class, units_count, event_count, latency_sum_ms)
         select eco_id, (now() at time zone 'UTC')::date - d, '/v1/x', 'GET', 2, 1, 1, 1 from eco_identities, generate_series(0, 2) d;
         insert into eco_usage_daily (eco_id, day, route, method, status_class, units_count, event_count, latency_sum_ms)
         select 'eco_7', (now() at time zone 'UTC')::date - d, '/v1/' || n, 'GET', 2, 1, 1, 1
         from generate_series(0, 90) d, generate_series(1, 20) n;
         insert into eco_usage_totals
         select (now() at time zone 'UTC')::date - d, slot, 1, 1, 0, 1, 1 from generate_series(0, 2000) d, generate_series(0, 15) slot;
         insert into eco_usage_hourly (eco_id, hour, route, method, status_class, units_count, event_count, latency_sum_ms, sketch)
         select eco_id, date_trunc('hour', now(), 'UTC') - make_interval(hours => h), '/v1/x', 'GET', 2, 1, 1, 1, '{{}}'
         from eco_identities, generate_series(0, 40, 20) h;
         insert into eco_usage_hourly (eco_id, hour, route, method, status_class, units_count, event_count, latency_sum_ms, sketch)
         select 'eco_7', date_trunc('hour', now(), 'UTC') - make_interval(hours => h), '/v1/' || n, 'GET', 2, 1, 1, 1, '{{}}'
         from generate_series(0, 700) h, generate_series(1, 20) n;
         set session_replication_role = origin;
         select nexus_compute_figures(array(select eco_id from eco_identities));"
    )))
    .execute(&db.pool)
    .await?;
    sqlx::query("vacuum analyze").execute(&db.pool).await?;
    Ok(())
}

/// A session of the service, which knows each statement that it has run.
struct Session {
    connection: PgConnection,
    seen: HashSet<String>,
}

impl Session {
    /// The plan of the one statement that was run since the last call, for these arguments.
    async fn plan(&mut self, arguments: &str) -> Result<String> {
        let run: Vec<String> = sqlx::query_scalar::<_, String>(
            "select name from pg_prepared_statements where name like 'sqlx_s_%'",
        )
        .persistent(false)
        .fetch_all(&mut self.connection)
        .await?
        .into_iter()
        .filter(|name| self.seen.insert(name.clone()))
        .collect();
        let [name] = &run[..] else { anyhow::bail!("one statement, not {run:?}") };
        let call = if arguments.is_empty() { name.clone() } else { format!("{name} ({arguments})") };
        // Not as a prepared statement of its own.
        let explain = format!("explain (costs off) execute {call}");
        let lines = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_all(&mut self.connection).await?;
        let lines: Vec<String> =
            lines.iter().map(|line| sqlx::Row::try_get::<String, _>(line, 0)).collect::<Result<_, _>>()?;
        Ok(lines.join("\n"))
    }
}

/// Fails where the plan reads the raw log, reads a big table from one end to the other but for those that are meant, or
/// does without an index that is meant.
fn check(what: &str, plan: &str, whole: &[&str], indexes: &[&str]) -> Result<()> {
    ensure!(!plan.contains(NOBODY_READS), "{what} reads the raw log:\n{plan}");
    for table in BIG.iter().filter(|table| !whole.contains(table)) {
        ensure!(!plan.contains(&format!("Seq Scan on {table}")), "{what} reads all of {table}:\n{plan}");
    }
    ensure!(!plan.contains("Seq Scan on eco_usage_hourly"), "{what} reads whole hours:\n{plan}");
    for index in indexes {
        ensure!(plan.contains(index), "{what} does without {index}:\n{plan}");
    }
    Ok(())
}

#[tokio::test]
async fn no_statement_reads_the_raw_log_and_each_has_its_index() -> Result<()> {
    let db = TestDb::new().await?;
    seed(&db).await?;
    let pool = db::pool(&db.args(), Role::Analytics)?;
    let connection = db::acquire(&pool).await?.detach();
    let mut session = Session { connection, seen: HashSet::new() };
    let ana = EcoId::parse("eco_7")?;
    let day: NaiveDate = sqlx::query_scalar("select (now() at time zone 'UTC')::date - 300")
        .persistent(false)
        .fetch_one(&mut session.connection)
        .await?;
    let at =
        |days: i64| (day + chrono::TimeDelta::days(300 + days)).and_time(chrono::NaiveTime::MIN).and_utc();

    store::accounts::exists(&mut session.connection, &ana).await?;
    check("exists", &session.plan("'eco_7'").await?, &[], &["eco_identities_pkey"])?;

    store::accounts_now::time(&mut session.connection).await?;
    check("time", &session.plan("").await?, &[], &[])?;

    store::accounts_now::totals(&mut session.connection).await?;
    check("totals", &session.plan("'USD'").await?, &[], &["eco_figure_totals"])?;

    store::accounts_now::top(&mut session.connection, None, 5).await?;
    let plan = session.plan("5, 9223372036854775807, ''").await?;
    check("top", &plan, &[], &["eco_account_figures_by_usage"])?;

    for (sort, index) in [
        (UserSort::Usage, "eco_account_figures_by_usage"),
        (UserSort::Overage, "eco_account_figures_by_overage"),
        (UserSort::Revenue, "eco_account_figures_by_revenue"),
        (UserSort::Created, "eco_account_figures_by_created"),
    ] {
        let filter = UserFilter { plan: None, status: None, prefix: String::new(), sort };
        let start = PageStart::After(UserCursor { key: 1_000, eco_id: ana.clone() });
        store::accounts_now::page(&mut session.connection, &filter, &start, 51, 20_000).await?;
        let plan = session.plan("null, null, '', 1000, 'eco_7', 51, 0").await?;
        check(&format!("page by {sort:?}"), &plan, &[], &[index])?;
        let far = PageStart::Skip(19_900);
        store::accounts_now::page(&mut session.connection, &filter, &far, 51, 20_000).await?;
        let plan = session.plan("null, null, '', 9223372036854775807, '', 51, 49").await?;
        let backward = format!("Index Scan Backward using {index}");
        check(&format!("the last page by {sort:?}"), &plan, &[], &[&backward])?;
    }

    let mut filter = UserFilter { plan: None, status: None, prefix: String::new(), sort: UserSort::Usage };
    store::accounts_now::count(&mut session.connection, &filter).await?;
    check("count", &session.plan("null, null").await?, &[], &["eco_figure_totals"])?;

    let by_prefix = ["eco_account_figures_by_id", "eco_account_figures_by_email"];
    filter.prefix = "777@".to_owned();
    store::accounts_now::count(&mut session.connection, &filter).await?;
    check("count by prefix", &session.plan("null, null, '777@'").await?, &[], &by_prefix)?;
    store::accounts_now::page(&mut session.connection, &filter, &PageStart::Skip(0), 51, 1).await?;
    let plan = session.plan("null, null, '777@', 9223372036854775807, '', 51, 0").await?;
    check("page by prefix", &plan, &[], &by_prefix)?;

    store::usage_daily::days(&mut session.connection, &ana, 30, 5).await?;
    check("days", &session.plan("'eco_7', 30, 5").await?, &[], &["eco_usage_daily_pkey"])?;

    store::usage_daily::units(&mut session.connection, &ana, 28).await?;
    check("units", &session.plan("'eco_7', 28").await?, &[], &["eco_usage_daily_pkey"])?;

    store::usage_totals::days(&mut session.connection, 365).await?;
    check("totals of days", &session.plan("365").await?, &[], &["eco_usage_totals_pkey"])?;

    let filter = EndpointFilter { eco_id: ana.clone(), days: 30 };
    let after = EndpointCursor { units: 9, route: "/".to_owned(), method: "GET".to_owned() };
    let mut endpoints =
        store::usage_daily::endpoints(&mut session.connection, &filter, Some(&after), 10).await?;
    let plan = session.plan("'eco_7', 30, 9, '/', 'GET', 10").await?;
    check("endpoints", &plan, &[], &["eco_usage_daily_pkey"])?;

    store::usage_daily::add_sketches(&mut session.connection, &filter, &mut endpoints).await?;
    let plan = session.plan("'eco_7', 30, '{/v1/1}', '{GET}'").await?;
    check("sketches", &plan, &[], &["eco_usage_daily_pkey"])?;

    let standing = store::standing::read(&mut session.connection, &ana).await?;
    assert_eq!(standing.context("an account")?.recorded, 6);
    let indexes = ["eco_usage_counters_pkey", "eco_usage_adjustments_", "eco_usage_segments_pkey"];
    check("standing", &session.plan("'eco_7'").await?, &[], &indexes)?;

    store::mrr_movements::sums(&mut session.connection, CURRENCY, day).await?;
    let plan = session.plan(&format!("'EUR', '{day}'")).await?;
    check("movements", &plan, &[], &["eco_mrr_movements_sums", "eco_account_mrr_next"])?;

    store::mrr_movements::begins(&mut session.connection, CURRENCY).await?;
    check("begins", &session.plan("'USD'").await?, &[], &["eco_mrr_movements_opening"])?;

    store::overage_charges::sums(&mut session.connection, CURRENCY, day).await?;
    let plan = session.plan(&format!("'USD', '{}'", day + chrono::TimeDelta::days(290))).await?;
    check("charges", &plan, &[], &["eco_overage_charges_sums"])?;

    store::plan_prices::currencies(&mut session.connection).await?;
    check("currencies", &session.plan("").await?, &[], &[])?;

    let range = ExportRange { eco_id: ana, start: at(-30), end: at(1) };
    let after =
        HourCursor { route: "/v1/3".to_owned(), method: "GET".to_owned(), ..HourCursor::before(at(-20)) };
    store::usage_hourly::page(&mut session.connection, &range, &after, 100).await?;
    let plan = session.plan(&format!("'eco_7', '{}', '{}', '/v1/3', 'GET', 0, 100", at(-20), at(1))).await?;
    check("hours", &plan, &[], &["eco_usage_hourly_p"])?;
    ensure!(!plan.contains("Sort"), "pages of an export are read in the order of the key:\n{plan}");
    Ok(())
}
