//! `/api/usage/charges` and `/api/admin/…/charges`: the ledger of an account, and the arithmetic behind a charge.

use anyhow::{Context, Result};
use nexus_core::plan::Plan;
use nexus_testkit::settings::user_token;
use serde_json::json;

use crate::{
    answer::{Answer, assert_answer},
    suite::{Suite, event},
};

const CHARGES: &str = "/api/usage/charges";
const NO_CHARGE: &str = "00000000-0000-4000-8000-000000000000";

/// An account that was charged twice, and one that was not.
async fn charged() -> Result<Suite> {
    let suite = Suite::start().await?;
    suite.account("eco_owes", Plan::Pro).await?;
    suite.stripe_customer("eco_owes").await?;
    suite.account("eco_none", Plan::Pro).await?;
    for calls in [112_500, 2_500] {
        suite.record(vec![event("eco_owes", "/v1/x", 200, calls)]).await?;
        assert_eq!(suite.run_overage().await?.body["results"]["charged"], 1);
    }
    Ok(suite)
}

/// The ids of an account's charges, newest first.
async fn ids(suite: &Suite, query: &str) -> Result<(Vec<String>, Option<String>)> {
    let page = suite.get_as("eco_owes", &format!("{CHARGES}?{query}")).await?.body;
    let charges = page["charges"].as_array().context("charges")?;
    let ids = charges.iter().filter_map(|charge| charge["charge_id"].as_str().map(str::to_owned));
    Ok((ids.collect(), page["next_page_token"].as_str().map(str::to_owned)))
}

#[tokio::test]
async fn charges_are_listed_newest_first_and_in_pages() -> Result<()> {
    let suite = charged().await?;
    assert_answer!(suite.get_as("eco_owes", CHARGES).await?);
    assert_answer!(suite.get_as("eco_none", CHARGES).await?);
    let (all, end) = ids(&suite, "").await?;
    assert_eq!((all.len(), end), (2, None));
    let (first, token) = ids(&suite, "limit=1").await?;
    let token = token.context("a second page")?;
    let (second, end) = ids(&suite, &format!("limit=1&page_token={token}")).await?;
    assert_eq!(([first, second].concat(), end), (all, None));
    assert_answer!(suite.get_as("eco_none", &format!("{CHARGES}?page_token={token}")).await?);
    assert_answer!(suite.get_as("eco_owes", &format!("{CHARGES}?limit=0&page_token=a&page_token=b")).await?);
    assert_answer!(suite.get_as("eco_nobody", CHARGES).await?);
    Ok(())
}

#[tokio::test]
async fn a_charge_is_explained_to_its_account_and_to_admins_alone() -> Result<()> {
    let suite = charged().await?;
    let (all, _) = ids(&suite, "").await?;
    let newest = &all[0];
    let explained = suite.get_as("eco_owes", &format!("{CHARGES}/{newest}")).await?;
    assert_answer!(explained);
    let of_admin = suite.get_as_admin(&format!("/api/admin/charges/{newest}")).await?;
    assert_eq!((of_admin.status.as_u16(), &of_admin.body), (200, &explained.body));
    for (eco_id, charge) in [("eco_none", newest.as_str()), ("eco_owes", NO_CHARGE)] {
        let missing = suite.get_as(eco_id, &format!("{CHARGES}/{charge}")).await?;
        assert_eq!((missing.status.as_u16(), &missing.body), (404, &json!({"error": "Charge not found"})));
    }
    assert_answer!(suite.get_as_admin(&format!("/api/admin/charges/{NO_CHARGE}")).await?);
    assert_answer!(suite.get_as("eco_owes", &format!("{CHARGES}/x")).await?);
    assert_eq!(suite.get_as("eco_owes", &format!("{CHARGES}/%FF")).await?.body["field"], "charge_id");
    Ok(())
}

#[tokio::test]
async fn a_charge_whose_basis_was_not_kept_is_said_to_be_one() -> Result<()> {
    let suite = charged().await?;
    let (all, _) = ids(&suite, "").await?;
    let forget = "update eco_overage_charges set basis = null where charge_id = $1::uuid";
    sqlx::query(forget).bind(&all[0]).execute(&suite.db.pool).await?;
    assert_answer!(suite.get_as("eco_owes", &format!("{CHARGES}/{}", all[0])).await?);
    Ok(())
}

#[tokio::test]
async fn admins_see_any_accounts_charges_and_others_none() -> Result<()> {
    let suite = charged().await?;
    let own = suite.get_as("eco_owes", CHARGES).await?;
    let path = "/api/admin/accounts/eco_owes/charges";
    assert_eq!(suite.get_as_admin(path).await?.body, own.body);
    let paged = suite.get_as_admin(&format!("{path}?limit=1")).await?;
    assert_eq!(paged.body["charges"][0], own.body["charges"][0]);
    assert_answer!(suite.get_as_admin("/api/admin/accounts/eco_nobody/charges").await?);
    assert_answer!(suite.get_as_admin("/api/admin/accounts/x/charges?limit=0").await?);
    assert_answer!(suite.get_as_admin("/api/admin/accounts/x/charges").await?);
    for path in [path, &format!("/api/admin/charges/{NO_CHARGE}")] {
        assert_eq!(suite.get_as("eco_owes", path).await?.body, json!({"error": "Forbidden"}));
        let without = Answer::of(suite.request("GET", path)?).await?;
        assert_eq!((without.status.as_u16(), &without.body), (401, &json!({"error": "Unauthorized"})));
        let key = suite.api_key("eco_owes", false).await?;
        assert_eq!(suite.get(path, &key).await?.status, 401);
    }
    assert_eq!(suite.get(CHARGES, &format!("Bearer {}x", user_token("eco_owes")?)).await?.status, 401);
    Ok(())
}
