//! Rebuilding a day, and the upkeep of partitions and leases.

use anyhow::{Context, Result};
use chrono::{NaiveDate, TimeDelta};
use nexus_core::{method, plan::Plan};
use nexus_kit::db::{self, Role};
use nexus_proto::usage::v1::UsageEvent;
use nexus_testkit::db::TestDb;
use nexus_usage::{
    Error,
    app::{maintenance, rebuild_day},
};

use crate::support::*;

#[tokio::test]
async fn a_day_is_rebuilt_from_the_raw_log() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    // Late enough in its day for all of it.
    let at = (now() - TimeDelta::days(2)).date_naive().and_hms_opt(20, 0, 0).expect("a time").and_utc();
    // In many flushes, over several hours and more buckets than a sketch has room for before it is made compact.
    for flush in 0..10 {
        let at = at - TimeDelta::minutes(20 * flush);
        let event = |i| UsageEvent {
            response_time_ms: i * 17 + i32::try_from(flush).unwrap_or(0),
            ..event_at("eco_a", at)
        };
        record_batch(&server, (0..50).map(event).collect()).await?;
    }
    let right = rollups(&db).await?;
    assert!((6..=7).contains(&right.len()), "{right:?}");
    sqlx::query("update eco_usage_daily set units_count = 1, sketch = '{}'").execute(&db.pool).await?;
    sqlx::query("update eco_usage_hourly set units_count = 1, sketch = '{}'").execute(&db.pool).await?;
    sqlx::query("update eco_usage_totals set slot = slot + 1, units_count = 1").execute(&db.pool).await?;
    let pool = db::pool(&db.args(), Role::Usage)?;
    assert_eq!(rebuild_day::run(&pool, at.date_naive()).await?, 1);
    assert_eq!(rollups(&db).await?, right);
    Ok(())
}

/// A day's totals are those of its rollup, over all accounts, slots and status classes; days are apart.
#[tokio::test]
async fn totals_are_what_the_rollups_of_all_accounts_add_up_to() -> Result<()> {
    let (db, first) = server().await?;
    let second = Server::start(db.args()).await?;
    for eco_id in ["eco_a", "eco_b", "eco_c"] {
        account(&db, eco_id, Plan::Pro).await?;
    }
    let now = now();
    let at = |days: i64| now - TimeDelta::days(days);
    for (n, (eco_id, status_code, days)) in [
        ("eco_a", 200, 1),
        ("eco_b", 204, 1),
        ("eco_b", 302, 1),
        ("eco_c", 404, 1),
        ("eco_c", 500, 2),
        ("eco_a", 200, 2),
    ]
    .into_iter()
    .enumerate()
    {
        let units_count = 10_i64.pow(u32::try_from(n)?);
        let event = UsageEvent { status_code, units_count, ..event_at(eco_id, at(days)) };
        record(if n % 2 == 0 { &first } else { &second }, event).await?;
    }
    let totals =
        "select day, sum(units_count)::bigint, sum(successful_units)::bigint, sum(failed_units)::bigint,
                         sum(event_count)::bigint
                  from eco_usage_totals group by day order by day";
    let totals =
        async || sqlx::query_as::<_, (NaiveDate, i64, i64, i64, i64)>(totals).fetch_all(&db.pool).await;
    let right =
        [(at(2).date_naive(), 110_000, 100_000, 10_000, 2), (at(1).date_naive(), 1_111, 11, 1_000, 4)];
    assert_eq!(totals().await?, right);
    let pool = db::pool(&db.args(), Role::Usage)?;
    rebuild_day::run(&pool, at(1).date_naive()).await?;
    assert_eq!(totals().await?, right);
    let added = UsageEvent { units_count: 7, ..event_at("eco_a", at(1)) };
    record(&second, added).await?;
    assert_eq!(totals().await?[1].1, 1_118, "a flush adds to what was rebuilt");
    let mut owner = nexus_kit::db::acquire(&db.pool).await?;
    sqlx::query("delete from eco_usage_totals where day = $1")
        .bind(at(2).date_naive())
        .execute(&mut *owner)
        .await?;
    sqlx::query("select nexus_rebuild_usage_totals()").execute(&mut *owner).await?;
    assert_eq!(totals().await?[0], right[0]);
    Ok(())
}

/// Each would make rows of its own, and there are more words than rows that anybody could pay for.
#[tokio::test]
async fn methods_that_are_made_up_are_one_in_the_rollups() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let at = now() - TimeDelta::hours(1);
    let made_up = (0..50).map(|i| format!("M{}", "X".repeat(i % 15)));
    let methods: Vec<String> = method::KNOWN.iter().map(|known| known.to_string()).chain(made_up).collect();
    let events = methods.iter().map(|method| UsageEvent { method: method.clone(), ..event_at("eco_a", at) });
    record_batch(&server, events.collect()).await?;
    let counted = rollups(&db).await?;
    let kept: Vec<String> = sqlx::query_scalar("select distinct method from eco_usage_hourly order by 1")
        .fetch_all(&db.pool)
        .await?;
    let expected: Vec<&str> = method::KNOWN.into_iter().chain([method::OTHER]).collect();
    assert_eq!(kept, expected);
    let raw: i64 =
        sqlx::query_scalar("select count(distinct method) from eco_api_usage").fetch_one(&db.pool).await?;
    assert_eq!(raw, i64::try_from(method::KNOWN.len() + 15)?, "the raw log keeps what it was given");

    let pool = db::pool(&db.args(), Role::Usage)?;
    rebuild_day::run(&pool, at.date_naive()).await?;
    assert_eq!(rollups(&db).await?, counted);
    let sql: Vec<String> = sqlx::query_scalar(
        "select nexus_rollup_method(m) from unnest($1::text[]) with ordinality as u (m, n) order by n",
    )
    .bind(&methods)
    .fetch_all(&db.pool)
    .await?;
    let rust: Vec<&str> = methods.iter().map(|method| method::in_rollups(method)).collect();
    assert_eq!(sql, rust);
    Ok(())
}

#[tokio::test]
async fn a_day_that_is_not_retained_is_refused() -> Result<()> {
    let (db, _server) = server().await?;
    let pool = db::pool(&db.args(), Role::Usage)?;
    let day = now().date_naive() - TimeDelta::days(60);
    sqlx::query("insert into eco_usage_daily values ('eco_a', $1, '/', 'GET', 2, 1, 1, 1, '{}')")
        .bind(day)
        .execute(&db.pool)
        .await?;
    let refusal = rebuild_day::run(&pool, day).await;
    assert!(matches!(refusal, Err(Error::DayNotRetained(d)) if d == day), "{refusal:?}");
    let kept: i64 = sqlx::query_scalar("select count(*) from eco_usage_daily").fetch_one(&db.pool).await?;
    assert_eq!(kept, 1);
    Ok(())
}

/// A day that is retained but due to be dropped, with a rollup row and a partition.
async fn old_day(db: &TestDb) -> Result<NaiveDate> {
    let day = now().date_naive() - TimeDelta::days(50);
    sqlx::query("select nexus_ensure_usage_partitions($1, $1)").bind(day).execute(&db.pool).await?;
    sqlx::query("update eco_usage_retention set raw_complete_from = $1").bind(day).execute(&db.pool).await?;
    sqlx::query("insert into eco_usage_daily values ('eco_a', $1, '/', 'GET', 2, 1, 1, 1, '{}')")
        .bind(day)
        .execute(&db.pool)
        .await?;
    Ok(day)
}

#[tokio::test]
async fn a_day_that_is_being_dropped_keeps_its_rollup() -> Result<()> {
    let db = TestDb::new().await?;
    let day = old_day(&db).await?;
    let mut drop = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query("select nexus_drop_usage_partitions($1 + 1)").bind(day).execute(&mut *drop).await?;
    let pool = db::pool(&db.args(), Role::Usage)?;
    let dropped = async {
        lock_is_waited_for(&db).await?;
        drop.commit().await?;
        anyhow::Ok(())
    };
    let (rebuilt, dropped) = tokio::join!(rebuild_day::run(&pool, day), dropped);
    dropped?;
    assert!(matches!(rebuilt, Err(Error::DayNotRetained(d)) if d == day), "{rebuilt:?}");
    let kept: i64 = sqlx::query_scalar("select count(*) from eco_usage_daily").fetch_one(&db.pool).await?;
    assert_eq!(kept, 1);
    Ok(())
}

#[tokio::test]
async fn a_rebuild_holds_up_maintenance_and_not_the_recording_of_other_days() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    record(&server, event("eco_a")).await?;
    let day = old_day(&db).await?;
    let mut rebuild = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query("select aggregate_daily_usage($1)").bind(day).execute(&mut *rebuild).await?;
    let drop = async {
        // As the owner, without a lock time-out: it waits for as long as the rebuild takes.
        let mut owner = nexus_kit::db::acquire(&db.pool).await?;
        sqlx::query("select nexus_drop_usage_partitions($1 + 1)").bind(day).execute(&mut *owner).await?;
        anyhow::Ok(())
    };
    let meanwhile = async {
        lock_is_waited_for(&db).await?;
        let recorded = tokio::time::timeout(TIMEOUT, record(&server, event("eco_a"))).await;
        rebuild.commit().await?;
        anyhow::Ok(recorded??)
    };
    let (dropped, recorded) = tokio::join!(drop, meanwhile);
    recorded?;
    dropped?;
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(2));
    Ok(())
}

#[tokio::test]
async fn temporary_tables_do_not_stand_in_for_the_catalogue() -> Result<()> {
    let db = TestDb::new().await?;
    let day = old_day(&db).await?;
    let pool = db::pool(&db.args(), Role::Usage)?;
    let mut connection = nexus_kit::db::acquire(&pool).await?;
    sqlx::query("create temporary table pg_inherits (inhrelid oid, inhparent oid)")
        .execute(&mut *connection)
        .await?;
    let dropped: i32 = sqlx::query_scalar("select nexus_drop_usage_partitions($1 + 1)")
        .bind(day)
        .fetch_one(&mut *connection)
        .await?;
    assert_eq!(dropped, 1);
    Ok(())
}

#[tokio::test]
async fn maintenance_makes_and_drops_partitions_and_deletes_settled_leases() -> Result<()> {
    let db = TestDb::new().await?;
    let today = now().date_naive();
    let days = |back: i64| today - TimeDelta::days(back);
    sqlx::query("select nexus_ensure_usage_partitions($1, $1)").bind(days(50)).execute(&db.pool).await?;
    let of = |day: NaiveDate| format!("eco_api_usage_p{}", day.format("%Y%m%d"));
    let ahead = of(days(-7));
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("drop table {ahead}"))).execute(&db.pool).await?;
    // More old ones than are deleted at once.
    sqlx::query(
        "insert into eco_quota_leases (lease_id, eco_id, period_start, period_end, granted_units)
         select gen_random_uuid(), 'eco_old', now() - interval '33 days', now() - interval '49 hours', 1
         from generate_series(1, 25000)
         union all
         select gen_random_uuid(), 'eco_new', now() - interval '31 days', now() - interval '47 hours', 1",
    )
    .execute(&db.pool)
    .await?;
    let pool = db::pool(&db.args(), Role::Usage)?;
    // Somebody reads what is to be dropped: that fails, and all else is done.
    let mut reader = db::begin(&db.pool).await?;
    sqlx::query("select count(*) from eco_api_usage").execute(&mut *reader).await?;
    let failed = maintenance::once(&pool, 45).await.err().context("it is being read")?;
    assert!(db::is_busy(&failed), "{failed}");
    let leases: Vec<String> =
        sqlx::query_scalar("select eco_id from eco_quota_leases").fetch_all(&db.pool).await?;
    assert_eq!(leases, ["eco_new"]);
    reader.rollback().await?;
    maintenance::once(&pool, 45).await?;

    let exists = async |name: String| {
        sqlx::query_scalar::<_, bool>("select to_regclass($1) is not null")
            .bind(name)
            .fetch_one(&db.pool)
            .await
    };
    assert!(exists(ahead).await?);
    assert!(!exists(of(days(50))).await?);
    assert!(exists(of(days(36))).await?);
    Ok(())
}
