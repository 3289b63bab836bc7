//! Authentication, headers, forms, the error form, metadata.

use anyhow::{Context as _, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use stripe_sim::Config;

use crate::harness::{KEY, Sim, header, id, read};

#[tokio::test]
async fn both_authentication_schemes_are_taken() -> Result<()> {
    let sim = Sim::start().await?;
    let path = "/v1/customers";
    let basic = sim.bare(Method::GET, path).basic_auth(KEY, Some("")).send().await?;
    assert_eq!(basic.status(), 200);
    assert_eq!(sim.get(path).send().await?.status(), 200);

    let none = sim.bare(Method::GET, path).send().await?;
    assert_eq!(header(&none, "www-authenticate").as_deref(), Some("Basic realm=\"Stripe\""));
    let (status, body) = read(none).await?;
    assert_eq!((status, &body["error"]["type"]), (401, &json!("invalid_request_error")));

    for wrong in ["sk_live_4eC39HqLyjWDarjtT1zdp7dc", "pk_test_1", "sk_test_"] {
        let (status, body) = read(sim.bare(Method::GET, path).bearer_auth(wrong).send().await?).await?;
        assert_eq!(status, 401, "{wrong}");
        ensure!(!body.to_string().contains(wrong), "the key is shown: {body}");
    }
    sim.stop().await
}

#[tokio::test]
async fn a_configured_key_is_the_only_one() -> Result<()> {
    let config = Config { secret_key: Some("sk_test_mine".parse()?), ..Config::default() };
    let sim = Sim::start_with(config).await?;
    assert_eq!(sim.get("/v1/customers").send().await?.status(), 401);
    let mine = sim.bare(Method::GET, "/v1/customers").bearer_auth("sk_test_mine");
    assert_eq!(mine.send().await?.status(), 200);
    ensure!("sk_live_x".parse::<stripe_sim::SecretKey>().is_err());
    sim.stop().await
}

#[tokio::test]
async fn every_answer_names_its_request_and_version() -> Result<()> {
    let sim = Sim::start().await?;
    let mut seen = Vec::new();
    for request in [
        sim.get("/v1/customers"),
        sim.get("/v1/customers/cus_none"),
        sim.get("/v1/nowhere"),
        sim.get("/elsewhere"),
        sim.bare(Method::GET, "/v1/customers"),
    ] {
        let response = request.send().await?;
        assert_eq!(header(&response, "stripe-version").as_deref(), Some("2026-09-30.endive"));
        let request_id = header(&response, "request-id").context("request-id")?;
        ensure!(request_id.starts_with("req_") && !seen.contains(&request_id));
        seen.push(request_id);
    }
    let pinned = sim.get("/v1/customers").header("Stripe-Version", "2025-03-31.basil");
    let pinned = pinned.send().await?;
    assert_eq!(header(&pinned, "stripe-version").as_deref(), Some("2025-03-31.basil"));
    let wrong = sim.get("/v1/customers").header("Stripe-Version", "latest").send().await?;
    assert_eq!(wrong.status(), 400);
    sim.stop().await
}

#[tokio::test]
async fn an_error_has_stripes_form() -> Result<()> {
    let sim = Sim::start().await?;
    let response = sim.get("/v1/customers/cus_none").send().await?;
    let request_id = header(&response, "request-id").context("request-id")?;
    let (status, body) = read(response).await?;
    assert_eq!(status, 404);
    let error = &body["error"];
    assert_eq!(error["type"], "invalid_request_error");
    assert_eq!(error["code"], "resource_missing");
    assert_eq!(error["param"], "id");
    assert_eq!(error["message"], "No such customer: 'cus_none'");
    assert_eq!(error["doc_url"], "https://docs.stripe.com/error-codes/resource-missing");
    let log = error["request_log_url"].as_str().context("request_log_url")?;
    ensure!(log.contains(&request_id));

    let (status, _) = read(sim.get("/v1/nowhere").send().await?).await?;
    assert_eq!(status, 404);
    sim.stop().await
}

type Form<'a> = &'a [(&'a str, &'a str)];

#[tokio::test]
async fn a_wrong_parameter_is_named() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    let customer = customer.as_str();
    let cases: &[(&str, Form<'_>, &str, Option<&str>)] = &[
        ("customers", &[("emial", "a@b")], "emial", Some("parameter_unknown")),
        ("customers", &[("email", "nobody")], "email", Some("email_invalid")),
        ("customers", &[("email[x]", "a@b")], "email", Some("parameter_unknown")),
        ("customers", &[("a[b", "1")], "a[b", Some("parameter_unknown")),
        ("invoiceitems", &[("amount", "1")], "customer", Some("parameter_missing")),
        ("invoiceitems", &[("customer", customer)], "amount", Some("parameter_missing")),
        ("invoiceitems", &[("customer", customer), ("amount", "1")], "currency", Some("parameter_missing")),
        (
            "invoiceitems",
            &[("customer", customer), ("amount", "1.5")],
            "amount",
            Some("parameter_invalid_integer"),
        ),
        (
            "invoiceitems",
            &[("customer", customer), ("amount", "100000000")],
            "amount",
            Some("amount_too_large"),
        ),
        ("invoiceitems", &[("customer", customer), ("amount", "1"), ("currency", "xxx")], "currency", None),
        (
            "invoiceitems",
            &[("customer", customer), ("amount", "1"), ("unit_amount_decimal", "1")],
            "amount",
            Some("parameters_exclusive"),
        ),
        (
            "invoiceitems",
            &[("customer", customer), ("amount", "1"), ("currency", "usd"), ("period[start]", "1")],
            "period[end]",
            Some("parameter_missing"),
        ),
        (
            "subscriptions",
            &[("customer", customer), ("items[0][prise]", "p")],
            "items[0][price]",
            Some("parameter_missing"),
        ),
        (
            "invoices",
            &[("customer", customer), ("pending_invoice_items_behavior", "all")],
            "pending_invoice_items_behavior",
            None,
        ),
        ("customers", &[("expand[]", "email")], "expand", None),
    ];
    for (collection, form, param, code) in cases {
        let path = format!("/v1/{collection}");
        let (status, body) = read(sim.post(&path, form).send().await?).await?;
        assert_eq!(status, 400, "{form:?}: {body}");
        assert_eq!(body["error"]["param"], *param, "{form:?}: {body}");
        assert_eq!(body["error"]["code"].as_str(), *code, "{form:?}: {body}");
    }
    let json = sim.bare(Method::POST, "/v1/customers").bearer_auth(KEY).json(&json!({ "name": "x" }));
    assert_eq!(json.send().await?.status(), 400);
    let state = sim.read("/_sim/state").await?;
    assert_eq!(state["customers"].as_array().map(Vec::len), Some(1));
    assert_eq!(state["invoiceitems"], json!([]));
    sim.stop().await
}

#[tokio::test]
async fn metadata_is_merged_and_limited() -> Result<()> {
    let sim = Sim::start().await?;
    let created =
        sim.create("/v1/customers", &[("metadata[eco_id]", "eco_1"), ("metadata[plan]", "pro")]).await?;
    let path = format!("/v1/customers/{}", id(&created)?);
    let metadata = async |form: &[(&str, &str)]| -> Result<Value> {
        Ok(sim.create(&path, form).await?["metadata"].clone())
    };
    assert_eq!(
        metadata(&[("metadata[plan]", ""), ("metadata[x]", "1")]).await?,
        json!({ "eco_id": "eco_1", "x": "1" })
    );
    assert_eq!(metadata(&[("name", "Ada")]).await?, json!({ "eco_id": "eco_1", "x": "1" }));
    assert_eq!(metadata(&[("metadata", "")]).await?, json!({}));

    let name_40 = format!("metadata[{}]", "é".repeat(40));
    let name_41 = format!("metadata[{}]", "k".repeat(41));
    let value_500 = "é".repeat(500);
    let value_501 = "v".repeat(501);
    assert_eq!(sim.post(&path, &[(&name_40, &value_500)]).send().await?.status(), 200);
    assert_eq!(sim.post(&path, &[(&name_41, "v")]).send().await?.status(), 400);
    assert_eq!(sim.post(&path, &[("metadata[k]", &value_501)]).send().await?.status(), 400);

    let names: Vec<String> = (0..50).map(|index| format!("metadata[k{index}]")).collect();
    let fifty: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "v")).collect();
    metadata(&[("metadata", "")]).await?;
    assert_eq!(sim.post(&path, &fifty).send().await?.status(), 200);
    assert_eq!(sim.post(&path, &[("metadata[one_more]", "v")]).send().await?.status(), 400);
    sim.stop().await
}
