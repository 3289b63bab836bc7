//! A billing-svc beside the servers under test: it changes plans and spend caps.

use std::time::Duration;

use anyhow::Result;
use nexus_billing::config::StripeArgs;
use nexus_core::plan::Plan;
use nexus_kit::{auth::Scope, convert::plan_to_proto, serve::Listeners};
use nexus_proto::billing::v1::{
    AdjustUsageRequest, ChangePlanRequest, GetOverageRequest, SetSpendCapRequest,
    billing_service_client::BillingServiceClient,
};
use nexus_testkit::{db::TestDb, settings};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Channel;
use uuid::Uuid;

use crate::support::{user, with_scopes};

/// A billing-svc of its own, without Stripe; stops when dropped.
pub(crate) struct Billing {
    client: BillingServiceClient<Channel>,
    _stop: DropGuard,
}

impl Billing {
    pub(crate) async fn start(db: &TestDb) -> Result<Self> {
        let config = nexus_billing::Config {
            grpc_addr: settings::ANY_PORT,
            metrics_addr: settings::ANY_PORT,
            auth: settings::auth_args(),
            serve: settings::serve_args(),
            db: db.args(),
            stripe: StripeArgs {
                stripe_secret_key: "sk_test_none".into(),
                stripe_api_base: "http://127.0.0.1:9/".to_owned(),
                stripe_rate_per_second: std::num::NonZeroU32::MIN,
                stripe_timeout: Duration::from_secs(20),
                stripe_proration: nexus_billing::config::Proration::None,
            },
            stripe_webhook_secret: None,
            overage_concurrency: 1,
            overage_recheck_every: std::time::Duration::from_secs(60),
            stripe_events_concurrency: 4,
            dashboard_url: "http://localhost:8080/dashboard/billing".to_owned(),
            notify: nexus_billing::config::NotifyArgs::default(),
        };
        let listeners = Listeners::bind(config.grpc_addr, config.metrics_addr).await?;
        let address = listeners.main_addr()?;
        let stop = CancellationToken::new();
        tokio::spawn(nexus_billing::serve(config, listeners, stop.clone()));
        let client = nexus_client::billing(nexus_client::channel(&format!("http://{address}"))?);
        Ok(Self { client, _stop: stop.drop_guard() })
    }

    /// Changes a plan now.
    pub(crate) async fn change(&self, eco_id: &str, plan: Plan) -> Result<()> {
        let request = ChangePlanRequest {
            eco_id: eco_id.to_owned(),
            plan: plan_to_proto(plan).into(),
            apply_now: true,
            ..ChangePlanRequest::default()
        };
        let options = with_scopes(&[Scope::AccountsWrite])?;
        self.client.clone().change_plan(options.request(request)).await?;
        Ok(())
    }

    /// Caps the overage at so many micros, or not any more.
    pub(crate) async fn cap(&self, eco_id: &str, spend_cap_micros: Option<i64>) -> Result<()> {
        let request = SetSpendCapRequest {
            eco_id: eco_id.to_owned(),
            spend_cap_micros,
            ..SetSpendCapRequest::default()
        };
        let options = with_scopes(&[Scope::AccountsWrite])?;
        self.client.clone().set_spend_cap(options.request(request)).await?;
        Ok(())
    }

    /// Corrects the usage.
    pub(crate) async fn adjust(&self, eco_id: &str, delta_count: i64) -> Result<()> {
        let request = AdjustUsageRequest {
            eco_id: eco_id.to_owned(),
            delta_count,
            reason: "test".to_owned(),
            request_id: Uuid::new_v4().to_string(),
            ..Default::default()
        };
        let options = user(settings::ADMIN)?;
        self.client.clone().adjust_usage(options.request(request)).await?;
        Ok(())
    }

    /// The exact cost of the overage, what is left of the cap, and the units that it allows.
    pub(crate) async fn spent(&self, eco_id: &str) -> Result<(i64, Option<i64>, i64)> {
        let request = GetOverageRequest { eco_id: eco_id.to_owned() };
        let options = with_scopes(&[Scope::BillingRun])?;
        let answer = self.client.clone().get_overage(options.request(request)).await?.into_inner();
        Ok((answer.overage_micros, answer.spend_cap_left_micros, answer.spend_cap_limit_count))
    }

    pub(crate) async fn overage(&self, eco_id: &str) -> Result<(i64, i64)> {
        let request = GetOverageRequest { eco_id: eco_id.to_owned() };
        let options = with_scopes(&[Scope::BillingRun])?;
        let answer = self.client.clone().get_overage(options.request(request)).await?.into_inner();
        Ok((answer.overage_count, answer.overage_micros))
    }
}
