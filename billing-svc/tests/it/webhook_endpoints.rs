//! Customers' webhooks: their endpoints over gRPC.

use anyhow::{Context, Result};
use nexus_core::plan::Plan;
use nexus_kit::status;
use nexus_proto::billing::v1::*;
use nexus_testkit::{db::TestDb, seed};
use tonic::{Code, Status};

use crate::{
    receiver::Receiver,
    support::{Billing, anchor, fields, manager, runner, user},
    webhook_support::{admin, execute, settings},
};

fn told(status: &Status) -> (Code, String) {
    (status.code(), status::reason(status))
}

async fn started() -> Result<(TestDb, Billing)> {
    let db = TestDb::new().await?;
    for eco_id in ["eco_a", "eco_b"] {
        seed::account(&db.pool, eco_id, Plan::Pro, anchor()).await?;
    }
    let billing = Billing::start_with(settings(&db)).await?;
    Ok((db, billing))
}

#[tokio::test]
async fn an_endpoint_is_its_accounts_own() -> Result<()> {
    let (_db, billing) = started().await?;
    let own = billing.endpoint("eco_a", "http://127.0.0.1:9/a").await?;
    assert!(own.secret.starts_with("whsec_") && own.secret.len() == 50, "32 bytes in base64");
    let other = user("eco_b")?;
    let update = UpdateWebhookEndpointRequest { endpoint_id: own.id.clone(), ..Default::default() };
    let refused = billing.client.clone().update_webhook_endpoint(other.request(update.clone())).await;
    assert_eq!(told(&refused.err().context("refused")?), (Code::NotFound, "ENDPOINT_NOT_FOUND".into()));
    let named = UpdateWebhookEndpointRequest { eco_id: "eco_a".into(), ..update };
    let refused = billing.client.clone().update_webhook_endpoint(other.request(named.clone())).await;
    assert_eq!(refused.err().context("refused")?.code(), Code::PermissionDenied);
    let refused = billing.client.clone().update_webhook_endpoint(runner()?.request(named.clone())).await;
    assert_eq!(refused.err().context("refused")?.code(), Code::PermissionDenied, "another scope");
    for may in [manager()?, admin()?] {
        let call =
            may.request(UpdateWebhookEndpointRequest { description: Some("new".into()), ..named.clone() });
        let changed = billing.client.clone().update_webhook_endpoint(call).await?.into_inner();
        assert_eq!(changed.endpoint.context("an endpoint")?.description, "new");
    }
    let delete = DeleteWebhookEndpointRequest { endpoint_id: own.id.clone(), ..Default::default() };
    billing.client.clone().delete_webhook_endpoint(other.request(delete.clone())).await?;
    assert_eq!(billing.shown(&own).await?.url, "http://127.0.0.1:9/a", "nobody else deletes it");
    for _ in 0..2 {
        billing.client.clone().delete_webhook_endpoint(user("eco_a")?.request(delete.clone())).await?;
    }
    assert!(billing.shown(&own).await.is_err());
    billing.stop().await
}

#[tokio::test]
async fn a_repeated_creation_returns_the_endpoint_and_its_secret_while_that_signs() -> Result<()> {
    let (db, billing) = started().await?;
    let request = CreateWebhookEndpointRequest {
        url: "http://127.0.0.1:9/".into(),
        description: "ours".into(),
        event_types: vec!["usage.threshold_reached".into()],
        request_id: "0b9c0bd4-55a6-4a2e-8a3f-9d1d4c1a7f00".into(),
        ..Default::default()
    };
    let create = || async {
        let call = user("eco_a")?.request(request.clone());
        anyhow::Ok(billing.client.clone().create_webhook_endpoint(call).await?.into_inner())
    };
    let answers = futures::future::try_join_all((0..5).map(|_| create())).await?;
    assert!(answers.iter().all(|answer| *answer == answers[0] && !answer.secret.is_empty()));
    let endpoint = answers[0].endpoint.clone().context("an endpoint")?;
    assert!(endpoint.enabled);
    assert_eq!(endpoint.event_types, ["usage.threshold_reached"]);
    let rows: i64 =
        sqlx::query_scalar("select count(*) from eco_webhook_endpoints").fetch_one(&db.pool).await?;
    assert_eq!(rows, 1);

    let rotate = RotateWebhookSecretRequest {
        endpoint_id: endpoint.endpoint_id,
        grace_period_ms: Some(0),
        request_id: "7f5cbd0c-0d4c-4f6f-9c41-6a2f0f8d7a10".into(),
        ..Default::default()
    };
    let rotated = || async {
        let call = user("eco_a")?.request(rotate.clone());
        anyhow::Ok(billing.client.clone().rotate_webhook_secret(call).await?.into_inner())
    };
    let first = rotated().await?;
    assert_ne!(first.secret, answers[0].secret);
    assert_eq!(rotated().await?, first, "a repeat rotates nothing");
    assert_eq!(create().await?.secret, "", "the first secret does not sign any more");

    for other in [
        CreateWebhookEndpointRequest { url: "http://127.0.0.1:10/".into(), ..request.clone() },
        CreateWebhookEndpointRequest { event_types: Vec::new(), ..request.clone() },
    ] {
        let refused = billing.client.clone().create_webhook_endpoint(user("eco_a")?.request(other)).await;
        assert_eq!(fields(&refused.err().context("refused")?), ["request_id"]);
    }
    let other = RotateWebhookSecretRequest { grace_period_ms: None, ..rotate.clone() };
    let refused = billing.client.clone().rotate_webhook_secret(user("eco_a")?.request(other)).await;
    assert_eq!(fields(&refused.err().context("refused")?), ["request_id"]);

    execute(&db, "update eco_webhook_secrets set created_time = created_time - interval '25 hours'").await?;
    assert_eq!(rotated().await?.secret, "", "a repeat comes within a day");
    billing.stop().await
}

#[tokio::test]
async fn every_field_at_fault_is_named_at_once() -> Result<()> {
    let (_db, billing) = started().await?;
    let request = CreateWebhookEndpointRequest {
        eco_id: String::new(),
        url: "http://10.0.0.1/".into(),
        description: "x".repeat(257),
        event_types: vec!["usage.threshold_reached".into(), "webhook.test".into(), "no.such".into()],
        request_id: "1".into(),
    };
    let refused =
        billing.client.clone().create_webhook_endpoint(user("eco_a")?.request(request.clone())).await;
    let named = ["url", "description", "event_types[1]", "event_types[2]", "request_id"];
    assert_eq!(fields(&refused.err().context("refused")?), named);
    let refused = billing.client.clone().create_webhook_endpoint(manager()?.request(request)).await;
    assert_eq!(fields(&refused.err().context("refused")?)[0], "eco_id", "a service names the account");
    let unknown = CreateWebhookEndpointRequest {
        eco_id: "eco_nobody".into(),
        url: "https://example.com/".into(),
        ..Default::default()
    };
    let refused = billing.client.clone().create_webhook_endpoint(manager()?.request(unknown)).await;
    assert_eq!(told(&refused.err().context("refused")?), (Code::NotFound, "ACCOUNT_NOT_FOUND".into()));
    let rotate = RotateWebhookSecretRequest {
        endpoint_id: "1".into(),
        grace_period_ms: Some(31 * 86_400_000),
        ..Default::default()
    };
    let refused = billing.client.clone().rotate_webhook_secret(user("eco_a")?.request(rotate)).await;
    assert_eq!(fields(&refused.err().context("refused")?), ["endpoint_id", "grace_period_ms"]);
    let redeliver = RedeliverWebhookRequest { webhook_id: "msg_1".into(), ..Default::default() };
    let refused = billing.client.clone().redeliver_webhook(user("eco_a")?.request(redeliver)).await;
    assert_eq!(fields(&refused.err().context("refused")?), ["endpoint_id", "webhook_id"]);
    billing.stop().await
}

#[tokio::test]
async fn an_account_has_at_most_twenty_endpoints_and_a_closed_one_gets_none() -> Result<()> {
    let (db, billing) = started().await?;
    for _ in 0..20 {
        billing.endpoint("eco_a", "https://example.com/").await?;
    }
    let request = CreateWebhookEndpointRequest { url: "https://example.com/".into(), ..Default::default() };
    let refused =
        billing.client.clone().create_webhook_endpoint(user("eco_a")?.request(request.clone())).await;
    let too_many = (Code::FailedPrecondition, "TOO_MANY_ENDPOINTS".into());
    assert_eq!(told(&refused.err().context("refused")?), too_many);
    execute(&db, "update eco_identities set status = 'closed', closed_time = now() where eco_id = 'eco_b'")
        .await?;
    let refused = billing.client.clone().create_webhook_endpoint(user("eco_b")?.request(request)).await;
    let closed = (Code::FailedPrecondition, "ACCOUNT_CLOSED".into());
    assert_eq!(told(&refused.err().context("refused")?), closed);

    let mut seen = Vec::new();
    let mut list = ListWebhookEndpointsRequest { page_size: 7, ..Default::default() };
    loop {
        let call = user("eco_a")?.request(list.clone());
        let page = billing.client.clone().list_webhook_endpoints(call).await?.into_inner();
        seen.extend(page.endpoints.into_iter().map(|endpoint| endpoint.endpoint_id));
        if page.next_page_token.is_empty() {
            break;
        }
        list.page_token = page.next_page_token;
    }
    assert_eq!(seen.len(), 20);
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 20, "each once");
    billing.stop().await
}

#[tokio::test]
async fn an_account_sends_at_most_a_hundred_tests_a_day() -> Result<()> {
    let (db, billing) = started().await?;
    let endpoint = billing.endpoint("eco_a", "http://127.0.0.1:9/").await?;
    execute(
        &db,
        "insert into eco_webhook_messages (message_id, eco_id, event_type, payload, created_time)
         select gen_random_uuid(), 'eco_a', 'webhook.test', '{}', now() - interval '23 hours'
         from generate_series(1, 99)",
    )
    .await?;
    let request_id = "7f5cbd0c-0d4c-4f6f-9c41-6a2f0f8d7a10";
    let test = |request_id: &str| {
        let (endpoint_id, request_id) = (endpoint.id.clone(), request_id.to_owned());
        let mut client = billing.client.clone();
        async move {
            let request = SendTestWebhookRequest { endpoint_id, request_id, ..Default::default() };
            anyhow::Ok(client.send_test_webhook(user("eco_a")?.request(request)).await)
        }
    };
    let last = test(request_id).await??.into_inner().delivery.context("a delivery")?.webhook_id;
    let too_many = (Code::FailedPrecondition, "TOO_MANY_TESTS".into());
    assert_eq!(told(&test("").await?.err().context("refused")?), too_many);
    let repeated = test(request_id).await??.into_inner().delivery.context("a delivery")?.webhook_id;
    assert_eq!(repeated, last, "a repeat is none more");
    billing.test(&billing.endpoint("eco_b", "http://127.0.0.1:9/").await?).await?;
    execute(
        &db,
        "update eco_webhook_messages set created_time = now() - interval '25 hours' where payload = '{}'",
    )
    .await?;
    test("").await??;
    billing.stop().await
}

#[tokio::test]
async fn both_secrets_sign_until_the_grace_is_over() -> Result<()> {
    let (db, billing) = started().await?;
    let mut receiver = Receiver::start().await?;
    let endpoint = billing.endpoint("eco_a", &receiver.url).await?;
    let rotate = |grace_period_ms| RotateWebhookSecretRequest {
        endpoint_id: endpoint.id.clone(),
        grace_period_ms,
        ..Default::default()
    };
    let call = user("eco_a")?.request(rotate(None));
    let new = billing.client.clone().rotate_webhook_secret(call).await?.into_inner().secret;
    billing.test(&endpoint).await?;
    let heard = receiver.next().await?;
    assert_eq!((heard.signed_by(&endpoint.secret)?, heard.signed_by(&new)?), (1, 1));

    execute(&db, "update eco_webhook_secrets set expire_time = now() where expire_time is not null").await?;
    billing.test(&endpoint).await?;
    let heard = receiver.next().await?;
    assert_eq!((heard.signed_by(&endpoint.secret)?, heard.signed_by(&new)?), (0, 1));

    for _ in 0..3 {
        billing.client.clone().rotate_webhook_secret(user("eco_a")?.request(rotate(None))).await?;
    }
    let refused = billing.client.clone().rotate_webhook_secret(user("eco_a")?.request(rotate(None))).await;
    let too_many = (Code::FailedPrecondition, "TOO_MANY_SECRETS".into());
    assert_eq!(told(&refused.err().context("refused")?), too_many);
    let call = user("eco_a")?.request(rotate(Some(0)));
    let newest = billing.client.clone().rotate_webhook_secret(call).await?.into_inner().secret;
    billing.test(&endpoint).await?;
    let heard = receiver.next().await?;
    assert_eq!(heard.signed_by(&newest)?, 1);
    assert_eq!(heard.header("webhook-signature")?.split(' ').count(), 1, "no grace: no other secret signs");
    billing.stop().await
}

/// The secrets sign, so that they are kept as they are; the other services' roles may not read them.
#[tokio::test]
async fn no_other_role_may_touch_what_belongs_to_notifications() -> Result<()> {
    let db = TestDb::new().await?;
    let granted: Vec<String> = sqlx::query_scalar(
        "select r || ' ' || p || ' ' || c.relname
         from pg_class c, unnest(array['nexus_usage', 'nexus_analytics', 'public']) as r,
              unnest(array['select', 'insert', 'update', 'delete']) as p
         where c.relkind = 'r' and (c.relname like 'eco_webhook%' or c.relname in
               ('eco_usage_crossings', 'eco_usage_thresholds', 'eco_operator_notices'))
           and has_table_privilege(r, c.oid, p)",
    )
    .fetch_all(&db.pool)
    .await?;
    assert_eq!(granted, Vec::<String>::new());
    Ok(())
}
