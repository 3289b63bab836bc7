use std::process::Stdio;

use anyhow::{Context, Result};
use chrono::NaiveDate;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::{
    curl::replay,
    support::{Dev, FREE_PORTS, argument, claims, nexus, text},
};

/// One test for all about demo data, because making it takes a while.
#[tokio::test]
async fn demo_data_is_whole_after_an_interrupted_first_run_and_agrees_with_itself() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut arguments = vec!["--data-dir", argument(folder.path())?];
    arguments.extend(FREE_PORTS);
    interrupt_seeding(&arguments).await?;

    let dev = Dev::start(&arguments).await?;
    let admin = dev.text("/tokens/admin/token")?;
    let overview = dev.get("/gateway_url", "/api/admin/analytics/overview", admin).await?;
    assert_eq!(overview["total_users"], 150);
    assert_eq!(overview["users_by_plan"], json!({"free": 100, "pro": 45, "enterprise": 5}));
    assert_eq!((&overview["mrr"], &overview["mrr_usd"]), (&json!(4705), &json!("$4,705")));

    let current = |who| dev.text(who);
    let free = dev.get("/gateway_url", "/api/usage/current", current("/tokens/free/token")?).await?;
    assert_eq!((&free["plan"], &free["remaining"]), (&json!("free"), &json!(50)));
    let pro = dev.get("/gateway_url", "/api/usage/current", current("/tokens/pro/token")?).await?;
    assert_eq!((&pro["plan"], &pro["overage_calls"]), (&json!("pro"), &json!(0)));

    let pool = dev.database().await?;
    sums_agree(&pool).await?;
    for who in ["free", "pro", "enterprise"] {
        let claims = claims(dev.text(&format!("/tokens/{who}/token"))?)?;
        let email: String = sqlx::query_scalar("select email from eco_identities where eco_id = $1")
            .bind(claims["ecoId"].as_str())
            .fetch_one(&pool)
            .await?;
        assert_eq!(claims["email"], email, "{who}");
    }
    rebuilding_changes_nothing(&dev, &pool).await?;
    pool.close().await;

    // What the interrupted run made at the stand-in Stripe was found again, not made twice.
    let key = dev.text("/stripe_secret_key")?;
    for list in ["customers", "subscriptions"] {
        let page = dev.get("/stripe_url", &format!("/v1/{list}?limit=100"), key).await?;
        assert_eq!(page["data"].as_array().context("a list")?.len(), 50, "{list}");
    }
    overage_is_charged_once(&dev).await?;
    for line in dev.banner.lines().filter(|line| line.starts_with("curl ")) {
        let status = replay(line).await?;
        assert!(status.is_success(), "{status}: {line}");
    }
    dev.stop().await?;

    // Made-up accounts are not charged at a Stripe that is somebody's.
    let theirs =
        nexus().arg("dev").args(&arguments).env("STRIPE_SECRET_KEY", "sk_test_theirs").output().await?;
    let said = text(&theirs.stderr);
    assert!(!theirs.status.success() && said.contains("demo data") && said.contains("--data-dir"), "{said}");
    Ok(())
}

/// Kills a first run in the middle of making the data.
async fn interrupt_seeding(arguments: &[&str]) -> Result<()> {
    let mut command = nexus();
    command.arg("dev").args(arguments).args(["--log", "nexus=debug"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stderr.take().context("piped")?).lines();
    while let Some(line) = lines.next_line().await? {
        if line.contains("raw log is in") {
            child.kill().await?;
            return Ok(());
        }
    }
    anyhow::bail!("the run ended by itself")
}

async fn sums_agree(pool: &PgPool) -> Result<()> {
    let (rows, raw): (i64, i64) =
        sqlx::query_as("select count(*), sum(units_count)::bigint from eco_api_usage")
            .fetch_one(pool)
            .await?;
    assert!((50_000..=600_000).contains(&rows), "{rows} raw rows");
    let sum = |statement: &'static str| sqlx::query_scalar::<_, i64>(statement).fetch_one(pool);
    assert_eq!(sum("select sum(recorded_units)::bigint from eco_usage_counters").await?, raw);
    assert_eq!(sum("select sum(api_calls)::bigint from eco_usage_records").await?, raw);
    // By account and day, where the day lies wholly within the account's current period.
    let different = sum(
        "with period as (select eco_id, nexus_period_start(anchor_time, now()) as start from eco_subscriptions),
              raw as (select eco_id, event_day as day, sum(units_count) as units, count(*) as events
                      from eco_api_usage group by 1, 2),
              daily as (select d.eco_id, d.day, sum(d.units_count) as units, sum(d.event_count) as events
                        from eco_usage_daily d join period p on p.eco_id = d.eco_id
                        where d.day > (p.start at time zone 'UTC')::date group by 1, 2)
         select count(*) from daily full join (select r.* from raw r join period p on p.eco_id = r.eco_id
                                               where r.day > (p.start at time zone 'UTC')::date) raw
             using (eco_id, day)
         where daily.units is distinct from raw.units or daily.events is distinct from raw.events",
    );
    assert_eq!(different.await?, 0);
    let outside = sum("select count(*) from eco_api_usage u join eco_subscriptions s on s.eco_id = u.eco_id
         where u.period_start <> nexus_period_start(s.anchor_time, now()) or u.event_time < u.period_start");
    assert_eq!(outside.await?, 0, "raw rows are of the current periods only");
    assert_eq!(
        sum("select sum(units_count)::bigint from eco_usage_totals").await?,
        sum("select sum(units_count)::bigint from eco_usage_daily").await?
    );
    assert_eq!(sum("select count(*) from eco_usage_records where overage_units > 0").await?, 4);
    assert!(
        sum("select (current_date - min(day))::bigint from (select min(day) as day from eco_usage_daily) d")
            .await?
            >= 85
    );
    Ok(())
}

async fn rebuilding_changes_nothing(dev: &Dev, pool: &PgPool) -> Result<()> {
    let from: NaiveDate =
        sqlx::query_scalar("select raw_complete_from from eco_usage_retention").fetch_one(pool).await?;
    let rows = || {
        let statement =
            "select md5(string_agg(d::text, ',' order by d)) from eco_usage_daily d where day = $1";
        sqlx::query_scalar::<_, Option<String>>(statement).bind(from).fetch_one(pool)
    };
    let before = rows().await?;
    assert!(before.is_some(), "{from} has usage");
    let rebuilt = dev.command(&["rollup", &from.to_string()]).await?;
    assert!(rebuilt.status.success(), "{}", text(&rebuilt.stderr));
    assert_eq!(rows().await?, before);

    // The day before has rollups that no raw log could give back.
    let day = from.pred_opt().context("a day")?.to_string();
    let refused = dev.command(&["rollup", &day]).await?;
    assert!(!refused.status.success());
    assert!(text(&refused.stderr).contains("not wholly retained"), "{}", text(&refused.stderr));
    Ok(())
}

/// The four pro accounts over their limit owe $106.56: $4.35, $12.90, $31.27 (half a cent is carried), $58.04.
async fn overage_is_charged_once(dev: &Dev) -> Result<()> {
    let process = async |more: &[&str]| -> Result<Value> {
        let output = dev.command(&[&["overage", "process", "--json"], more].concat()).await?;
        anyhow::ensure!(output.status.success(), "{}", text(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let figures = |run: &Value| (run["charged"].clone(), run["total_micros"].clone());
    let owed = (json!(4), json!(106_560_000));
    let planned = process(&["--dry-run"]).await?;
    assert_eq!(figures(&planned), owed);
    assert_eq!(planned["planned_charges"].as_array().map(Vec::len), Some(4));
    assert_eq!(figures(&process(&[]).await?), owed);
    assert_eq!(figures(&process(&[]).await?), (json!(0), json!(0)));

    let key = dev.text("/stripe_secret_key")?;
    let items = dev.get("/stripe_url", "/v1/invoiceitems?limit=100", key).await?;
    let cents = items["data"].as_array().context("a list")?.iter().filter_map(|item| item["amount"].as_i64());
    assert_eq!(cents.collect::<Vec<_>>().iter().sum::<i64>(), 10_656);

    let text_form = dev.command(&["overage", "process"]).await?;
    assert!(text(&text_form.stdout).contains("0 charged, $0.00 in all"), "{}", text(&text_form.stdout));
    Ok(())
}
