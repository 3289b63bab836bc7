//! Nobody reaches another's data by any RPC: every RPC of the three services, with the ids of another account wherever it
//! takes one, called by each kind of caller.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use futures::stream;
use http::uri::PathAndQuery;
use nexus_client::CallOptions;
use nexus_kit::{auth::Scope, convert::timestamp};
use nexus_proto::{
    DESCRIPTOR_SET, analytics::v1 as analytics, billing::v1 as billing, common::v1 as common,
    usage::v1 as usage,
};
use nexus_testkit::settings::{service_token, user_token};
use prost::{Message, bytes::Buf, bytes::BufMut};
use prost_types::FileDescriptorSet;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};
use uuid::Uuid;

use crate::{
    suite::{Suite, event},
    sweep::{OTHER, VICTIM, Victim},
};

/// Messages as they are on the wire.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut message = vec![0; from.remaining()];
        from.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}

/// An RPC, how it names the victim's, and who is refused how.
struct Rpc {
    /// `Service/Method`.
    name: &'static str,
    request: Vec<u8>,
    /// What another account's user is told.
    user: Code,
    /// What another account's key is told.
    key: Code,
    /// What a service is told whose scopes are not these.
    service: Code,
    /// The scopes with which a service may call it; `admin` always is one.
    scopes: &'static [Scope],
}

const WRITE: &[Scope] = &[Scope::UsageWrite];
const CHECK: &[Scope] = &[Scope::UsageCheck];
const ACCOUNTS: &[Scope] = &[Scope::AccountsWrite];
const BILLING: &[Scope] = &[Scope::BillingRun];
const ADMINS: &[Scope] = &[];

/// One that refuses everybody else alike.
fn rpc(name: &'static str, scopes: &'static [Scope], request: &impl Message) -> Rpc {
    let denied = Code::PermissionDenied;
    Rpc { name, request: request.encode_to_vec(), user: denied, key: denied, service: denied, scopes }
}

/// One where another account's thing is not there.
fn hidden(rpc: Rpc) -> Rpc {
    Rpc { user: Code::NotFound, ..rpc }
}

/// One that every user and service may call, and that tells of no account.
fn open(rpc: Rpc) -> Rpc {
    Rpc { user: Code::Ok, service: Code::Ok, ..rpc }
}

fn of_usage(victim: &Victim) -> Vec<Rpc> {
    let eco_id = || VICTIM.to_owned();
    let event = event(VICTIM, "/v1/x", 200, 1);
    let key_id = || victim.key_id.clone();
    vec![
        rpc("UsageService/RecordUsage", WRITE, &usage::RecordUsageRequest { event: Some(event.clone()) }),
        rpc(
            "UsageService/BatchRecordUsage",
            WRITE,
            &usage::BatchRecordUsageRequest { events: vec![event.clone()] },
        ),
        rpc(
            "UsageService/StreamUsage",
            WRITE,
            &usage::StreamUsageRequest { batch_id: 1, events: vec![event] },
        ),
        rpc(
            "UsageService/CheckQuota",
            CHECK,
            &usage::CheckQuotaRequest { eco_id: eco_id(), ..Default::default() },
        ),
        rpc(
            "UsageService/LeaseQuota",
            CHECK,
            &usage::LeaseQuotaRequest { eco_id: eco_id(), want_count: 1, ..Default::default() },
        ),
        rpc("UsageService/GetCurrentUsage", CHECK, &usage::GetCurrentUsageRequest { eco_id: eco_id() }),
        rpc(
            "UsageService/CreateApiKey",
            ACCOUNTS,
            &usage::CreateApiKeyRequest { eco_id: eco_id(), name: "k".to_owned(), ..Default::default() },
        ),
        rpc(
            "UsageService/ListApiKeys",
            ACCOUNTS,
            &usage::ListApiKeysRequest { eco_id: eco_id(), ..Default::default() },
        ),
        hidden(rpc("UsageService/RevokeApiKey", ACCOUNTS, &usage::RevokeApiKeyRequest { key_id: key_id() })),
        hidden(rpc(
            "UsageService/RotateApiKey",
            ACCOUNTS,
            &usage::RotateApiKeyRequest { key_id: key_id(), ..Default::default() },
        )),
        rpc(
            "UsageService/VerifyApiKey",
            CHECK,
            &usage::VerifyApiKeyRequest { key: format!("{}.x", key_id()) },
        ),
        rpc("UsageService/RegisterImport", WRITE, &usage::RegisterImportRequest::default()),
    ]
}

fn of_accounts() -> Vec<Rpc> {
    let eco_id = || VICTIM.to_owned();
    vec![
        rpc(
            "BillingService/CreateAccount",
            ACCOUNTS,
            &billing::CreateAccountRequest { eco_id: "eco_new".to_owned(), ..Default::default() },
        ),
        rpc("BillingService/GetAccount", ACCOUNTS, &billing::GetAccountRequest { eco_id: eco_id() }),
        rpc("BillingService/ListAccounts", ACCOUNTS, &billing::ListAccountsRequest::default()),
        rpc(
            "BillingService/CloseAccount",
            ACCOUNTS,
            &billing::CloseAccountRequest { eco_id: eco_id(), ..Default::default() },
        ),
        rpc(
            "BillingService/ChangePlan",
            ACCOUNTS,
            &billing::ChangePlanRequest {
                eco_id: eco_id(),
                plan: common::Plan::Free.into(),
                apply_now: true,
                ..Default::default()
            },
        ),
        rpc(
            "BillingService/GetSubscription",
            ACCOUNTS,
            &billing::GetSubscriptionRequest { eco_id: eco_id() },
        ),
        rpc(
            "BillingService/CreateCheckoutSession",
            ACCOUNTS,
            &billing::CreateCheckoutSessionRequest {
                eco_id: eco_id(),
                plan: common::Plan::Pro.into(),
                ..Default::default()
            },
        ),
        rpc(
            "BillingService/CancelSubscription",
            ACCOUNTS,
            &billing::CancelSubscriptionRequest { eco_id: eco_id(), apply_now: true, ..Default::default() },
        ),
        rpc(
            "BillingService/ReactivateSubscription",
            ACCOUNTS,
            &billing::ReactivateSubscriptionRequest { eco_id: eco_id(), ..Default::default() },
        ),
        rpc(
            "BillingService/SetSpendCap",
            ACCOUNTS,
            &billing::SetSpendCapRequest {
                eco_id: eco_id(),
                spend_cap_micros: Some(0),
                ..Default::default()
            },
        ),
        rpc(
            "BillingService/AdjustUsage",
            ADMINS,
            &billing::AdjustUsageRequest {
                eco_id: eco_id(),
                delta_count: 1,
                reason: "x".to_owned(),
                request_id: Uuid::new_v4().to_string(),
            },
        ),
        open(rpc("BillingService/ListPlans", ADMINS, &billing::ListPlansRequest::default())),
        rpc("BillingService/UpsertPlan", ADMINS, &billing::UpsertPlanRequest::default()),
        rpc(
            "BillingService/ListAuditLog",
            ADMINS,
            &billing::ListAuditLogRequest { eco_id: eco_id(), ..Default::default() },
        ),
    ]
}

fn of_charges(victim: &Victim) -> Vec<Rpc> {
    let eco_id = || VICTIM.to_owned();
    let charge_id = || victim.charge_id.clone();
    let run_id = Uuid::new_v4().to_string();
    let explain = &billing::ExplainChargeRequest { charge_id: charge_id() };
    vec![
        rpc("BillingService/ProcessOverage", BILLING, &billing::ProcessOverageRequest::default()),
        rpc("BillingService/GetOverage", BILLING, &billing::GetOverageRequest { eco_id: eco_id() }),
        rpc(
            "BillingService/ListCharges",
            BILLING,
            &billing::ListChargesRequest { eco_id: eco_id(), ..Default::default() },
        ),
        Rpc { service: Code::NotFound, ..hidden(rpc("BillingService/ExplainCharge", BILLING, explain)) },
        rpc("BillingService/Reconcile", BILLING, &billing::ReconcileRequest::default()),
        rpc(
            "BillingService/RetryCharge",
            BILLING,
            &billing::RetryChargeRequest { charge_id: charge_id(), ..Default::default() },
        ),
        rpc("BillingService/HandleStripeEvent", BILLING, &billing::HandleStripeEventRequest::default()),
        rpc(
            "BillingService/WatchOverageRun",
            BILLING,
            &billing::WatchOverageRunRequest { run_id: run_id.clone() },
        ),
        rpc(
            "BillingService/GetOverageRun",
            BILLING,
            &billing::GetOverageRunRequest { run_id: run_id.clone() },
        ),
        rpc("BillingService/ListOverageRuns", BILLING, &billing::ListOverageRunsRequest::default()),
        rpc(
            "BillingService/ListOverageRunErrors",
            BILLING,
            &billing::ListOverageRunErrorsRequest { run_id, ..Default::default() },
        ),
    ]
}

fn of_webhooks(endpoint_id: &str) -> Vec<Rpc> {
    let eco_id = || VICTIM.to_owned();
    let endpoint_id = || endpoint_id.to_owned();
    vec![
        rpc(
            "BillingService/CreateWebhookEndpoint",
            ACCOUNTS,
            &billing::CreateWebhookEndpointRequest {
                eco_id: eco_id(),
                url: "https://example.com/other".to_owned(),
                ..Default::default()
            },
        ),
        rpc(
            "BillingService/ListWebhookEndpoints",
            ACCOUNTS,
            &billing::ListWebhookEndpointsRequest { eco_id: eco_id(), ..Default::default() },
        ),
        rpc(
            "BillingService/UpdateWebhookEndpoint",
            ACCOUNTS,
            &billing::UpdateWebhookEndpointRequest {
                eco_id: eco_id(),
                endpoint_id: endpoint_id(),
                enabled: Some(false),
                ..Default::default()
            },
        ),
        rpc(
            "BillingService/DeleteWebhookEndpoint",
            ACCOUNTS,
            &billing::DeleteWebhookEndpointRequest { eco_id: eco_id(), endpoint_id: endpoint_id() },
        ),
        rpc(
            "BillingService/RotateWebhookSecret",
            ACCOUNTS,
            &billing::RotateWebhookSecretRequest {
                eco_id: eco_id(),
                endpoint_id: endpoint_id(),
                ..Default::default()
            },
        ),
        rpc(
            "BillingService/ListWebhookDeliveries",
            ACCOUNTS,
            &billing::ListWebhookDeliveriesRequest {
                eco_id: eco_id(),
                endpoint_id: endpoint_id(),
                ..Default::default()
            },
        ),
        rpc(
            "BillingService/RedeliverWebhook",
            ACCOUNTS,
            &billing::RedeliverWebhookRequest {
                eco_id: eco_id(),
                endpoint_id: endpoint_id(),
                ..Default::default()
            },
        ),
        rpc(
            "BillingService/SendTestWebhook",
            ACCOUNTS,
            &billing::SendTestWebhookRequest {
                eco_id: eco_id(),
                endpoint_id: endpoint_id(),
                ..Default::default()
            },
        ),
        open(rpc("BillingService/GetUsageThresholds", ADMINS, &billing::GetUsageThresholdsRequest {})),
        rpc("BillingService/SetUsageThresholds", ADMINS, &billing::SetUsageThresholdsRequest::default()),
    ]
}

fn of_analytics() -> Vec<Rpc> {
    let eco_id = || VICTIM.to_owned();
    let day = chrono::Utc::now() - chrono::TimeDelta::days(1);
    vec![
        rpc(
            "AnalyticsService/GetUsageHistory",
            ADMINS,
            &analytics::GetUsageHistoryRequest { eco_id: eco_id(), days_count: 7 },
        ),
        rpc(
            "AnalyticsService/ListEndpointStats",
            ADMINS,
            &analytics::ListEndpointStatsRequest { eco_id: eco_id(), ..Default::default() },
        ),
        rpc("AnalyticsService/GetOverview", ADMINS, &analytics::GetOverviewRequest {}),
        rpc(
            "AnalyticsService/GetTotalUsageHistory",
            ADMINS,
            &analytics::GetTotalUsageHistoryRequest::default(),
        ),
        rpc("AnalyticsService/ListUsers", ADMINS, &analytics::ListUsersRequest::default()),
        rpc("AnalyticsService/ListTopUsers", ADMINS, &analytics::ListTopUsersRequest::default()),
        rpc("AnalyticsService/GetRevenueHistory", ADMINS, &analytics::GetRevenueHistoryRequest::default()),
        rpc("AnalyticsService/ForecastUsage", ADMINS, &analytics::ForecastUsageRequest { eco_id: eco_id() }),
        rpc(
            "AnalyticsService/ExportUsage",
            ADMINS,
            &analytics::ExportUsageRequest {
                eco_id: eco_id(),
                start_time: Some(timestamp(day)),
                end_time: Some(timestamp(chrono::Utc::now())),
            },
        ),
    ]
}

/// All RPCs there are, as `Service/Method`, by the descriptors.
fn described() -> Result<BTreeSet<String>> {
    let files = FileDescriptorSet::decode(DESCRIPTOR_SET)?.file;
    let services = files.into_iter().flat_map(|file| file.service);
    Ok(services
        .flat_map(|service| {
            let name = service.name().to_owned();
            service.method.into_iter().map(move |method| format!("{name}/{}", method.name()))
        })
        .collect())
}

/// Where each service is, and its package.
fn place(suite: &Suite, name: &str) -> Result<(SocketAddr, String)> {
    let service = name.split('/').next().unwrap_or_default();
    let (place, package) = match service {
        "UsageService" => (0, "nexus.usage.v1"),
        "BillingService" => (1, "nexus.billing.v1"),
        "AnalyticsService" => (2, "nexus.analytics.v1"),
        other => anyhow::bail!("{other} is served elsewhere"),
    };
    Ok((suite.services[place], format!("/{package}.{name}")))
}

/// Sends one message, on a stream as on a single call: on the wire they are the same. Returns the first message.
async fn call(suite: &Suite, rpc: &Rpc, authorization: Option<&str>) -> Result<Result<Vec<u8>, Status>> {
    let (address, path) = place(suite, rpc.name)?;
    let mut grpc = Grpc::new(nexus_client::channel(&format!("http://{address}"))?);
    grpc.ready().await?;
    let message = stream::iter([rpc.request.clone()]);
    let request = match authorization {
        Some(authorization) => CallOptions::new(authorization, Duration::from_secs(20))?.request(message),
        None => Request::new(message),
    };
    let answer = async {
        let mut messages = grpc
            .streaming(request, PathAndQuery::try_from(path).map_err(|_| Status::internal("a path"))?, Raw)
            .await?
            .into_inner();
        Ok::<_, Status>(messages.message().await?.unwrap_or_default())
    };
    Ok(answer.await)
}

#[tokio::test]
async fn nobody_reaches_anothers_data_by_any_rpc() -> Result<()> {
    let suite = Suite::start().await?;
    let victim = Victim::new(&suite).await?;
    let endpoint = endpoint_of_the_victim(&suite).await?;
    let victim = victim.settled(&suite).await?;
    let key = suite.api_key(OTHER, false).await?;
    let user = format!("Bearer {}", user_token(OTHER)?);
    let all = [of_usage(&victim), of_accounts(), of_charges(&victim), of_webhooks(&endpoint), of_analytics()];
    let all = all.into_iter().flatten().collect::<Vec<_>>();
    let swept: BTreeSet<String> = all.iter().map(|rpc| rpc.name.to_owned()).collect();
    assert_eq!(swept, described()?, "every RPC is swept, and no other");
    for rpc in &all {
        let without =
            Scope::ALL.into_iter().filter(|scope| *scope != Scope::Admin && !rpc.scopes.contains(scope));
        let service = format!("Bearer {}", service_token(&without.collect::<Vec<_>>())?);
        let unsigned = format!("Bearer {}", user_token(VICTIM)?.rsplit_once('.').context("a token")?.0);
        for (caller, authorization, told) in [
            ("nobody", None, Code::Unauthenticated),
            ("an unsigned token", Some(&unsigned), Code::Unauthenticated),
            ("another user", Some(&user), rpc.user),
            ("another's key", Some(&key), rpc.key),
            ("a service without the scope", Some(&service), rpc.service),
        ] {
            let answer = call(&suite, rpc, authorization.map(String::as_str)).await?;
            let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
            assert_eq!(code, told, "{} by {caller}: {answer:?}", rpc.name);
            let text = match &answer {
                Ok(message) => String::from_utf8_lossy(message).into_owned(),
                Err(status) => String::from_utf8_lossy(status.details()).into_owned(),
            };
            // A refusal may name what the request named.
            let told = answer.is_ok() && victim.is_told_by(&text);
            assert!(!told, "{} tells {caller} of another: {text}", rpc.name);
        }
    }
    victim.is_unchanged(&suite).await
}

/// The victim's webhook, made by the victim.
async fn endpoint_of_the_victim(suite: &Suite) -> Result<String> {
    let channel = nexus_client::channel(&format!("http://{}", suite.services[1]))?;
    let options = CallOptions::bearer(&user_token(VICTIM)?, Duration::from_secs(20))?;
    let request = billing::CreateWebhookEndpointRequest {
        url: "https://example.com/victim".to_owned(),
        ..Default::default()
    };
    let made = nexus_client::billing(channel).create_webhook_endpoint(options.request(request)).await?;
    Ok(made.into_inner().endpoint.context("an endpoint")?.endpoint_id)
}
