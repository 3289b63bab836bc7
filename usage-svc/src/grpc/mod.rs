//! The gRPC side: each RPC says who may call, parses, runs one use case and converts the answer.

mod answer;
mod api_keys;
pub mod caller;
pub mod envoy;
#[doc(hidden)]
pub mod fuzzing;
mod lease;
mod parse;
mod stream;

use std::sync::Arc;

use nexus_core::id::ApiKeyText;
use nexus_kit::{
    auth::{Caller, Scope},
    convert::timestamp,
    page,
    rpc::BySize,
    serve::MAX_BATCH_BYTES,
    status,
    validate::Violations,
};
use nexus_proto::usage::v1::{
    usage_service_server::{UsageService, UsageServiceServer},
    *,
};
use secrecy::SecretString;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, codec::CompressionEncoding};

use crate::{
    app::{self, known::Known, quota::Quota, record_usage::Recorder, verify_api_key::Keys},
    error::Error,
};

/// The service.
pub struct Service {
    /// Connections that act as the service's role.
    pub pool: PgPool,
    /// The way to the writers.
    pub recorder: Recorder,
    /// Units to admit.
    pub quota: Quota,
    /// Cancelled when the server stops: streams end.
    pub stop: CancellationToken,
    /// Answers of CheckQuota to repeated requests.
    pub quota_memory: app::check_quota::Memory,
    /// The API keys.
    pub keys: Keys,
    /// Has the database's clock.
    pub known: Arc<Known>,
    /// Derives the keys of repeatable CreateApiKey and RotateApiKey requests.
    pub key_secret: SecretString,
}

/// The tonic server: message sizes bounded, compressed requests accepted. Its answers are sent as they are: the transport
/// keeps the whole of one that was packed, and would count the packed bytes alone.
pub fn server(service: Service) -> BySize<UsageServiceServer<Service>> {
    let service = Arc::new(service);
    let bounded = |max_bytes| {
        UsageServiceServer::from_arc(service.clone())
            .max_decoding_message_size(max_bytes)
            .accept_compressed(CompressionEncoding::Zstd)
            .accept_compressed(CompressionEncoding::Gzip)
    };
    BySize::new(bounded, MAX_BATCH_BYTES)
}

#[tonic::async_trait]
impl UsageService for Service {
    async fn record_usage(
        &self,
        request: Request<RecordUsageRequest>,
    ) -> Result<Response<RecordUsageResponse>, Status> {
        let key = caller::metering(&request, Scope::UsageWrite)?;
        let caller = Caller::of(&request)?;
        // Before the key is verified, for which it may wait: what was sent may be large, what is kept of it is not.
        let event = request.into_inner().event;
        let event = event.ok_or_else(|| status::invalid(&Violations::one("event", "is required")))?;
        caller::own_events_only(key.as_ref(), std::slice::from_ref(&event))?;
        let event = parse::single(event, key.as_ref())?;
        caller::is_still_good(caller, &self.keys).await?;
        let outcomes = self.recorder.record(vec![event], key.as_ref()).await?;
        Ok(Response::new(answer::recorded(&outcomes, self.known.now().map(timestamp))?))
    }

    async fn batch_record_usage(
        &self,
        request: Request<BatchRecordUsageRequest>,
    ) -> Result<Response<BatchRecordUsageResponse>, Status> {
        let key = caller::metering(&request, Scope::UsageWrite)?;
        let caller = Caller::of(&request)?;
        let events = request.into_inner().events;
        caller::own_events_only(key.as_ref(), &events)?;
        parse::batch_size(&events).map_err(Error::Invalid)?;
        let room = self.recorder.room_now(events.len(), key.as_ref())?;
        let batch = parse::batch(events, key.as_ref()).map_err(Error::Invalid)?;
        caller::is_still_good(caller, &self.keys).await?;
        let outcomes = self.recorder.record_in(room, batch.events).await?;
        let now = self.known.now().map(timestamp);
        Ok(Response::new(answer::batch_recorded(batch.ids, batch.places, outcomes, now)))
    }

    type StreamUsageStream = stream::Acknowledgements;

    async fn stream_usage(
        &self,
        request: Request<tonic::Streaming<StreamUsageRequest>>,
    ) -> Result<Response<Self::StreamUsageStream>, Status> {
        let server = stream::Server {
            keys: self.keys.clone(),
            recorder: self.recorder.clone(),
            known: self.known.clone(),
        };
        Ok(Response::new(stream::record(request, server, self.stop.clone())?))
    }

    async fn check_quota(
        &self,
        request: Request<CheckQuotaRequest>,
    ) -> Result<Response<CheckQuotaResponse>, Status> {
        let key = caller::metering(&request, Scope::UsageCheck)?;
        let caller = Caller::of(&request)?;
        let check = parse::check(request.into_inner(), key.as_ref())?;
        caller::is_still_good(caller.clone(), &self.keys).await?;
        if key.is_some_and(|key| key.test_mode) {
            // Metered apart: neither limited nor consuming.
            let standing = app::current_usage::of_open(&self.pool, &self.quota, &check.eco_id).await?;
            return Ok(Response::new(answer::unlimited(&standing)));
        }
        if check.request_id.is_none()
            && let Some(decision) = self.quota.admit_now(&check.eco_id, check.units)
        {
            return Ok(Response::new(answer::checked(&check.eco_id, &decision, self.known.now())?));
        }
        let api_key = match &caller {
            Caller::ApiKey(text) => Some(text),
            _ => None,
        };
        let about = (&check.eco_id, check.units);
        let keys = (&self.keys, api_key);
        let decision = match check.request_id {
            Some(id) => self.quota_memory.run(&self.quota, about, id, keys).await,
            None => app::check_quota::admit(&self.quota, about, keys).await.map_err(Into::into),
        };
        let decision = decision.map_err(|e| Status::from(e.as_ref()))?;
        Ok(Response::new(answer::checked(&check.eco_id, &decision, self.known.now())?))
    }

    type LeaseQuotaStream = lease::Answers;

    async fn lease_quota(
        &self,
        request: Request<tonic::Streaming<LeaseQuotaRequest>>,
    ) -> Result<Response<Self::LeaseQuotaStream>, Status> {
        let (quota, keys, known) = (self.quota.clone(), self.keys.clone(), self.known.clone());
        Ok(Response::new(lease::lend(request, quota, keys, known, self.stop.clone())?))
    }

    async fn get_current_usage(
        &self,
        request: Request<GetCurrentUsageRequest>,
    ) -> Result<Response<GetCurrentUsageResponse>, Status> {
        let eco_id = caller::reading(&request, &request.get_ref().eco_id)?;
        caller::is_still_good(Caller::of(&request)?, &self.keys).await?;
        let standing = app::current_usage::run(&self.pool, &self.quota, &eco_id).await?;
        Ok(Response::new(answer::current_usage(&eco_id, &standing)))
    }

    async fn create_api_key(
        &self,
        request: Request<CreateApiKeyRequest>,
    ) -> Result<Response<CreateApiKeyResponse>, Status> {
        let caller = Caller::of(&request)?;
        let eco_id = caller.account(&request.get_ref().eco_id, &[Scope::AccountsWrite])?;
        let new = api_keys::new_key(request.into_inner(), eco_id, &self.key_secret)?;
        let stored = app::create_api_key::run(&self.pool, &new, &caller.subject()).await?;
        let key = new.text.expose();
        Ok(Response::new(CreateApiKeyResponse { api_key: Some(api_keys::api_key(stored)), key }))
    }

    async fn list_api_keys(
        &self,
        request: Request<ListApiKeysRequest>,
    ) -> Result<Response<ListApiKeysResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let eco_id = caller.account(&request.eco_id, &[Scope::AccountsWrite])?;
        let (size, after) = api_keys::key_page(&request, &eco_id).map_err(Error::Invalid)?;
        let (keys, next) = app::list_api_keys::run(&self.pool, &eco_id, after.as_ref(), size).await?;
        Ok(Response::new(ListApiKeysResponse {
            api_keys: keys.into_iter().map(api_keys::api_key).collect(),
            next_page_token: next.map(|cursor| page::encode(&eco_id, &cursor)).unwrap_or_default(),
        }))
    }

    async fn revoke_api_key(
        &self,
        request: Request<RevokeApiKeyRequest>,
    ) -> Result<Response<RevokeApiKeyResponse>, Status> {
        let caller = Caller::of(&request)?;
        let actor = caller.subject();
        let owner = api_keys::owner(caller)?;
        let key_id = request.into_inner().key_id;
        api_keys::key_id(&key_id).map_err(Error::Invalid)?;
        let key = app::revoke_api_key::run(&self.pool, &key_id, owner.as_ref(), &actor).await?;
        self.keys.forget(&key_id);
        Ok(Response::new(RevokeApiKeyResponse { api_key: Some(api_keys::api_key(key)) }))
    }

    async fn rotate_api_key(
        &self,
        request: Request<RotateApiKeyRequest>,
    ) -> Result<Response<RotateApiKeyResponse>, Status> {
        let caller = Caller::of(&request)?;
        let actor = caller.subject();
        let owner = api_keys::owner(caller)?;
        let rotation = api_keys::rotation(&request.into_inner(), &self.key_secret).map_err(Error::Invalid)?;
        let (key, expires) = app::rotate_api_key::run(&self.pool, &rotation, owner.as_ref(), &actor).await?;
        self.keys.forget(&key.key_id);
        Ok(Response::new(RotateApiKeyResponse {
            api_key: Some(api_keys::api_key(key)),
            key: rotation.text.expose(),
            previous_expire_time: Some(timestamp(expires)),
        }))
    }

    async fn verify_api_key(
        &self,
        request: Request<VerifyApiKeyRequest>,
    ) -> Result<Response<VerifyApiKeyResponse>, Status> {
        Caller::of(&request)?.require_scope(Scope::UsageCheck)?;
        let text = request.into_inner().key;
        if text.is_empty() {
            return Err(status::invalid(&Violations::one("key", "is required")));
        }
        let text = ApiKeyText::parse(&text).map_err(|_| Error::InvalidApiKey)?;
        let key = self.keys.verify(&text).await?;
        Ok(Response::new(api_keys::verified(key)))
    }

    async fn register_import(
        &self,
        request: Request<RegisterImportRequest>,
    ) -> Result<Response<RegisterImportResponse>, Status> {
        Caller::of(&request)?.require_scope(Scope::UsageWrite)?;
        let RegisterImportRequest { file_digest, proposed_shift_ms } = request.into_inner();
        parse::import(&file_digest, proposed_shift_ms).map_err(Error::Invalid)?;
        let (shift_ms, already_registered) =
            app::register_import::run(&self.pool, &file_digest, proposed_shift_ms).await?;
        Ok(Response::new(RegisterImportResponse { shift_ms, already_registered }))
    }
}
