//! `/api/usage/forecast`, `/api/usage/export`, `/api/admin/analytics/history` and `/api/admin/revenue`.

use anyhow::{Context, Result};
use chrono::{TimeDelta, Utc};
use nexus_core::plan::Plan;
use nexus_testkit::settings::user_token;
use reqwest::Response;
use serde_json::{Value, json};

use crate::{
    answer::{Answer, assert_answer},
    suite::{Suite, event, event_at},
};

const FORECAST: &str = "/api/usage/forecast";
const EXPORT: &str = "/api/usage/export";
const HISTORY: &str = "/api/admin/analytics/history";
const REVENUE: &str = "/api/admin/revenue";

#[tokio::test]
async fn what_a_period_is_expected_to_come_to() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_pro", Plan::Pro).await?;
    suite.account("eco_new", Plan::Free).await?;
    suite.record(vec![event("eco_pro", "/v1/x", 200, 150_000)]).await?;
    let ask = async |suite: &Suite| suite.get_as("eco_pro", FORECAST).await;
    let forecast = suite.until(ask, |answer| answer.body["api_calls"] == 150_000).await?;
    let mut shown = forecast.shown();
    for member in ["expected_overage_cost", "low_overage_cost", "high_overage_cost"] {
        // So much is owed already.
        let cost = shown["body"][member].as_f64().context(member)?;
        assert!(cost >= 50.0, "{member}: {cost}");
        shown["body"][member] = "[cost]".into();
    }
    let calls = |member: &str| forecast.body[member].as_i64().unwrap_or_default();
    assert!(150_000 <= calls("low_calls") && calls("low_calls") <= calls("expected_calls"), "{forecast:?}");
    assert!(calls("expected_calls") <= calls("high_calls"), "{forecast:?}");
    assert!(forecast.body["limit_reached_at"].is_string(), "{forecast:?}");
    insta::assert_json_snapshot!(shown, {
        ".body.period_start" => crate::answer::time(),
        ".body.period_end" => crate::answer::time(),
        ".body.timestamp" => crate::answer::time(),
        ".body.limit_reached_at" => crate::answer::time(),
        ".body.expected_calls" => "[calls]",
        ".body.low_calls" => "[calls]",
        ".body.high_calls" => "[calls]",
    });
    assert_answer!(suite.get_as("eco_new", FORECAST).await?);
    assert_answer!(suite.get_as("eco_nobody", FORECAST).await?);
    let close = "update eco_identities set status = 'closed', closed_time = now() where eco_id = 'eco_new'";
    sqlx::query(close).execute(&suite.db.pool).await?;
    assert_answer!(suite.get_as("eco_new", FORECAST).await?);
    Ok(())
}

#[tokio::test]
async fn calls_of_all_accounts_by_day_are_for_admins() -> Result<()> {
    let suite = Suite::start().await?;
    assert_answer!(suite.get_as_admin(HISTORY).await?);
    suite.account("eco_pro", Plan::Pro).await?;
    suite.account("eco_free", Plan::Free).await?;
    let yesterday = Utc::now() - TimeDelta::days(1);
    suite
        .record(vec![
            event_at("eco_pro", "/v1/x", 200, 100, yesterday),
            event_at("eco_free", "/v1/y", 404, 3, yesterday),
            event("eco_pro", "/v1/x", 200, 20_000),
            event("eco_free", "/v1/y", 500, 7),
            event("eco_free", "/v1/y", 302, 1),
        ])
        .await?;
    let shown = async |query: &str| -> Result<Value> {
        Ok(suite.get_as_admin(&format!("{HISTORY}{query}")).await?.body)
    };
    let body = shown("").await?;
    assert_eq!(body["period_days"], 30);
    let counts = |day: &Value| {
        ["total_calls", "successful_calls", "failed_calls"].map(|name| day[name].as_i64().unwrap_or(-1))
    };
    let days = body["history"].as_array().context("days")?;
    assert_eq!(days.iter().map(counts).collect::<Vec<_>>(), [[103, 100, 3], [20_008, 20_000, 7]]);
    assert_eq!(shown("?days=1").await?["history"], json!([days[1]]), "today alone");
    assert_eq!(shown("?days=999").await?["period_days"], 365);
    assert_answer!(suite.get_as_admin(&format!("{HISTORY}?days=0")).await?);
    assert_answer!(suite.get_as("eco_pro", HISTORY).await?);
    assert_answer!(Answer::of(suite.request("GET", HISTORY)?).await?);
    Ok(())
}

#[tokio::test]
async fn revenue_by_month_is_for_admins() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_pro", Plan::Pro).await?;
    let month = suite.get_as_admin(&format!("{REVENUE}?months=1")).await?;
    assert_eq!(month.body["months"][0]["mrr"], 49.0, "{month:?}");
    assert_answer!(month);
    let months = async |query: &str| -> Result<(Option<usize>, Value)> {
        let body = suite.get_as_admin(&format!("{REVENUE}{query}")).await?.body;
        Ok((body["months"].as_array().map(Vec::len), body["period_months"].clone()))
    };
    assert_eq!(months("").await?, (Some(12), json!(12)));
    assert_eq!(months("?months=999").await?, (Some(60), json!(60)));
    let euros = suite.get_as_admin(&format!("{REVENUE}?months=1&currency=eur")).await?;
    assert_eq!(
        (&euros.body["months"][0]["mrr"], &euros.body["months"][0]["currency"]),
        (&json!(0.0), &json!("EUR"))
    );
    assert_answer!(suite.get_as_admin(&format!("{REVENUE}?months=0&currency=euro")).await?);
    assert_answer!(suite.get_as("eco_pro", REVENUE).await?);
    assert_answer!(Answer::of(suite.request("GET", REVENUE)?).await?);
    Ok(())
}

impl Suite {
    async fn export(&self, eco_id: &str, query: &str) -> Result<Response> {
        let request = self.request("GET", &format!("{EXPORT}?{query}"))?.bearer_auth(user_token(eco_id)?);
        Ok(request.send().await?)
    }
}

/// Yesterday and today.
fn two_days() -> String {
    let today = Utc::now().date_naive();
    format!("start={}&end={}", today - TimeDelta::days(1), today + TimeDelta::days(1))
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

#[tokio::test]
async fn usage_is_exported_in_either_form_and_no_cell_is_a_formula() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    suite.account("eco_b", Plan::Pro).await?;
    let hour_ago = Utc::now() - TimeDelta::hours(1);
    suite
        .record(vec![
            event_at("eco_a", "/v1/\"x\",y", 200, 3, hour_ago),
            event_at("eco_a", "=1+1", 404, 2, hour_ago),
            event_at("eco_a", "/v1/late", 200, 1, Utc::now() - TimeDelta::minutes(1)),
            event_at("eco_b", "/v1/secret", 200, 9, hour_ago),
        ])
        .await?;
    let csv = suite.export("eco_a", &two_days()).await?;
    assert_eq!(csv.status(), 200);
    assert_eq!(header(&csv, "content-type"), Some("text/csv; charset=utf-8; header=present"));
    assert_eq!(header(&csv, "cache-control"), Some("no-store"));
    let today = Utc::now().date_naive();
    let (from, to) =
        ((today - TimeDelta::days(1)).format("%Y%m%d"), (today + TimeDelta::days(1)).format("%Y%m%d"));
    let name = format!("attachment; filename=\"usage-{from}-{to}.csv\"");
    assert_eq!(header(&csv, "content-disposition"), Some(name.as_str()));
    let csv = csv.text().await?;
    let rows: Vec<&str> = csv.split_terminator("\r\n").collect();
    assert_eq!(rows[0], "start,endpoint,method,status_class,calls,avg_response_time_ms");
    let told = |row: &str| row.split_once(',').map(|(_, rest)| rest.to_owned()).unwrap_or_default();
    let told: Vec<String> = rows[1..].iter().map(|row| told(row)).collect();
    assert_eq!(told, ["\"/v1/\"\"x\"\",y\",GET,2,3,150", "'=1+1,GET,4,2,150", "/v1/late,GET,2,1,150"]);

    let lines = suite.export("eco_a", &format!("{}&format=ndjson", two_days())).await?;
    assert_eq!(header(&lines, "content-type"), Some("application/x-ndjson"));
    let lines = lines.text().await?;
    let lines: Vec<Value> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert_eq!((lines.len(), &lines[1]["endpoint"], &lines[1]["calls"]), (3, &json!("=1+1"), &json!(2)));
    let start = lines[0]["start"].as_str().context("an hour")?.parse::<chrono::DateTime<Utc>>()?;
    assert!(start <= hour_ago && hour_ago < start + TimeDelta::hours(1), "{start}");

    let none = suite.export("eco_a", "start=2026-01-01&end=2026-01-02").await?;
    assert_eq!(none.text().await?, format!("{}\r\n", rows[0]));
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_exported_is_refused_before_it_begins() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    assert_answer!(suite.get_as("eco_a", EXPORT).await?);
    assert_answer!(suite.get_as("eco_a", &format!("{EXPORT}?start=2026-11-31&end=x&format=xls")).await?);
    for range in [
        "start=2026-11-02&end=2026-11-01",
        "start=2026-11-01&end=2026-11-01",
        "start=2024-01-01&end=2026-01-01",
    ] {
        let refused = suite.get_as("eco_a", &format!("{EXPORT}?{range}")).await?;
        assert_eq!((refused.status.as_u16(), &refused.body["field"]), (400, &json!("end")), "{range}");
    }
    assert_answer!(suite.get_as("eco_nobody", &format!("{EXPORT}?{}", two_days())).await?);
    assert_answer!(Answer::of(suite.request("GET", EXPORT)?).await?);
    Ok(())
}

/// Two thousand endpoints in each of 50 hours, with long names: more than lies between a server and who does not read.
#[tokio::test]
async fn an_export_that_breaks_off_is_no_whole_one() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    sqlx::query("select nexus_ensure_usage_partitions(current_date - 3, current_date)")
        .execute(&suite.db.pool)
        .await?;
    let many = "insert into eco_usage_hourly
                select 'eco_a', date_trunc('hour', now()) - make_interval(hours => h), '/' || repeat('x', 250) || r, 'GET', 2, 1, 1, 1, '{}'
                from generate_series(1, 50) h, generate_series(1, 2000) r";
    sqlx::query(many).execute(&suite.db.pool).await?;
    let today = Utc::now().date_naive();
    let range = format!("start={}&end={}", today - TimeDelta::days(3), today + TimeDelta::days(1));

    let whole = suite.export("eco_a", &range).await?.text().await?;
    assert_eq!(whole.lines().count(), 100_001);

    let mut broken = suite.export("eco_a", &range).await?;
    assert_eq!(broken.status(), 200);
    let mut read = broken.chunk().await?.context("a beginning")?.len();
    suite.cut_database();
    let ended = loop {
        match broken.chunk().await {
            Ok(Some(chunk)) => read += chunk.len(),
            end => break end,
        }
    };
    assert!(ended.is_err(), "it ends as if it were whole, after {read} of {} bytes", whole.len());
    assert!(read < whole.len());
    Ok(())
}
