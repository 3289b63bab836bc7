//! A tower layer that meters an axum or tonic service: it asks for the call's units, refuses the call over the
//! limit, records every other call with its route template, method, status (499 where its client did not wait for the
//! answer) and latency, and sets the headers of
//! the quota. Trouble with metering never breaks a call: what cannot be checked is served (unless told
//! otherwise), what cannot be recorded is counted in the tracker's figures.
//!
//! | module | what it does |
//! |---|---|
//! | `service` | around one call |
//! | `body` | the answer's body; a gRPC call is recorded when its trailers are out |
//! | `call` | the event of a call; the status of gRPC over HTTP |
//! | `refusal` | answers of our own: 429 and 503 |

mod body;
mod call;
mod refusal;
mod service;

use std::{fmt, sync::Arc};

use http::{HeaderName, request::Parts};
use tower::Layer;

use crate::{clock::ServerClock, guard::Guard, tracker::Tracker};

pub use body::MeteredBody;
pub use service::MeterService;

/// What Envoy's rate limit filter adds to a request that usage-svc has admitted.
pub(crate) const ADMISSION: HeaderName = HeaderName::from_static("x-nexus-admission");

/// Whose call it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    eco_id: String,
    api_key_id: String,
    test_mode: bool,
    units: i64,
}

impl Caller {
    /// A call of this account, of one unit.
    pub fn new(eco_id: impl Into<String>) -> Self {
        Self { eco_id: eco_id.into(), api_key_id: String::new(), test_mode: false, units: 1 }
    }

    /// The API key it was made with, by its public id, and whether that is in test mode: metered apart and
    /// never limited. `VerifyApiKey` tells both.
    #[must_use]
    pub fn api_key(mut self, key_id: impl Into<String>, test_mode: bool) -> Self {
        self.api_key_id = key_id.into();
        self.test_mode = test_mode;
        self
    }

    /// Units that it takes, 1 to 1,000,000.
    #[must_use]
    pub fn units(mut self, units: i64) -> Self {
        self.units = units;
        self
    }
}

/// What happens to a call whose units cannot be checked, because usage-svc is away or does not know the
/// account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnTrouble {
    /// It is served, and recorded without an admission: it counts, and consumes when it is recorded.
    #[default]
    Serve,
    /// It is answered 503 (gRPC: `UNAVAILABLE`) and not recorded.
    Refuse,
}

type Extractor = dyn Fn(&Parts) -> Option<Caller> + Send + Sync;

/// The layer. In axum give it to `Router::layer`, which knows the route; in tonic to `Server::layer`. What finds
/// out who is calling must be around it: it comes first.
#[derive(Clone)]
pub struct MeterLayer {
    tracker: Tracker,
    caller: Arc<Extractor>,
    guard: Option<Guard>,
    on_trouble: OnTrouble,
    behind_envoy: bool,
}

impl MeterLayer {
    /// Records calls. `caller` says whose a call is; `None`: it is not metered.
    pub fn new(tracker: Tracker, caller: impl Fn(&Parts) -> Option<Caller> + Send + Sync + 'static) -> Self {
        Self {
            tracker,
            caller: Arc::new(caller),
            guard: None,
            on_trouble: OnTrouble::default(),
            behind_envoy: false,
        }
    }

    /// Enforces the limit too, and sets the headers of the quota. With [`Guard::leased`] most calls of busy accounts
    /// are decided in this process.
    #[must_use]
    pub fn limit(mut self, guard: Guard) -> Self {
        self.guard = Some(guard);
        self
    }

    /// What happens to a call that cannot be checked.
    #[must_use]
    pub fn on_trouble(mut self, on_trouble: OnTrouble) -> Self {
        self.on_trouble = on_trouble;
        self
    }

    /// A call that carries `x-nexus-admission` was admitted by Envoy: the admission goes into the event, and the
    /// call is not checked again. Only where clients cannot reach the service past Envoy, and Envoy removes
    /// the header that a client sends: whoever sets it is not limited. Default: the header means nothing.
    #[must_use]
    pub fn behind_envoy(mut self) -> Self {
        self.behind_envoy = true;
        self
    }

    /// The server's clock: as checks tell it, which come before what is recorded.
    fn clock(&self) -> &ServerClock {
        let own = self.tracker.clock();
        self.guard.as_ref().map_or(own, |guard| guard.clock().or(own))
    }
}

impl<S> Layer<S> for MeterLayer {
    type Service = MeterService<S>;

    fn layer(&self, inner: S) -> MeterService<S> {
        MeterService::new(inner, self.clone())
    }
}

impl fmt::Debug for MeterLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeterLayer")
            .field("limits", &self.guard.is_some())
            .field("on_trouble", &self.on_trouble)
            .field("behind_envoy", &self.behind_envoy)
            .finish_non_exhaustive()
    }
}
