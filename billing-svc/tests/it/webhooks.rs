//! `HandleStripeEvent`: what is stored, and what is refused.

use anyhow::{Context, Result};
use chrono::Utc;
use nexus_kit::{auth::Scope, status};
use nexus_testkit::{db::TestDb, settings};
use serde_json::{Value, json};
use stripe_webhook::Webhook;
use tonic::Code;

use crate::support::{Billing, DEADLINE, WEBHOOK_SECRET, config, event, fields, runner, signed, until};
use nexus_client::CallOptions;
use nexus_proto::billing::v1::HandleStripeEventRequest;

const NO_STRIPE: &str = "http://127.0.0.1:9/";

async fn stored(db: &TestDb) -> Result<Vec<(String, Option<String>, Value)>> {
    let statement = "select stripe_event_id, outcome, payload from eco_stripe_events order by received_time";
    Ok(sqlx::query_as(statement).fetch_all(&db.pool).await?)
}

#[tokio::test]
async fn an_event_is_stored_once_whatever_its_type() -> Result<()> {
    let db = TestDb::new().await?;
    let billing = Billing::start(&db, NO_STRIPE).await?;
    let unknown = event("evt_1", "customer.tax_id.created", json!({ "id": "txi_1", "größe": "1.10" }));
    for duplicate in [false, true, true] {
        let answer = billing.event(&unknown).await?;
        assert_eq!((answer.stripe_event_id.as_str(), answer.duplicate), ("evt_1", duplicate));
    }
    // The first is kept as it came.
    let other = event("evt_1", "customer.tax_id.created", json!({ "id": "txi_2" }));
    assert!(billing.event(&other).await?.duplicate);
    assert_eq!(stored(&db).await?, [("evt_1".into(), Some("not_handled".into()), unknown)]);

    let all = (0..8)
        .map(|_| async { billing.event(&event("evt_2", "invoice.created", json!({"id": "in_1"}))).await });
    let answers = futures::future::try_join_all(all).await?;
    assert_eq!(answers.iter().filter(|answer| !answer.duplicate).count(), 1, "at once, too");
    assert_eq!(stored(&db).await?.len(), 2);
    billing.stop().await
}

#[tokio::test]
async fn what_stripe_did_not_sign_lately_is_refused_and_not_stored() -> Result<()> {
    let db = TestDb::new().await?;
    let billing = Billing::start(&db, NO_STRIPE).await?;
    let body = event("evt_1", "invoice.created", json!({ "id": "in_1" })).to_string();
    let send = async |payload: &str, signature: String| {
        let request = HandleStripeEventRequest { payload: payload.into(), signature };
        let refused = billing.client.clone().handle_stripe_event(runner()?.request(request)).await;
        refused.err().context("it was taken")
    };
    let now = Utc::now().timestamp();
    for (payload, signature) in [
        (body.as_str(), String::new()),
        (&body, "t=1,v1=00".to_owned()),
        (&body, Webhook::generate_test_header(&body, "whsec_other", None)),
        (&body, Webhook::generate_test_header(&body, WEBHOOK_SECRET, Some(now - 330))),
        (&body, Webhook::generate_test_header(&body, WEBHOOK_SECRET, Some(now + 330))),
        (&format!("{body} "), signed(&body)),
    ] {
        let refused = send(payload, signature.clone()).await?;
        assert_eq!(
            (refused.code(), status::reason(&refused).as_str()),
            (Code::InvalidArgument, "BAD_SIGNATURE"),
            "{signature}"
        );
    }
    for payload in ["", "{}", "not json", &event("evt_1", "invoice.created", json!({})).to_string()] {
        let refused = send(payload, signed(payload)).await?;
        assert_eq!(fields(&refused), ["payload"], "{payload}");
    }
    assert_eq!(stored(&db).await?, []);

    let request = HandleStripeEventRequest { payload: body.clone().into(), signature: signed(&body) };
    let writer = CallOptions::bearer(&settings::service_token(&[Scope::AccountsWrite])?, DEADLINE)?;
    let refused = billing.client.clone().handle_stripe_event(writer.request(request.clone())).await;
    assert_eq!(refused.map(|_| ()).map_err(|s| s.code()), Err(Code::PermissionDenied));
    billing.stop().await?;

    let mut settings = config(&db, NO_STRIPE);
    settings.stripe_webhook_secret = None;
    let billing = Billing::start_with(settings).await?;
    let refused = billing.client.clone().handle_stripe_event(runner()?.request(request)).await;
    let refused = refused.err().context("it was taken")?;
    assert_eq!(
        (refused.code(), status::reason(&refused).as_str()),
        (Code::FailedPrecondition, "NO_WEBHOOK_SECRET")
    );
    billing.stop().await
}

#[tokio::test]
async fn a_secret_is_rolled_without_losing_events() -> Result<()> {
    let db = TestDb::new().await?;
    let mut settings = config(&db, NO_STRIPE);
    settings.stripe_webhook_secret = Some(format!("whsec_new,{WEBHOOK_SECRET}").into());
    let billing = Billing::start_with(settings).await?;
    for (id, secret) in [("evt_1", "whsec_new"), ("evt_2", WEBHOOK_SECRET)] {
        let payload = event(id, "customer.tax_id.created", json!({})).to_string();
        let signature = Webhook::generate_test_header(&payload, secret, None);
        let request = HandleStripeEventRequest { payload: payload.into(), signature };
        billing.client.clone().handle_stripe_event(runner()?.request(request)).await?;
    }
    until(&db, "select count(*) = 2 from eco_stripe_events").await?;
    billing.stop().await
}
