//! `nexus charges list` and `explain`.

use anyhow::{Context, Result};
use chrono::{TimeDelta, Utc};
use nexus_core::plan::Plan;
use nexus_testkit::{
    seed,
    settings::{admin_token, user_token},
};
use serde_json::{Value, json};

use super::servers::{STRIPE_KEY, Servers, blotted, service};

/// The services, and a pro account that was charged for 4,705 calls, and for 1,234 more.
async fn with_charges() -> Result<Servers> {
    let servers = Servers::start().await?;
    seed::account(&servers.db.pool, "eco_a", Plan::Pro, Utc::now() - TimeDelta::days(3)).await?;
    let form = [("email", "a@example.com")];
    let url = format!("{}/v1/customers", servers.stripe);
    let customer: Value = nexus_testkit::http::client()
        .post(url)
        .bearer_auth(STRIPE_KEY)
        .form(&form)
        .send()
        .await?
        .json()
        .await?;
    let customer = customer["id"].as_str().context("an id")?;
    seed::stripe_ids(&servers.db.pool, "eco_a", customer, None).await?;
    for calls in [104_705, 1_234] {
        sqlx::query("select increment_api_calls('eco_a', $1)").bind(calls).execute(&servers.db.pool).await?;
        servers.says(&service()?, &["overage", "process"]).await?;
    }
    Ok(servers)
}

#[tokio::test]
async fn charges_are_listed_and_explained() -> Result<()> {
    let servers = with_charges().await?;
    let user = user_token("eco_a")?;
    let list = servers.json(&user, &["charges", "list"]).await?;
    insta::assert_json_snapshot!(list, {
        ".charges[].charge_id" => "[charge]",
        ".charges[].stripe_invoice_item_id" => "[item]",
        ".charges[].create_time" => "[time]",
        ".charges[].period_start_time" => "[time]",
        ".charges[].period_end_time" => "[time]",
    });
    let item = |i: usize| list["charges"][i]["stripe_invoice_item_id"].as_str().context("an item");
    let shown = |text: &str| -> Result<String> {
        Ok(blotted(text).replace(item(0)?, "ii_second").replace(item(1)?, "ii_first"))
    };
    let table = servers.says(&user, &["charges", "list"]).await?;
    let columns: Vec<_> = table.lines().map(|line| line.split_whitespace().count()).collect();
    assert_eq!(columns.len(), 3, "{table}");
    insta::assert_snapshot!(shown(&table)?);

    let id = list["charges"][0]["charge_id"].as_str().context("an id")?;
    for token in [&user, &admin_token()?, &service()?] {
        let explained = shown(&servers.says(token, &["charges", "explain", id]).await?)?;
        insta::allow_duplicates! { insta::assert_snapshot!("explained", explained) }
    }
    insta::assert_json_snapshot!(servers.json(&user, &["charges", "explain", id]).await?, {
        ".charge.charge_id" => "[charge]",
        ".charge.stripe_invoice_item_id" => "[item]",
        ".charge.create_time" => "[time]",
        ".charge.period_start_time" => "[time]",
        ".charge.period_end_time" => "[time]",
    });
    let one = servers.json(&user, &["charges", "list", "--limit", "1"]).await?;
    assert_eq!((&one["charges"][0]["charge_id"], &one["more"]), (&json!(id), &json!(true)));
    let foreign = servers.refuses(&user_token("eco_b")?, &["charges", "explain", id]).await?;
    assert!(foreign.contains("ExplainCharge") && foreign.contains("NotFound"), "{foreign}");
    let malformed = servers.refuses(&user, &["charges", "explain", "7"]).await?;
    assert!(malformed.contains("\n  charge_id: "), "{malformed}");
    Ok(())
}

#[tokio::test]
async fn an_account_without_charges_has_none() -> Result<()> {
    let servers = Servers::start().await?;
    seed::account(&servers.db.pool, "eco_a", Plan::Pro, Utc::now() - TimeDelta::days(3)).await?;
    let none = servers.run(&user_token("eco_a")?, &["charges", "list"]).await?;
    assert_eq!((none.stdout.as_slice(), none.stderr.as_slice()), (&b""[..], &b"No charges.\n"[..]));
    Ok(())
}
