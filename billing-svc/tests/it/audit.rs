//! The audit log: each kind of change is there with whoever made it, and no service can alter it.

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use nexus_core::plan::Plan as CorePlan;
use nexus_kit::db::{self, Role};
use nexus_proto::{
    billing::v1::{
        AdjustUsageRequest, AuditEntry, ChangePlanRequest, CloseAccountRequest, CreateAccountRequest,
        DeleteWebhookEndpointRequest, ListAuditLogRequest, PlanPrice, PlanVersion,
        RotateWebhookSecretRequest, SetSpendCapRequest, SetUsageThresholdsRequest,
        UpdateWebhookEndpointRequest, UpsertPlanRequest, UsageThresholds,
    },
    common::v1::Plan,
};
use nexus_testkit::{db::TestDb, seed, settings};
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    support::{Billing, Sim, anchor, manager, record, user},
    webhook_support,
};

async fn entries(billing: &Billing, request: ListAuditLogRequest) -> Result<(Vec<AuditEntry>, String)> {
    let answer = billing.client.clone().list_audit_log(user(settings::ADMIN)?.request(request)).await?;
    let answer = answer.into_inner();
    Ok((answer.entries, answer.next_page_token))
}

/// Entries of a kind about an account, oldest first: actor, action, before, after.
async fn of(billing: &Billing, eco_id: &str, subject: &str) -> Result<Vec<(String, String, Value, Value)>> {
    let request = ListAuditLogRequest { eco_id: eco_id.to_owned(), page_size: 1_000, ..Default::default() };
    let (mut all, _) = entries(billing, request).await?;
    all.reverse();
    let json = |text: &str| if text.is_empty() { Ok(Value::Null) } else { serde_json::from_str(text) };
    all.into_iter()
        .filter(|entry| entry.subject == subject)
        .map(|entry| Ok((entry.actor, entry.action, json(&entry.before_json)?, json(&entry.after_json)?)))
        .collect()
}

#[tokio::test]
async fn each_change_is_there_with_whoever_made_it() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    let customer = sim.customer().await?;
    let create = CreateAccountRequest {
        eco_id: "eco_a".to_owned(),
        plan: Plan::Pro.into(),
        stripe_customer_id: customer,
        ..CreateAccountRequest::default()
    };
    billing.client.clone().create_account(manager()?.request(create)).await?;
    let manager_is = of(&billing, "eco_a", "account").await?.pop().context("an entry")?.0;
    ensure!(manager_is.starts_with("service:"), "{manager_is}");

    let change =
        ChangePlanRequest { eco_id: "eco_a".to_owned(), plan: Plan::Enterprise.into(), ..Default::default() };
    billing.client.clone().change_plan(user(settings::ADMIN)?.request(change)).await?;
    let changed = of(&billing, "eco_a", "subscription").await?;
    assert_eq!(changed.len(), 2);
    assert_eq!((changed[0].0.as_str(), changed[0].1.as_str()), (manager_is.as_str(), "created"));
    assert_eq!(changed[0].3["plan"], json!("pro"));
    assert_eq!(
        changed[1],
        (
            format!("user:{}", settings::ADMIN),
            "changed".to_owned(),
            json!({ "plan": "pro" }),
            json!({ "plan": "enterprise" })
        )
    );

    let adjust = AdjustUsageRequest {
        eco_id: "eco_a".to_owned(),
        delta_count: 7,
        reason: "lost by a proxy".to_owned(),
        request_id: "00000000-0000-4000-8000-000000000001".to_owned(),
        ..Default::default()
    };
    billing.client.clone().adjust_usage(user(settings::ADMIN)?.request(adjust)).await?;
    let [(actor, action, before, after)] = &of(&billing, "eco_a", "usage_adjustment").await?[..] else {
        anyhow::bail!("one adjustment")
    };
    assert_eq!((actor.as_str(), action.as_str(), before), (admin().as_str(), "created", &Value::Null));
    assert_eq!((&after["units"], &after["reason"]), (&json!(7), &json!("lost by a proxy")));

    let cap = SetSpendCapRequest {
        eco_id: "eco_a".to_owned(),
        spend_cap_micros: Some(5_000_000),
        ..Default::default()
    };
    billing.client.clone().set_spend_cap(user("eco_a")?.request(cap)).await?;
    let capped = of(&billing, "eco_a", "account").await?.pop().context("an entry")?;
    assert_eq!((capped.0.as_str(), capped.1.as_str()), ("user:eco_a", "changed"));
    assert_eq!(
        (capped.2, capped.3),
        (json!({ "spend_cap_micros": null }), json!({ "spend_cap_micros": 5_000_000 }))
    );

    let upsert = UpsertPlanRequest {
        plan: Some(PlanVersion {
            plan: Plan::Free.into(),
            included_count: 2_000,
            hard_limit: true,
            prices: vec![PlanPrice {
                currency_code: "USD".to_owned(),
                overage_per_count: 1,
                ..Default::default()
            }],
            ..PlanVersion::default()
        }),
        request_id: "00000000-0000-4000-8000-000000000002".to_owned(),
    };
    billing.client.clone().upsert_plan(user(settings::ADMIN)?.request(upsert)).await?;
    let (all, _) = entries(&billing, ListAuditLogRequest { page_size: 1_000, ..Default::default() }).await?;
    for (subject, id) in [("plan", "free 2"), ("plan_price", "free 2 USD")] {
        let entry = all.iter().find(|entry| entry.subject == subject && entry.subject_id == id);
        assert_eq!(entry.context(subject)?.actor, admin());
    }
    // A charge is billing's own doing: written down, and at Stripe.
    seed::account(&db.pool, "eco_b", CorePlan::Pro, anchor()).await?;
    let customer = sim.customer().await?;
    seed::stripe_ids(&db.pool, "eco_b", &customer, None).await?;
    record(&db, "eco_b", 101_000).await?;
    billing.run_all().await?;
    let charged = of(&billing, "eco_b", "charge").await?;
    assert_eq!(charged.len(), 2);
    assert_eq!((charged[0].0.as_str(), &charged[0].3["amount_micros"]), ("nexus_billing", &json!(1_000_000)));
    assert_eq!((&charged[1].2["status"], &charged[1].3["status"]), (&json!("pending"), &json!("succeeded")));

    let close = CloseAccountRequest { eco_id: "eco_a".to_owned(), ..Default::default() };
    billing.client.clone().close_account(manager()?.request(close)).await?;
    let closed = of(&billing, "eco_a", "account").await?.pop().context("an entry")?;
    assert_eq!((closed.2, closed.3), (json!({ "status": "active" }), json!({ "status": "closed" })));
    Ok(())
}

fn admin() -> String {
    format!("user:{}", settings::ADMIN)
}

/// Where an account is told, and at which percentages; the secrets are in none of it.
#[tokio::test]
async fn changes_of_what_accounts_are_told_are_there_without_the_secrets() -> Result<()> {
    let db = TestDb::new().await?;
    let billing = Billing::start_with(webhook_support::settings(&db)).await?;
    seed::account(&db.pool, "eco_a", CorePlan::Pro, anchor()).await?;
    let endpoint = billing.endpoint("eco_a", "http://127.0.0.1:9/").await?;
    let change = |url: &str| UpdateWebhookEndpointRequest { url: Some(url.to_owned()), ..Default::default() };
    billing.update(&endpoint, change("http://127.0.0.1:10/")).await?;
    billing.update(&endpoint, change("http://127.0.0.1:10/")).await?;
    let rotate = RotateWebhookSecretRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
    let rotated = billing.client.clone().rotate_webhook_secret(user("eco_a")?.request(rotate)).await?;
    let delete =
        DeleteWebhookEndpointRequest { endpoint_id: endpoint.id.clone(), eco_id: "eco_a".to_owned() };
    billing.client.clone().delete_webhook_endpoint(user(settings::ADMIN)?.request(delete)).await?;

    let owner = "user:eco_a".to_owned();
    let as_created =
        |url: &str| json!({ "url": url, "description": "", "event_types": [], "disabled_reason": null });
    let changed = |port: u16| json!({ "url": format!("http://127.0.0.1:{port}/") });
    let expected = [
        (owner.clone(), "created".to_owned(), Value::Null, as_created("http://127.0.0.1:9/")),
        (owner.clone(), "changed".to_owned(), changed(9), changed(10)),
        (admin(), "deleted".to_owned(), as_created("http://127.0.0.1:10/"), Value::Null),
    ];
    assert_eq!(of(&billing, "eco_a", "webhook_endpoint").await?, expected);
    let secrets = of(&billing, "eco_a", "webhook_secret").await?;
    let graces: Vec<_> = secrets.iter().map(|entry| (&entry.0, &entry.3["grace_period_ms"])).collect();
    assert_eq!(graces, [(&owner, &json!(0)), (&owner, &json!(86_400_000))]);
    for secret in [&endpoint.secret, &rotated.into_inner().secret] {
        let key = BASE64.decode(secret.strip_prefix("whsec_").context("whsec_")?)?;
        let told = "select exists (select from eco_audit_log l where l::text like '%' || $1 || '%' or l::text like '%' || encode($2, 'hex') || '%')";
        let told: bool = sqlx::query_scalar(told).bind(secret).bind(key).fetch_one(&db.pool).await?;
        assert!(!told);
    }

    let thresholds = UsageThresholds { plan: Plan::Pro.into(), percents: vec![50] };
    let set = SetUsageThresholdsRequest { thresholds: Some(thresholds) };
    billing.client.clone().set_usage_thresholds(user(settings::ADMIN)?.request(set)).await?;
    let (all, _) = entries(&billing, ListAuditLogRequest { page_size: 1, ..Default::default() }).await?;
    let entry = all.first().context("an entry")?;
    assert_eq!((entry.actor.as_str(), entry.subject_id.as_str()), (admin().as_str(), "pro"));
    assert_eq!(entry.subject, "usage_thresholds");
    assert_eq!(serde_json::from_str::<Value>(&entry.after_json)?, json!({ "percents": [50] }));
    billing.stop().await
}

#[tokio::test]
async fn pages_have_each_entry_once_and_are_for_admins() -> Result<()> {
    let db = TestDb::new().await?;
    let billing = Billing::start(&db, "http://127.0.0.1:9/").await?;
    for eco_id in ["eco_a", "eco_b", "eco_c"] {
        seed::account(&db.pool, eco_id, CorePlan::Pro, anchor()).await?;
    }
    let (all, end) =
        entries(&billing, ListAuditLogRequest { page_size: 1_000, ..Default::default() }).await?;
    ensure!(end.is_empty() && all.is_sorted_by(|a, b| a.audit_id > b.audit_id));
    let (mut paged, mut token) = (Vec::new(), String::new());
    loop {
        let request = ListAuditLogRequest { page_size: 2, page_token: token, ..Default::default() };
        let (page, next) = entries(&billing, request).await?;
        paged.extend(page);
        token = next;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(paged, all);
    let (own, _) =
        entries(&billing, ListAuditLogRequest { eco_id: "eco_b".to_owned(), ..Default::default() }).await?;
    ensure!(own.len() == 2 && own.iter().all(|entry| entry.eco_id == "eco_b"), "{own:?}");
    for caller in [user("eco_a")?, manager()?] {
        let refused =
            billing.client.clone().list_audit_log(caller.request(ListAuditLogRequest::default())).await;
        assert_eq!(refused.map(drop).map_err(|status| status.code()), Err(Code::PermissionDenied));
    }
    Ok(())
}

#[tokio::test]
async fn no_service_can_write_alter_or_delete_an_entry() -> Result<()> {
    let db = TestDb::new().await?;
    seed::account(&db.pool, "eco_a", CorePlan::Pro, anchor()).await?;
    let count = "select count(*) from eco_audit_log";
    let before: i64 = sqlx::query_scalar(count).fetch_one(&db.pool).await?;
    ensure!(before > 0);
    let statements = [
        "insert into eco_audit_log (actor, subject, action, subject_id) values ('me', 'plan', 'created', 'pro 9')",
        "update eco_audit_log set actor = 'me'",
        "delete from eco_audit_log",
        "truncate eco_audit_log",
        "alter table eco_audit_log disable trigger all",
        "drop trigger nexus_audit on eco_plans",
        "alter table eco_subscriptions disable trigger nexus_audit",
    ];
    for role in [Role::Usage, Role::Billing, Role::Analytics] {
        let pool = db::pool(&db.args(), role)?;
        for statement in statements {
            // Also once it lets itself write.
            let mut session = db::acquire(&pool).await?;
            sqlx::query("set default_transaction_read_only = off").execute(&mut *session).await?;
            let denied = sqlx::query(statement).execute(&mut *session).await;
            let code = denied
                .err()
                .and_then(|e| e.as_database_error().and_then(|e| e.code().map(|c| c.into_owned())));
            assert_eq!(code.as_deref(), Some("42501"), "{role:?}: {statement}");
        }
    }
    // Nor does its owner by mistake.
    for statement in
        ["update eco_audit_log set actor = 'me'", "delete from eco_audit_log", "truncate eco_audit_log"]
    {
        ensure!(sqlx::query(statement).execute(&db.pool).await.is_err(), "{statement}");
    }
    let after: i64 = sqlx::query_scalar(count).fetch_one(&db.pool).await?;
    assert_eq!(after, before);
    Ok(())
}
