//! What the pages say of accounts that are not as most are: closed, refused, without an account, with bills to pay.

use anyhow::{Context, Result};
use futures::StreamExt;
use nexus_core::plan::Plan;
use nexus_testkit::{seed, settings::ADMIN};
use serde_json::{Value, json};
use stripe_webhook::Webhook;

use crate::{
    answer::Answer,
    suite::{Suite, WEBHOOK_SECRET, event},
    visitor::Visitor,
};

const CLOSE: &str = "update eco_identities set status = 'closed', closed_time = now() where eco_id = 'eco_a'";
const REFUSED: &str = r#"data-figure="refusal">"#;

/// What the usage page says of refusals; nothing where it says nothing.
async fn refusal(suite: &Suite, eco_id: &str) -> Result<String> {
    let page = Visitor::of(suite, eco_id)?.get("/dashboard").await?;
    assert_eq!(page.status, 200, "{}", page.html);
    let (_, rest) = page.html.split_once(REFUSED).context("the place of the notice")?;
    Ok(rest.split_once('<').context("its end")?.0.to_owned())
}

/// Nothing is to come of it, so there is no forecast; all else of it shows, and nothing can be changed.
#[tokio::test]
async fn a_closed_account_is_looked_at_and_not_changed() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    suite.record(vec![event("eco_a", "/v1/x", 200, 105_000)]).await?;
    let key = suite.api_key("eco_a", false).await?;
    let key_id = key.strip_prefix("ApiKey ").and_then(|key| key.split('.').next()).context("a key")?;
    let (owner, admin) = (Visitor::of(&suite, "eco_a")?, Visitor::of(&suite, ADMIN)?);
    let key_page = format!("/dashboard/keys/{key_id}");
    let pages = [
        (&owner, "/dashboard", "105,000", vec!["/dashboard/spend-cap"]),
        (&owner, "/dashboard/keys", key_id, vec!["Create a key"]),
        (&owner, key_page.as_str(), key_id, vec!["/rotate", "confirm=revoke"]),
        (
            &owner,
            "/dashboard/billing",
            "Overage so far",
            vec!["Change to Free", "Change to Enterprise", "plan?plan="],
        ),
        (
            &admin,
            "/admin/accounts/eco_a",
            "105,000",
            vec!["/admin/accounts/eco_a/plan", "/admin/accounts/eco_a/spend-cap"],
        ),
    ];
    for (visitor, path, says, changes) in &pages {
        let page = visitor.get(path).await?;
        assert!(page.status == 200 && page.says(says), "{path}: {}", page.html);
        assert!(changes.iter().any(|change| page.says(change)), "{path}: {changes:?}");
    }
    sqlx::query(CLOSE).execute(&suite.db.pool).await?;
    for (visitor, path, says, changes) in &pages {
        let page = visitor.get(path).await?;
        assert!(
            page.status == 200 && page.says(says) && page.says("The account is closed"),
            "{path}: {}",
            page.html
        );
        for change in changes {
            assert!(!page.says(change), "{path} offers {change}: {}", page.html);
        }
    }
    let shown = admin.get("/admin/accounts/eco_a").await?;
    assert!(
        shown.says("<dd>Closed ") && shown.says("The account is closed: nothing is to come."),
        "{}",
        shown.html
    );
    Ok(())
}

#[tokio::test]
async fn the_usage_page_says_that_calls_are_refused_when_they_are() -> Result<()> {
    let suite = Suite::start().await?;
    let is_refused = async |eco_id: &str, wished: u16| -> Result<()> {
        let key = suite.api_key(eco_id, false).await?;
        suite
            .until(async |suite| suite.get("/api/secure/ping", &key).await, |answer| answer.status == wished)
            .await?;
        Ok(())
    };
    for (eco_id, plan) in [
        ("eco_free", Plan::Free),
        ("eco_pro", Plan::Pro),
        ("eco_capped", Plan::Pro),
        ("eco_unpaid", Plan::Pro),
    ] {
        suite.account(eco_id, plan).await?;
        assert_eq!(refusal(&suite, eco_id).await?, "", "{eco_id}");
    }
    suite
        .record(vec![
            event("eco_free", "/v1/x", 200, 1_000),
            event("eco_pro", "/v1/x", 200, 100_000),
            event("eco_capped", "/v1/x", 200, 101_000),
            event("eco_unpaid", "/v1/x", 200, 105_000),
        ])
        .await?;
    // The plan bills what comes beyond.
    assert_eq!(refusal(&suite, "eco_pro").await?, "");
    is_refused("eco_pro", 200).await?;

    assert!(refusal(&suite, "eco_free").await?.starts_with("The limit of the Free plan is reached"));
    is_refused("eco_free", 429).await?;

    assert_eq!(refusal(&suite, "eco_capped").await?, "");
    let request = suite.request("PUT", "/api/usage/spend-cap")?;
    let request = request.bearer_auth(nexus_testkit::settings::user_token("eco_capped")?);
    assert_eq!(Answer::of(request.json(&json!({"spend_cap_usd": 1}))).await?.status, 200);
    let said = refusal(&suite, "eco_capped").await?;
    assert!(said.starts_with("The spend cap is reached: all 101,000 calls"), "{said}");
    is_refused("eco_capped", 429).await?;

    assert_eq!(refusal(&suite, "eco_unpaid").await?, "");
    sqlx::query("update eco_subscriptions set status = 'unpaid' where eco_id = 'eco_unpaid'")
        .execute(&suite.db.pool)
        .await?;
    let said = refusal(&suite, "eco_unpaid").await?;
    assert!(
        said.starts_with("The subscription is unpaid, so the Free plan") && said.contains("1,000 calls"),
        "{said}"
    );
    is_refused("eco_unpaid", 429).await?;
    Ok(())
}

/// The notice comes to a page that is open.
#[tokio::test]
async fn a_refusal_shows_as_it_begins() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Free).await?;
    let visitor = Visitor::of(&suite, "eco_a")?;
    let mut events = Box::pin(visitor.request("GET", "/dashboard/live")?.send().await?.bytes_stream());
    let mut next = async || -> Result<Value> {
        let event = events.next().await.context("an event")??;
        let text = std::str::from_utf8(&event)?;
        let data = text.lines().find_map(|line| line.strip_prefix("data: ")).context(text.to_owned())?;
        Ok(serde_json::from_str(data)?)
    };
    let before = next().await?;
    assert_eq!((&before["texts"]["refusal"], &before["meter"]["alarming"]), (&json!(""), &json!(false)));
    suite.record(vec![event("eco_a", "/v1/x", 200, 1_000)]).await?;
    let after = next().await?;
    let said = after["texts"]["refusal"].as_str().unwrap_or_default();
    assert!(said.starts_with("The limit of the Free plan is reached"), "{after}");
    assert_eq!(after["meter"]["alarming"], true);
    Ok(())
}

#[tokio::test]
async fn an_admin_without_an_account_is_led_to_no_page_of_one() -> Result<()> {
    let suite = Suite::start().await?;
    let admin = Visitor::of(&suite, ADMIN)?;
    let own = r#"<a href="/dashboard/keys""#;
    for path in ["/admin", "/admin/users", "/admin/billing"] {
        let page = admin.get(path).await?;
        assert!(page.status == 200 && !page.says(own), "{path}: {}", page.html);
    }
    suite.account(ADMIN, Plan::Free).await?;
    assert!(admin.get("/admin").await?.says(own));
    Ok(())
}

#[tokio::test]
async fn an_admin_sees_an_accounts_keys_and_the_last_reconciliation() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    let admin = Visitor::of(&suite, ADMIN)?;
    assert!(admin.get("/admin/accounts/eco_a").await?.says("The account has no key."));
    let key = suite.api_key("eco_a", false).await?;
    let (key_id, secret) =
        key.strip_prefix("ApiKey ").and_then(|key| key.split_once('.')).context("a key")?;
    let page = admin.get("/admin/accounts/eco_a").await?;
    assert!(page.says(key_id) && !page.says(secret), "{}", page.html);

    let before = admin.get("/admin/billing").await?;
    assert!(before.says("The records were not compared yet."), "{}", before.html);
    let csrf = before.field("csrf")?;
    let compared = admin.post("/admin/billing/compare", &[("csrf", &csrf)]).await?;
    assert_eq!(compared.status, 200, "{}", compared.html);
    let agree = admin.get("/admin/billing").await?;
    assert!(agree.says("They agree") && agree.says("<td>None</td>"), "{}", agree.html);
    sqlx::query("update eco_reconciliations set drift = '{\"ITEM_EXTRA\": 2}'")
        .execute(&suite.db.pool)
        .await?;
    let differ = admin.get("/admin/billing").await?;
    assert!(differ.says("They differ") && differ.says("2 ITEM_EXTRA"), "{}", differ.html);
    Ok(())
}

#[tokio::test]
async fn a_page_of_accounts_that_is_none_leads_to_the_last() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    let admin = Visitor::of(&suite, ADMIN)?;
    let led = admin.get("/admin/users?page=999&sort=created&q=eco").await?;
    assert_eq!((led.status.as_u16(), led.header("location")), (303, "/admin/users?q=eco&sort=created"));
    Ok(())
}

impl Suite {
    /// An event about an invoice, as Stripe sends it.
    async fn told_of(&self, id: &str, kind: &str, at: i64, invoice: &Value) -> Result<()> {
        let event =
            json!({"id": id, "object": "event", "type": kind, "created": at, "data": {"object": invoice}});
        let body = event.to_string();
        let signature = Webhook::generate_test_header(&body, WEBHOOK_SECRET, None);
        let request =
            self.request("POST", "/webhooks/stripe")?.header("stripe-signature", signature).body(body);
        assert_eq!(Answer::of(request).await?.status, 200);
        Ok(())
    }
}

#[tokio::test]
async fn invoices_are_as_stripe_last_told_of_them_whatever_the_order() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    seed::stripe_ids(&suite.db.pool, "eco_a", "cus_a", None).await?;
    let owner = Visitor::of(&suite, "eco_a")?;
    let none = owner.get("/dashboard/billing").await?;
    assert!(none.says("Stripe has told of no invoice.") && !none.says("is to be paid"), "{}", none.html);
    let invoice = |status: &str, remaining: i64| {
        json!({
            "id": "in_1", "object": "invoice", "customer": "cus_a", "number": "NX-0001", "status": status, "currency": "usd",
            "amount_due": 5_400, "amount_remaining": remaining, "attempted": status != "draft", "created": 1_790_000_000,
            "hosted_invoice_url": "https://invoice.stripe.com/i/nx1",
        })
    };
    suite.told_of("evt_2", "invoice.updated", 1_790_000_200, &invoice("open", 5_400)).await?;
    suite.told_of("evt_1", "invoice.finalized", 1_790_000_100, &invoice("draft", 5_400)).await?;
    let mut others = invoice("open", 5_400);
    (others["id"], others["customer"], others["number"]) = ("in_2".into(), "cus_b".into(), "NX-0002".into());
    suite.told_of("evt_b", "invoice.updated", 1_790_000_200, &others).await?;
    let open = owner.get("/dashboard/billing").await?;
    for says in [
        "NX-0001",
        "$54.00 of invoice",
        "Open, not collected",
        "https://invoice.stripe.com/i/nx1",
        "Pay it at Stripe",
    ] {
        assert!(open.says(says), "{says}: {}", open.html);
    }
    assert!(!open.says("NX-0002"), "another customer's: {}", open.html);
    sqlx::query("update eco_subscriptions set status = 'past_due'").execute(&suite.db.pool).await?;
    assert!(owner.get("/dashboard/billing").await?.says("The subscription is <strong>past due</strong>"));
    // Of the same second: what it came to goes before what it was.
    suite.told_of("evt_4", "invoice.updated", 1_790_000_300, &invoice("paid", 0)).await?;
    suite.told_of("evt_3", "invoice.updated", 1_790_000_300, &invoice("open", 5_400)).await?;
    sqlx::query("update eco_subscriptions set status = 'active'").execute(&suite.db.pool).await?;
    let paid = owner.get("/dashboard/billing").await?;
    assert!(paid.says(">Paid<") && !paid.says("is to be paid"), "{}", paid.html);
    Ok(())
}
