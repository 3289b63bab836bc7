use anyhow::{Context, Result};
use nexus_kit::auth::Scope;
use nexus_proto::{
    common::v1::Plan,
    usage::v1::{BatchRecordUsageRequest, EventOutcome, RecordUsageRequest},
};
use nexus_testkit::settings::{admin_token, service_token, user_token};
use serde_json::{Value, json};

use super::suite::{Suite, event};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorded_call_becomes_exactly_one_invoice_item() -> Result<()> {
    let suite = Suite::start().await?;
    let free_key = suite.account("eco_free", Plan::Free).await?;
    suite.account("eco_pro", Plan::Pro).await?;

    counted_once_and_refused_at_the_limit(&suite, &free_key).await?;
    charged_once_and_then_the_difference(&suite).await?;
    shown_to_the_user_and_the_admin(&suite).await
}

async fn counted_once_and_refused_at_the_limit(suite: &Suite, key: &str) -> Result<()> {
    let mut usage = suite.usage()?;
    let user = format!("Bearer {}", user_token("eco_free")?);

    let first = RecordUsageRequest { event: Some(event("eco_free", 1)) };
    let outcome = usage.record_usage(suite.request(first.clone())?).await?.into_inner();
    assert_eq!((outcome.outcome(), outcome.duplicate_count), (EventOutcome::Accepted, 0));
    let repeat = usage.record_usage(suite.request(first)?).await?.into_inner();
    assert_eq!((repeat.outcome(), repeat.duplicate_count), (EventOutcome::Duplicate, 1));
    assert_eq!(suite.get_json("/api/usage/current", &user).await?["api_calls"], 1);

    let events = (0..989).map(|_| event("eco_free", 1)).collect();
    let batch =
        usage.batch_record_usage(suite.request(BatchRecordUsageRequest { events })?).await?.into_inner();
    assert_eq!((batch.accepted_count, batch.duplicate_count, batch.results.len()), (989, 0, 0));

    let api_key = format!("ApiKey {key}");
    for call in 991..=1_000 {
        let answer = suite.get("/api/secure/ping", &api_key).await?;
        let header = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        assert_eq!(answer.status(), 200, "call {call}");
        assert_eq!(header("x-ratelimit-limit").as_deref(), Some("1000"));
        assert_eq!(header("x-ratelimit-remaining"), Some((1_000 - call).to_string()));
    }
    let refused = suite.get("/api/secure/ping", &api_key).await?;
    assert_eq!(refused.status(), 429, "call 1,001");
    let header = |name: &str| refused.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    assert_eq!(header("x-ratelimit-remaining").as_deref(), Some("0"));
    assert!(header("retry-after").is_some_and(|s| s.parse::<i64>().is_ok_and(|s| s > 0)));
    let reset = header("x-ratelimit-reset").context("a reset")?;
    assert!(header("ratelimit-policy").is_some_and(|p| p.starts_with("\"free-monthly\";q=1000;w=")));
    assert!(header("ratelimit").is_some_and(|r| r.starts_with("\"free-monthly\";r=0;t=")));
    let body: Value = refused.json().await?;
    assert_eq!(
        (&body["error"], &body["current_usage"], &body["limit"], &body["upgrade_url"]),
        (&json!("API limit exceeded"), &json!(1000), &json!(1000), &json!("/dashboard/billing"))
    );

    let current = suite.get_json("/api/usage/current", &user).await?;
    assert_eq!(
        (&current["api_calls"], &current["remaining"]),
        (&json!(1000), &json!(0)),
        "a refused call counts nothing"
    );
    assert_eq!(
        (&body["period_end"], current["period_end"].as_str()),
        (&current["period_end"], Some(reset.as_str()))
    );
    Ok(())
}

async fn charged_once_and_then_the_difference(suite: &Suite) -> Result<()> {
    let mut usage = suite.usage()?;
    let events = (0..10_000).map(|_| event("eco_pro", 10)).collect();
    usage.batch_record_usage(suite.request(BatchRecordUsageRequest { events })?).await?;
    let more = RecordUsageRequest { event: Some(event("eco_pro", 5_000)) };
    usage.record_usage(suite.request(more)?).await?;

    let before = suite.get_json("/api/usage/overage", &format!("Bearer {}", user_token("eco_pro")?)).await?;
    assert_eq!(
        (&before["overage_calls"], &before["overage_cost_usd"], &before["invoiced"]),
        (&json!(5000), &json!(5.0), &json!(false))
    );
    assert_eq!(
        before["message"],
        "You will be charged $5.00 for 5,000 overage calls at the end of your billing period."
    );

    let run = suite.process_overage().await?;
    assert_eq!(run["success"], true);
    assert_eq!((&run["results"]["charged"], &run["results"]["total_usd"]), (&json!(1), &json!("5.00")));
    let items = suite.stripe_items().await?;
    assert_eq!(items.len(), 1, "{items:?}");
    let item = &items[0];
    assert_eq!((&item["amount"], &item["currency"]), (&json!(500), &json!("usd")));
    assert_eq!(item["description"], "API overage: 5,000 calls beyond 100k limit");
    let metadata = &item["metadata"];
    assert_eq!((&metadata["eco_id"], &metadata["overage_calls"]), (&json!("eco_pro"), &json!("5000")));
    for key in ["billing_period_start", "billing_period_end", "charge_id"] {
        assert!(metadata[key].as_str().is_some_and(|text| !text.is_empty()), "{key} in {metadata}");
    }

    let again = suite.process_overage().await?;
    assert_eq!((&again["results"]["charged"], &again["results"]["total_usd"]), (&json!(0), &json!("0.00")));
    assert_eq!(suite.stripe_items().await?.len(), 1);

    let more = RecordUsageRequest { event: Some(event("eco_pro", 2_000)) };
    usage.record_usage(suite.request(more)?).await?;
    let difference = suite.process_overage().await?;
    assert_eq!(
        (&difference["results"]["charged"], &difference["results"]["total_usd"]),
        (&json!(1), &json!("2.00"))
    );
    let cents: Vec<_> = suite.stripe_items().await?.iter().map(|i| i["amount"].clone()).collect();
    assert_eq!(cents, [json!(500), json!(200)]);
    Ok(())
}

async fn shown_to_the_user_and_the_admin(suite: &Suite) -> Result<()> {
    let user = format!("Bearer {}", user_token("eco_pro")?);
    let overage = suite.get_json("/api/usage/overage", &user).await?;
    assert_eq!((&overage["overage_cost_usd"], &overage["invoiced"]), (&json!(7.0), &json!(true)));
    assert!(
        overage["message"].as_str().is_some_and(|m| m.starts_with("You have been charged $7.00")),
        "{overage}"
    );

    let history = suite.get_json("/api/usage/history?days=7", &user).await?;
    // Midnight may have come between the calls, or after them.
    let days = history["history"].as_array().context("a list")?;
    assert_eq!(days.iter().filter_map(|day| day["total_calls"].as_i64()).sum::<i64>(), 107_000);
    let endpoints = suite.get_json("/api/usage/endpoints", &user).await?;
    assert_eq!(
        (&endpoints["endpoints"][0]["endpoint"], &endpoints["endpoints"][0]["success_rate"]),
        (&json!("/v1/reports"), &json!(1.0))
    );

    let admin = format!("Bearer {}", admin_token()?);
    let overview = suite.get_json("/api/admin/analytics/overview", &admin).await?;
    assert_eq!(
        (&overview["total_users"], &overview["mrr"], &overview["mrr_usd"]),
        (&json!(2), &json!(49), &json!("$49"))
    );
    assert_eq!(
        (&overview["overage_revenue_this_month"], &overview["total_revenue_usd"]),
        (&json!(7.0), &json!("$56.00"))
    );
    assert_eq!(overview["total_api_calls_this_month"], 108_000);
    let users = suite.get_json("/api/admin/analytics/users?plan=pro", &admin).await?;
    assert_eq!(
        (&users["users"][0]["eco_id"], &users["users"][0]["total_revenue"]),
        (&json!("eco_pro"), &json!(56.0))
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scope_opens_what_it_names_and_nothing_else() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Free).await?;
    let only_check = service_token(&[Scope::UsageCheck])?;
    let options = nexus_client::CallOptions::bearer(&only_check, std::time::Duration::from_secs(10))?;
    let refused = suite
        .usage()?
        .record_usage(options.request(RecordUsageRequest { event: Some(event("eco_a", 1)) }))
        .await;
    assert_eq!(refused.map(|_| ()).map_err(|s| s.code()), Err(tonic::Code::PermissionDenied));
    Ok(())
}
