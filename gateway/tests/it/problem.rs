//! The same errors as problems of RFC 9457.

use anyhow::Result;
use nexus_core::plan::Plan;
use nexus_testkit::settings::user_token;

use crate::{
    answer::{Answer, assert_answer},
    suite::{Suite, event},
};

const PROBLEM: &str = "application/problem+json";

#[tokio::test]
async fn errors_come_as_problems_where_a_client_asks_for_them() -> Result<()> {
    let mut suite = Suite::start().await?;
    suite.account("eco_free", Plan::Free).await?;
    suite.record(vec![event("eco_free", "/v1/x", 200, 1_000)]).await?;
    let key = suite.api_key("eco_free", false).await?;
    let ask = async |suite: &Suite, method: &str, path: &str, authorization: String| {
        let request = suite.request(method, path)?.header("accept", format!("application/json, {PROBLEM}"));
        Answer::of(request.header("authorization", authorization)).await
    };
    let user = format!("Bearer {}", user_token("eco_free")?);
    assert_answer!(ask(&suite, "GET", "/api/usage/history?days=0", user.clone()).await?);
    assert_answer!(ask(&suite, "GET", "/api/usage/current", "Bearer x".to_owned()).await?);
    assert_answer!(ask(&suite, "GET", "/api/admin/analytics/overview", user.clone()).await?);
    assert_answer!(ask(&suite, "GET", "/api/nothing", user.clone()).await?);
    assert_answer!(ask(&suite, "POST", "/api/usage/current", user.clone()).await?);
    let refused = ask(&suite, "GET", "/api/secure/ping", key).await?;
    let mut shown = refused.shown();
    shown["headers"]["retry-after"] = "[seconds]".into();
    insta::assert_json_snapshot!(shown, {
        ".body.period_end" => crate::answer::time(),
        ".headers[\"x-ratelimit-reset\"]" => crate::answer::time(),
        ".headers[\"ratelimit-policy\"]" => crate::answer::seconds(),
        ".headers.ratelimit" => crate::answer::seconds(),
    });
    suite.stop_usage().await?;
    assert_answer!(ask(&suite, "GET", "/api/usage/current", user.clone()).await?);
    let good = ask(&suite, "GET", "/api/usage/overage", user).await?;
    assert_eq!((good.status.as_u16(), good.header("content-type")), (200, Some("application/json")));
    Ok(())
}

#[tokio::test]
async fn who_refuses_problems_or_asks_for_something_else_gets_the_plain_form() -> Result<()> {
    let suite = Suite::start().await?;
    for accept in ["application/json", "*/*", "application/problem+json;q=0", "application/problem+jsonx"] {
        let answer = Answer::of(suite.request("GET", "/api/nothing")?.header("accept", accept)).await?;
        assert_eq!(answer.header("content-type"), Some("application/json"), "{accept}");
        assert_eq!(answer.body, serde_json::json!({"error": "Not found"}));
    }
    Ok(())
}
