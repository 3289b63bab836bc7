use std::process::Output;

use anyhow::Result;
use chrono::Utc;
use nexus_testkit::db::TestDb;
use sqlx::Executor;

use crate::support::{nexus, run, text};

#[tokio::test]
async fn migrate_says_what_it_applied_and_the_second_time_nothing() -> Result<()> {
    let db = TestDb::new().await?;
    db.pool.execute("drop schema public cascade; create schema public").await?;
    let first = run(&["migrate", "--database-url", db.url()]).await?;
    assert!(first.status.success(), "{}", text(&first.stderr));
    let count = nexus_kit::db::MIGRATOR.iter().count();
    let said = text(&first.stdout);
    assert_eq!(said.lines().filter(|line| line.starts_with("applied ")).count(), count, "{said}");

    let second = run(&["migrate", "--database-url", db.url()]).await?;
    assert!(text(&second.stdout).starts_with("nothing to apply"), "{}", text(&second.stdout));
    Ok(())
}

#[tokio::test]
async fn migrate_leaves_a_database_of_another_origin_as_it_is() -> Result<()> {
    let db = TestDb::new().await?;
    db.pool
        .execute("drop schema public cascade; create schema public; create table eco_plans (id int)")
        .await?;
    let refused = run(&["migrate", "--database-url", db.url()]).await?;
    let said = text(&refused.stderr);
    assert!(!refused.status.success() && said.contains("it holds `eco_plans`"), "{said}");
    let tables: i64 = sqlx::query_scalar(
        "select count(*) from pg_catalog.pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'",
    )
    .fetch_one(&db.pool)
    .await?;
    assert_eq!(tables, 1);
    Ok(())
}

#[tokio::test]
async fn rollup_rebuilds_a_day_as_the_service_does() -> Result<()> {
    let db = TestDb::new().await?;
    let today = Utc::now().date_naive();
    sqlx::query(
        "insert into eco_api_usage (event_id, eco_id, event_day, event_time, period_start, segment, units_count,
                                    endpoint, method, status_code, response_time_ms, test_mode, late)
         values (gen_random_uuid(), 'eco_a', $1::date, $1::date::timestamp at time zone 'UTC', now(), 0, 3, '/v1/things',
                 'GET', 200, 7, false, false)",
    )
    .bind(today)
    .execute(&db.pool)
    .await?;
    let rebuilt = run(&["rollup", &today.to_string(), "--database-url", db.url()]).await?;
    assert_eq!(text(&rebuilt.stdout), format!("{today}: 1 rollup rows\n"), "{}", text(&rebuilt.stderr));
    let units: i64 = sqlx::query_scalar("select units_count from eco_usage_daily where day = $1")
        .bind(today)
        .fetch_one(&db.pool)
        .await?;
    assert_eq!(units, 3);

    let refused = run(&["rollup", "2020-01-01", "--database-url", db.url()]).await?;
    let said = text(&refused.stderr);
    assert!(!refused.status.success() && said.contains("2020-01-01 is not wholly retained"), "{said}");
    Ok(())
}

#[tokio::test]
async fn servers_name_a_bad_setting() -> Result<()> {
    for (arguments, named) in [
        (&["usage", "--grpc-addr", "nowhere"][..], "--grpc-addr"),
        (&["billing", "--shutdown-grace", "long"], "--shutdown-grace"),
        (&["gateway", "--http-addr", "nowhere"], "--http-addr"),
        (&["gateway", "--otlp-endpoint", "https://collector:4317"], "--otlp-endpoint"),
        (&["rollup", "yesterday"], "DATE"),
        (&["overage", "process", "--billing-addr", "ftp://x"], "--billing-addr"),
    ] {
        let output = run(arguments).await?;
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains(named), "{arguments:?}: {said}");
    }
    Ok(())
}

#[tokio::test]
async fn a_bad_value_of_a_variable_is_told_with_the_variable() -> Result<()> {
    let told = |output: Output| (output.status.code(), text(&output.stderr));
    let bad = nexus().args(["usage"]).env("USAGE_GRPC_ADDR", "nowhere").output().await?;
    let (code, said) = told(bad);
    assert!(code == Some(1) && said.contains("'nowhere'") && said.contains("USAGE_GRPC_ADDR"), "{said}");
    let missing = nexus().args(["billing"]).env_remove("SERVICE_TOKEN_SECRET").output().await?;
    let (code, said) = told(missing);
    let all = ["SERVICE_TOKEN_SECRET", "DATABASE_URL", "STRIPE_SECRET_KEY"];
    assert!(code == Some(1) && all.iter().all(|name| said.contains(name)), "{said}");
    Ok(())
}
