//! The worker that sends what is due. A delivery is held by a lease while it is tried, and the lease is longer than an
//! attempt: while nothing fails, one replica sends it. When the process ends between the request and the note of it,
//! the lease runs out and the message is sent again, under the same id.

use std::time::{Duration, Instant};

use hyper::header::{HeaderName, HeaderValue};
use nexus_kit::db;
use rand::Rng;
use sqlx::PgPool;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::webhook::{
        KEEP,
        delivery::{self, DeliveryStatus, Failure},
        event, schedule, signature,
    },
    error::Error,
    outgoing::Client,
    store::{
        crossings, lease,
        webhook_deliveries::{self, Claimed, Outcome},
        webhook_endpoints, webhook_messages, webhook_secrets,
    },
};

const EVERY: Duration = Duration::from_millis(500);
/// Deliveries that a replica tries at once, each to another endpoint.
const AT_ONCE: usize = 32;
/// What an attempt may take beyond its timeout, to be noted.
const LEASE_MARGIN: Duration = Duration::from_secs(30);
/// How often what is old is deleted, and how much of it at once.
const CLEAN_EVERY: Duration = Duration::from_secs(60);
const CLEAN_BATCH: i64 = 1_000;

/// Sends messages.
#[derive(Debug, Clone)]
pub struct Deliverer {
    /// Connections that act as the service's role.
    pub pool: PgPool,
    /// How requests are sent.
    pub client: Client,
    /// Longest time a request may take.
    pub timeout: Duration,
}

impl Deliverer {
    /// Sends what is due until `shutdown`, then ends what it has begun. Each attempt is a task, so that none is held up
    /// by a database that is slow to say what is due; they end with this future.
    pub async fn work(self, shutdown: CancellationToken) {
        let mut at_work = JoinSet::new();
        let mut cleaned = None;
        let mut failed = false;
        while !shutdown.is_cancelled() {
            while let Some(ended) = at_work.try_join_next() {
                note_end(ended);
            }
            let claimed = match self.claim(AT_ONCE - at_work.len(), &mut cleaned).await {
                Ok(claimed) => {
                    failed = false;
                    claimed
                }
                Err(error) if failed => {
                    tracing::debug!(%error, "webhooks that are due could still not be read");
                    Vec::new()
                }
                Err(error) => {
                    tracing::warn!(%error, "webhooks that are due could not be read");
                    failed = true;
                    Vec::new()
                }
            };
            let nothing_due = claimed.is_empty();
            for claimed in claimed {
                let deliverer = self.clone();
                at_work.spawn(async move { deliverer.deliver(claimed).await });
            }
            let full = at_work.len() >= AT_ONCE;
            if !full && !nothing_due {
                continue;
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                Some(ended) = at_work.join_next() => note_end(ended),
                () = tokio::time::sleep(EVERY), if !full => {}
            }
        }
        while let Some(ended) = at_work.join_next().await {
            note_end(ended);
        }
    }

    async fn claim(&self, room: usize, cleaned: &mut Option<Instant>) -> Result<Vec<Claimed>, Error> {
        if cleaned.is_none_or(|at| at.elapsed() >= CLEAN_EVERY) {
            let mut connection = db::acquire(&self.pool).await?;
            webhook_messages::delete_old(&mut connection, KEEP, CLEAN_BATCH).await?;
            webhook_secrets::delete_ended(&mut connection, KEEP).await?;
            crossings::delete_old(&mut connection, KEEP, CLEAN_BATCH).await?;
            *cleaned = Some(Instant::now());
        }
        let mut transaction = db::begin(&self.pool).await?;
        if !lease::try_webhooks(&mut transaction).await? {
            return Ok(Vec::new());
        }
        let lease = self.timeout + LEASE_MARGIN;
        let claimed = webhook_deliveries::claim(&mut transaction, lease, room as i64).await?;
        transaction.commit().await?;
        Ok(claimed)
    }

    async fn deliver(&self, claimed: Claimed) {
        if let Err(error) = self.try_deliver(&claimed).await {
            let (id, endpoint_id) = (event::webhook_id(claimed.message_id), claimed.endpoint_id);
            tracing::warn!(%error, %id, %endpoint_id, "a webhook is sent again when its lease has ended");
        }
    }

    async fn try_deliver(&self, claimed: &Claimed) -> Result<(), Error> {
        let secrets = {
            let mut connection = db::acquire(&self.pool).await?;
            webhook_secrets::signing(&mut connection, claimed.endpoint_id).await?
        };
        let (id, timestamp) = (event::webhook_id(claimed.message_id), claimed.now.timestamp());
        let signature = signature::header(&secrets, &id, timestamp, &claimed.payload);
        let headers = [
            ("webhook-id", id),
            ("webhook-timestamp", timestamp.to_string()),
            ("webhook-signature", signature),
        ];
        let headers = headers.map(|(name, value)| {
            let value = HeaderValue::from_str(&value).expect("ids, numbers and base64 are plain ASCII");
            (HeaderName::from_static(name), value)
        });
        let started = Instant::now();
        let result = self.client.post(&claimed.url, &headers, claimed.payload.clone()).await;
        self.note(claimed, result, started.elapsed()).await
    }

    /// The endpoint's row is locked before the delivery's, as by whoever disables or deletes an endpoint.
    async fn note(
        &self,
        claimed: &Claimed,
        result: Result<u16, Failure>,
        took: Duration,
    ) -> Result<(), Error> {
        let status = result.as_ref().map_or_else(Failure::status, |status| Some(*status));
        let outcome = Outcome {
            duration_ms: i32::try_from(took.as_millis()).unwrap_or(i32::MAX),
            http_status: status.map(i32::from),
            error: result.as_ref().err().map(ToString::to_string),
        };
        let mut transaction = db::begin(&self.pool).await?;
        match result {
            Ok(_) => {
                webhook_endpoints::succeed(&mut transaction, claimed.endpoint_id).await?;
                webhook_deliveries::finish(&mut transaction, claimed, DeliveryStatus::Succeeded, None)
                    .await?;
            }
            Err(failure) => {
                let failing = webhook_endpoints::fail(&mut transaction, claimed.endpoint_id).await?;
                let jitter = rand::rng().random_range(0..=2 * schedule::JITTER_PER_MILLE);
                let consequence =
                    delivery::consequence(&failure, claimed.tries, jitter, failing.unwrap_or_default());
                let pause = consequence.pause;
                let status = if pause.is_some() { DeliveryStatus::Pending } else { DeliveryStatus::Failed };
                webhook_deliveries::finish(&mut transaction, claimed, status, pause).await?;
                if let Some(reason) = consequence.disable
                    && webhook_endpoints::disable(&mut transaction, claimed.endpoint_id, reason).await?
                {
                    webhook_deliveries::hold(&mut transaction, claimed.endpoint_id).await?;
                    let endpoint_id = claimed.endpoint_id;
                    tracing::info!(%endpoint_id, reason = reason.as_str(), "a webhook endpoint was disabled");
                }
            }
        }
        webhook_deliveries::finish_attempt(&mut transaction, claimed, &outcome).await?;
        Ok(transaction.commit().await?)
    }
}

fn note_end(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "an attempt to deliver a webhook failed; it is made again when its lease has ended");
    }
}
