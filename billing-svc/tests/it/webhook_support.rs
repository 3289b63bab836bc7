//! A billing-svc that may reach receivers on loopback, and calls about webhooks.

use std::time::Duration;

use anyhow::{Context, Result};
use nexus_billing::config::{Config, NotifyArgs};
use nexus_client::CallOptions;
use nexus_proto::billing::v1::*;
use nexus_testkit::{db::TestDb, settings};
use sqlx::AssertSqlSafe;
use tonic::Status;

use crate::support::{Billing, DEADLINE, config, user};

pub(crate) const NO_STRIPE: &str = "http://127.0.0.1:9/";

/// Settings that allow receivers on loopback. One that hangs does so for longer than a test takes.
pub(crate) fn settings(db: &TestDb) -> Config {
    let notify = NotifyArgs {
        webhook_allow_http: true,
        webhook_allowed_networks: "127.0.0.0/8".to_owned(),
        webhook_timeout: Duration::from_secs(100),
        ..NotifyArgs::default()
    };
    Config { notify, ..config(db, NO_STRIPE) }
}

/// Who hangs is given up; who does not has answered by then on a machine that others use, too.
pub(crate) fn impatient(db: &TestDb) -> Config {
    let mut settings = settings(db);
    settings.notify.webhook_timeout = Duration::from_secs(2);
    settings
}

pub(crate) fn admin() -> Result<CallOptions> {
    Ok(CallOptions::bearer(&settings::admin_token()?, DEADLINE)?)
}

/// An endpoint as its owner knows it.
pub(crate) struct Endpoint {
    pub(crate) eco_id: String,
    pub(crate) id: String,
    pub(crate) secret: String,
}

impl Billing {
    /// Adds an endpoint for all events.
    pub(crate) async fn endpoint(&self, eco_id: &str, url: &str) -> Result<Endpoint> {
        let request = CreateWebhookEndpointRequest { url: url.to_owned(), ..Default::default() };
        let answer = self.client.clone().create_webhook_endpoint(user(eco_id)?.request(request)).await?;
        let CreateWebhookEndpointResponse { endpoint, secret } = answer.into_inner();
        let id = endpoint.context("an endpoint")?.endpoint_id;
        Ok(Endpoint { eco_id: eco_id.to_owned(), id, secret })
    }

    /// Sends it a test.
    pub(crate) async fn test(&self, endpoint: &Endpoint) -> Result<WebhookDelivery> {
        let request = SendTestWebhookRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
        let call = user(&endpoint.eco_id)?.request(request);
        let answer = self.client.clone().send_test_webhook(call).await?.into_inner();
        answer.delivery.context("a delivery")
    }

    /// What was sent to it, newest first.
    pub(crate) async fn deliveries(&self, endpoint: &Endpoint) -> Result<Vec<WebhookDelivery>> {
        let request = ListWebhookDeliveriesRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
        let call = user(&endpoint.eco_id)?.request(request);
        Ok(self.client.clone().list_webhook_deliveries(call).await?.into_inner().deliveries)
    }

    /// As ListWebhookEndpoints shows it.
    pub(crate) async fn shown(&self, endpoint: &Endpoint) -> Result<WebhookEndpoint> {
        let call = user(&endpoint.eco_id)?.request(ListWebhookEndpointsRequest::default());
        let all = self.client.clone().list_webhook_endpoints(call).await?.into_inner().endpoints;
        all.into_iter().find(|shown| shown.endpoint_id == endpoint.id).context("not listed")
    }

    pub(crate) async fn update(
        &self,
        endpoint: &Endpoint,
        change: UpdateWebhookEndpointRequest,
    ) -> Result<WebhookEndpoint> {
        let request = UpdateWebhookEndpointRequest { endpoint_id: endpoint.id.clone(), ..change };
        let call = user(&endpoint.eco_id)?.request(request);
        self.client.clone().update_webhook_endpoint(call).await?.into_inner().endpoint.context("an endpoint")
    }

    pub(crate) async fn redeliver(
        &self,
        endpoint: &Endpoint,
        webhook_id: &str,
        request_id: &str,
    ) -> Result<Result<WebhookDelivery, Status>> {
        let request = RedeliverWebhookRequest {
            endpoint_id: endpoint.id.clone(),
            webhook_id: webhook_id.to_owned(),
            request_id: request_id.to_owned(),
            ..Default::default()
        };
        let call = user(&endpoint.eco_id)?.request(request);
        match self.client.clone().redeliver_webhook(call).await {
            Ok(answer) => Ok(Ok(answer.into_inner().delivery.context("a delivery")?)),
            Err(status) => Ok(Err(status)),
        }
    }
}

/// Runs a statement.
pub(crate) async fn execute(db: &TestDb, statement: &str) -> Result<u64> {
    let done = sqlx::query(AssertSqlSafe(statement.to_owned())).execute(&db.pool).await?;
    Ok(done.rows_affected())
}

/// Makes the pauses after attempts that fail an hour longer: nothing is sent again before [`time_passes`]. The first
/// pause is of five seconds, which a test may take between two statements on a machine that others use, too.
pub(crate) async fn stretch_pauses(db: &TestDb) -> Result<()> {
    let statements = "create function stretch_pause() returns trigger language plpgsql
             as $$ begin new.due_time := new.due_time + interval '1 hour'; return new; end $$;
         create trigger stretch_pause before update of due_time on eco_webhook_deliveries
             for each row when (new.due_time > now()) execute function stretch_pause();";
    sqlx::raw_sql(statements).execute(&db.pool).await?;
    Ok(())
}

/// Has what waits for its time be due now.
pub(crate) async fn time_passes(db: &TestDb) -> Result<()> {
    execute(db, "update eco_webhook_deliveries set due_time = now() where status = 'pending'").await?;
    Ok(())
}

/// Nothing is on its way any more.
pub(crate) const ALL_DONE: &str =
    "select not exists (select from eco_webhook_deliveries where status = 'pending')
     and not exists (select from eco_usage_changes)";

/// An attempt has failed and the next waits for its time.
pub(crate) const ALL_WAIT: &str = "select not exists (select from eco_webhook_deliveries
     where status = 'pending' and (due_time <= now() or lease_end_time > now()))";
