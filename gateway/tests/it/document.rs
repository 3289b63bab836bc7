//! `/openapi.json` and `/docs`: the document holds all routes and no others, and what it refers to.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use nexus_core::plan::Plan;
use reqwest::header::ALLOW;
use serde_json::Value;

use crate::{answer::Answer, suite::Suite};

const METHODS: [&str; 3] = ["get", "put", "post"];

async fn document(suite: &Suite) -> Result<Value> {
    let answer = Answer::of(suite.request("GET", "/openapi.json")?).await?;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, Some("application/json")));
    Ok(answer.body)
}

/// The document's operations: path, method, what it says.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().into_iter().flatten();
    let all = paths.flat_map(|(path, item)| {
        let operations = item.as_object().into_iter().flatten();
        operations.map(|(method, operation)| (path.clone(), method.clone(), operation.clone()))
    });
    all.collect()
}

/// The paths that axum's router knows; its `Debug` form is the only way to see them.
fn routed() -> BTreeSet<String> {
    let router = format!("{:?}", nexus_gateway::routes::api().split_for_parts().0);
    let (_, routes) = router.split_once("paths: {").unwrap_or_default();
    let (routes, _) = routes.split_once("fallback_router").unwrap_or_default();
    let quoted = routes.split('"').skip(1).step_by(2);
    quoted.filter(|text| text.starts_with('/')).map(str::to_owned).collect()
}

#[tokio::test]
async fn every_route_is_in_the_document_and_every_operation_has_a_route() -> Result<()> {
    let suite = Suite::start().await?;
    let mut described = BTreeMap::<String, BTreeSet<String>>::new();
    for (path, method, _) in operations(&document(&suite).await?) {
        assert!(METHODS.contains(&method.as_str()), "{method} {path}");
        described.entry(path).or_default().insert(method.to_uppercase());
    }
    let paths = routed();
    assert!(paths.len() > 25, "axum tells its routes in another form: {paths:?}");
    assert_eq!(described.keys().cloned().collect::<BTreeSet<_>>(), paths);
    for (path, methods) in described {
        let at = path.replace("{id}", "eco_a").replace("{charge_id}", "x");
        assert!(!at.contains('{'), "{path}");
        // A method that no route has is answered with those that this one has.
        let refused = suite.request("DELETE", &at)?.send().await?;
        let allowed = refused.headers().get(ALLOW).context(path.clone())?.to_str()?;
        let allowed: BTreeSet<String> =
            allowed.split(',').map(str::to_owned).filter(|m| m != "HEAD").collect();
        assert_eq!(allowed, methods, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn every_operation_says_who_may_call_what_it_takes_and_each_answer() -> Result<()> {
    let suite = Suite::start().await?;
    let document = document(&suite).await?;
    assert_eq!(document["openapi"], "3.1.0");
    let mut ids = BTreeSet::new();
    for (path, method, operation) in operations(&document) {
        let what = format!("{method} {path}");
        assert!(operation["summary"].is_string() && operation["security"].is_array(), "{what}");
        let open = ["/healthz", "/readyz", "/openapi.json", "/webhooks/stripe"].contains(&path.as_str());
        assert_eq!(operation["security"].as_array().is_some_and(Vec::is_empty), open, "{what}");
        assert!(ids.insert(operation["operationId"].to_string()), "{what}");
        let answers = operation["responses"].as_object().context(what.clone())?;
        assert!(["200", "429", "500", "503"].iter().all(|status| answers.contains_key(*status)), "{what}");
        for (status, answer) in answers {
            assert!(answer["description"].as_str().is_some_and(|text| !text.is_empty()), "{what} {status}");
            assert!(answer["headers"]["x-request-id"].is_object(), "{what} {status}");
            let content = &answer["content"];
            match status.as_bytes()[0] {
                b'2' => assert!(content.is_object(), "{what} {status}"),
                b'3' => assert!(content.is_null(), "{what} {status}"),
                _ => {
                    let forms = ["application/json", "application/problem+json"];
                    assert!(forms.iter().all(|form| content[form]["schema"].is_object()), "{what} {status}");
                }
            }
        }
    }
    Ok(())
}

fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            if let Some(reference) = members.get("$ref").and_then(Value::as_str) {
                found.insert(reference.to_owned());
            }
            members.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[tokio::test]
async fn what_the_document_refers_to_is_in_it_and_all_shapes_are_used() -> Result<()> {
    let suite = Suite::start().await?;
    let document = document(&suite).await?;
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    let shapes = document["components"]["schemas"].as_object().context("shapes")?;
    let there: BTreeSet<String> = shapes.keys().map(|name| format!("#/components/schemas/{name}")).collect();
    assert_eq!(found, there);
    Ok(())
}

/// Answers have no members that the document does not have, nor lack those that it has.
#[tokio::test]
async fn answers_are_as_the_document_says() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    suite.record(vec![crate::suite::event("eco_a", "/v1/x", 200, 100_100)]).await?;
    let document = document(&suite).await?;
    let get = async |path: &str| suite.get_as("eco_a", path).await;
    for (path, answer) in [
        ("/api/usage/current", get("/api/usage/current").await?),
        ("/api/usage/overage", get("/api/usage/overage").await?),
        ("/api/usage/spend-cap", get("/api/usage/spend-cap").await?),
        ("/api/usage/history", get("/api/usage/history").await?),
        ("/api/subscriptions/current", get("/api/subscriptions/current").await?),
        ("/api/keys/list", get("/api/keys/list").await?),
        ("/api/admin/analytics/overview", suite.get_as_admin("/api/admin/analytics/overview").await?),
        ("/api/admin/accounts/{id}", suite.get_as_admin("/api/admin/accounts/eco_a").await?),
    ] {
        assert_eq!(answer.status, 200, "{path}");
        let shape =
            &document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        let name = shape["$ref"].as_str().and_then(|at| at.rsplit('/').next()).context(path)?;
        let members = |value: &Value| value.as_object().map(|m| m.keys().cloned().collect::<BTreeSet<_>>());
        let said = members(&document["components"]["schemas"][name]["properties"]);
        assert_eq!(members(&answer.body), said, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn the_docs_page_takes_everything_from_this_server() -> Result<()> {
    let suite = Suite::start().await?;
    let page = suite.request("GET", "/docs")?.send().await?;
    assert_eq!(page.status(), 200);
    let policy = page.headers()["content-security-policy"].to_str()?.to_owned();
    assert!(
        policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"),
        "{policy}"
    );
    let page = page.text().await?;
    assert!(!page.contains("//") && !page.contains("<style") && !page.contains(" style="), "{page}");
    assert_eq!(page.matches("<script").count(), page.matches("<script src=\"/docs/").count(), "{page}");
    for (kind, attribute) in [("text/javascript", "src=\""), ("text/css", "rel=\"stylesheet\" href=\"")] {
        let files = page.split(attribute).skip(1).filter_map(|rest| rest.split('"').next());
        for file in files.collect::<Vec<_>>() {
            let answer = suite.request("GET", file)?.send().await?;
            assert_eq!(answer.status(), 200, "{file}");
            assert!(answer.headers()["content-type"].to_str()?.starts_with(kind), "{file}: {answer:?}");
            assert!(!answer.bytes().await?.is_empty(), "{file}");
        }
    }
    for file in ["/docs/index.html", "/docs/swagger-initializer.js", "/docs/..%2fsecrets"] {
        assert_eq!(Answer::of(suite.request("GET", file)?).await?.status, 404, "{file}");
    }
    Ok(())
}

#[tokio::test]
async fn a_tracked_answer_says_where_the_account_stands_by_headers_of_the_document() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Free).await?;
    let key = suite.api_key("eco_a", false).await?;
    let document = document(&suite).await?;
    let answers = &document["paths"]["/api/secure/ping"]["get"]["responses"];
    let pong = suite.get("/api/secure/ping", &key).await?;
    suite.record(vec![crate::suite::event("eco_a", "/v1/x", 200, 1_000)]).await?;
    let refused = suite
        .until(async |suite| suite.get("/api/secure/ping", &key).await, |answer| answer.status == 429)
        .await?;
    for (answer, status) in [(&pong, "200"), (&refused, "429")] {
        assert_eq!(answer.status.as_str(), status);
        let described = answers[status]["headers"].as_object().context("headers")?;
        for name in [
            "x-ratelimit-limit",
            "x-ratelimit-remaining",
            "x-ratelimit-reset",
            "ratelimit-policy",
            "ratelimit",
        ] {
            assert!(answer.header(name).is_some() && described.contains_key(name), "{name} of {status}");
        }
        assert_eq!(answer.header("retry-after").is_some(), described.contains_key("retry-after"), "{status}");
    }
    Ok(())
}
