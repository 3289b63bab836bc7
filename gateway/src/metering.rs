//! Around a tracked endpoint: whose key it is, a unit of the quota, the endpoint itself, and the event that
//! records the call. What cannot be admitted is refused and not recorded; what is admitted is answered and
//! recorded, as a rule before the answer goes out.
//!
//! Both are done as any service does them: `nexus-client`'s guard holds units of busy accounts, its tracker delivers
//! the events, the same each time, until each is committed. Once its key is verified, a call takes a place for its event,
//! so that their number is bounded; without a free one the call is refused before it takes a unit.

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use axum::{
    extract::{FromRequestParts, MatchedPath},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use http::{Extensions, Method, request::Parts};
use moka::sync::Cache;
use nexus_client::{
    Guard, Tracker,
    guard::{Admitted as Unit, Decision},
    headers::Quota,
    tracker::{Delivery, Place},
};
use nexus_core::id::ApiKeyText;
use nexus_kit::{convert::timestamp, telemetry};
use nexus_proto::usage::v1::{EventOutcome, UsageEvent, VerifyApiKeyResponse};
use tokio::time::timeout;
use tonic::metadata::MetadataMap;
use tracing::Span;
use uuid::Uuid;

use crate::{
    Gateway, auth,
    backend::Backend,
    config::Config,
    convert::required_time,
    error::{Error, StartError},
    layer::Arrival,
    status,
};

/// Events that may wait at once.
const PLACES: usize = 10_000;
/// Accounts of which units are held at a time.
const LEASED_ACCOUNTS: usize = 256;
/// Calls that deliver events at once; what comes meanwhile goes together with the next.
const DELIVERIES: usize = 8;
/// Longest response time an event may carry.
const MAX_RESPONSE_TIME: Duration = Duration::from_secs(86_400);

/// Policy of keys in test mode, which are never limited.
const TEST_POLICY: &str = "test-monthly";
/// How long the period of an account with such keys is remembered: as long as keys are known while the database is away.
const PERIOD_KNOWN_FOR: Duration = Duration::from_secs(60);
/// Accounts of which it is remembered.
const PERIODS: u64 = 10_000;

/// The guard and the tracker.
pub struct Meter {
    guard: Guard,
    tracker: Tracker,
    /// What the headers say to keys in test mode, by account.
    test_quotas: Cache<String, Quota>,
    /// How long an answer waits for its event.
    patience: Duration,
}

impl Meter {
    /// Of the usage-svc that the configuration names.
    pub async fn new(config: &Config, backend: &Backend) -> Result<Self, StartError> {
        let patience = config.backend_timeout;
        let guard = Guard::new(backend.usage_channel(), backend.credentials()).timeout(patience);
        let mut tracker = Tracker::builder(&config.usage_addr, backend.credentials())
            .clock(guard.clock())
            .flush_interval(Duration::ZERO)
            .queue_capacity(PLACES)
            .in_flight(DELIVERIES)
            .call_timeout(patience)
            .backoff(Duration::from_millis(50), Duration::from_secs(2));
        if let Some(ca) = &config.tls_ca {
            tracker = tracker.trust(ca);
        }
        let test_quotas = Cache::builder().max_capacity(PERIODS).time_to_live(PERIOD_KNOWN_FOR).build();
        let guard = guard.leased(LEASED_ACCOUNTS);
        Ok(Self { guard, tracker: tracker.build().await?, test_quotas, patience })
    }

    /// Gives all units back and delivers all events, until the deadline. No call may be taken any more.
    pub async fn shutdown(&self, deadline: Duration) {
        let (report, leases) = tokio::join!(self.tracker.shutdown(deadline), self.guard.shutdown(deadline));
        if report.undelivered > 0 || leases.forfeited_units > 0 {
            let (events, units) = (report.undelivered, leases.forfeited_units);
            tracing::error!(events, units, "answered calls are not recorded, or units not given back");
        }
    }

    /// By usage-svc's clock, which judges events: this machine's may be wrong.
    fn now(&self) -> DateTime<Utc> {
        self.guard.clock().now()
    }

    async fn admit(&self, eco_id: &str) -> Result<Unit, Error> {
        match self.guard.check_with(eco_id, 1, trace()).await {
            Ok(Decision::Admitted(unit)) => Ok(unit),
            Ok(Decision::Refused(refused)) => {
                let refusal = status::over_limit(&refused, self.now(), &mut rand::rng());
                Err(Error::LimitExceeded(Box::new(refusal)))
            }
            Err(error) => {
                Span::current().record("failed_call", "UsageService.CheckQuota");
                Err(status::of_check(error))
            }
        }
    }

    /// What holds for keys in test mode: no limit, and the account's period.
    async fn test_unit(&self, backend: &Backend, eco_id: &str) -> Result<Unit, Error> {
        let quota = match self.test_quotas.get(eco_id).filter(|quota| self.now() < quota.period_end) {
            Some(quota) => quota,
            None => {
                let usage = backend.usage_of(eco_id).await?;
                self.guard.clock().note(usage.server_time.as_ref());
                let quota = Quota {
                    policy: TEST_POLICY,
                    limit: -1,
                    remaining: -1,
                    period_start: required_time("period_start", usage.period_start_time.as_ref())?,
                    period_end: required_time("period_end", usage.period_end_time.as_ref())?,
                };
                self.test_quotas.insert(eco_id.to_owned(), quota);
                quota
            }
        };
        Ok(Unit { admission: String::new(), quota })
    }

    /// Returns once the event is committed, or goes on without the caller when that takes too long; at once while no
    /// event can be delivered, so that an outage does not slow down the calls that are open in it.
    async fn record(&self, place: Place, event: UsageEvent) {
        let (eco_id, event_id) = (event.eco_id.clone(), event.event_id.clone());
        let delivery: Delivery = place.metadata(trace()).track(event);
        let outcome = tokio::select! {
            biased;
            outcome = timeout(self.patience, delivery.outcome()) => outcome,
            () = self.tracker.away() => {
                tracing::debug!("the call is answered before its event is committed: nothing can be delivered");
                return;
            }
        };
        match outcome {
            Ok(Ok(EventOutcome::Accepted | EventOutcome::Duplicate)) => {}
            // What usage-svc refuses for good will not be taken later: say what is not metered.
            Ok(Ok(outcome)) => {
                tracing::error!(?outcome, eco_id, event_id, "an answered call was refused by the meter");
            }
            Ok(Err(_)) | Err(_) => tracing::warn!("the call is answered before its event is committed"),
        }
    }
}

/// The trace that the request belongs to.
fn trace() -> MetadataMap {
    let mut metadata = MetadataMap::new();
    telemetry::propagate_trace_to_rpc(&mut metadata);
    metadata
}

/// What an event tells of a call before it is answered, and where the call came from.
pub struct Call {
    arrival: Instant,
    endpoint: String,
    method: Method,
    extensions: Extensions,
}

impl<S: Sync> FromRequestParts<S> for Call {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let arrival = parts.extensions.get::<Arrival>().map_or_else(Instant::now, |arrival| arrival.0);
        let route = parts.extensions.get::<MatchedPath>().map(MatchedPath::as_str);
        let endpoint = route.unwrap_or(parts.uri.path()).to_owned();
        let (method, extensions) = (parts.method.clone(), parts.extensions.clone());
        Ok(Self { arrival, endpoint, method, extensions })
    }
}

/// A call that may be answered.
pub struct Admitted {
    /// Whose key it was made with.
    pub caller: VerifyApiKeyResponse,
    call: Call,
    /// For the event; no admission for a key in test mode, which has no quota.
    unit: Unit,
    place: Place,
}

impl Admitted {
    /// Verifies the key and takes a unit of its account's quota.
    pub async fn new(app: &Gateway, key: &ApiKeyText, call: Call) -> Result<Self, Error> {
        // First: who has no key takes nothing that those lack who have one.
        let (_, caller) = auth::verified(app, key, &call.extensions).await?;
        let place = app.meter.tracker.reserve();
        let place = place.map_err(|_| Error::unavailable("too many events are under way"))?;
        let unit = if caller.test_mode {
            app.meter.test_unit(&app.backend, &caller.eco_id).await?
        } else {
            app.meter.admit(&caller.eco_id).await?
        };
        Ok(Self { caller, call, unit, place })
    }

    /// Records the call, then lets the answer go out with the headers of the quota.
    pub async fn answer(self, app: &Gateway, answer: impl IntoResponse) -> Response {
        let mut response = answer.into_response();
        let took = self.call.arrival.elapsed().min(MAX_RESPONSE_TIME);
        let now = app.meter.now();
        let event = UsageEvent {
            eco_id: self.caller.eco_id,
            event_id: Uuid::now_v7().to_string(),
            event_time: Some(timestamp(now)),
            endpoint: self.call.endpoint,
            method: self.call.method.to_string(),
            status_code: i32::from(response.status().as_u16()),
            response_time_ms: i32::try_from(took.as_millis()).unwrap_or(i32::MAX),
            units_count: 1,
            api_key_id: self.caller.key_id,
            admission: self.unit.admission,
        };
        app.meter.record(self.place, event).await;
        self.unit.quota.set(response.headers_mut(), now);
        response
    }
}
