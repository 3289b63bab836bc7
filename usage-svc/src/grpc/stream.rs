//! StreamUsage: batches up, acknowledgements down, in the order of the batches.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt, stream};
use nexus_core::id::ApiKeyText;
use nexus_kit::{
    auth::{Caller, Scope, VerifiedKey},
    convert::timestamp,
    serve::CONNECTION_AGE,
    status::{self, RETRY_SOON},
};
use nexus_proto::usage::v1::{StreamUsageRequest, StreamUsageResponse};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status, Streaming};

use super::{answer, caller, parse};
use crate::{
    app::{
        known::Known,
        record_usage::{Recorder, Room},
        verify_api_key::Keys,
    },
    error::Error,
};

/// Batches of a stream that are read and not acknowledged: one is written while others gather. With as many
/// under way nothing more is read, and the sender is held up.
const IN_FLIGHT: usize = 4;

/// The acknowledgements.
pub(super) type Acknowledgements = Pin<Box<dyn Stream<Item = Result<StreamUsageResponse, Status>> + Send>>;

/// Whose events a stream brings.
#[derive(Clone)]
enum Sender {
    /// Any account's.
    Service,
    /// The key's own; the text with which the stream was opened.
    ApiKey(VerifiedKey, ApiKeyText),
}

impl Sender {
    fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        match (caller::metering(request, Scope::UsageWrite)?, Caller::of(request)?) {
            (Some(key), Caller::ApiKey(text)) => Ok(Self::ApiKey(key, text.clone())),
            _ => Ok(Self::Service),
        }
    }

    fn key(&self) -> Option<&VerifiedKey> {
        match self {
            Self::Service => None,
            Self::ApiKey(key, _) => Some(key),
        }
    }

    /// A key that was good when the stream was opened may be revoked by now.
    async fn verify_again(&self, keys: &Keys) -> Result<(), Error> {
        match self {
            Self::Service => Ok(()),
            Self::ApiKey(_, text) => keys.verify(text).await.map(|_| ()),
        }
    }
}

/// What it takes to record.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) keys: Keys,
    pub(super) recorder: Recorder,
    /// Has the database's clock.
    pub(super) known: Arc<Known>,
}

/// Records the batches as they come. Ends when the caller ends it, with the status of the first batch that failed
/// as a whole, or else `UNAVAILABLE` when the server stops or the stream is as old as a connection gets; what was
/// read is acknowledged before.
pub(super) fn record(
    request: Request<Streaming<StreamUsageRequest>>,
    server: Server,
    stop: CancellationToken,
) -> Result<Acknowledgements, Status> {
    let sender = Sender::of(&request)?;
    let oldest = Instant::now() + CONNECTION_AGE;
    let stopped = stop.clone();
    let end = async move {
        tokio::select! { () = stop.cancelled() => {}, () = sleep_until(oldest) => {} }
    };
    let acknowledged = request
        .into_inner()
        .take_until(Box::pin(end))
        // One after the other: the next batch is not read before this one has room.
        .then({
            let (sender, recorder) = (sender.clone(), server.recorder.clone());
            move |batch| taken(batch, sender.clone(), recorder.clone())
        })
        .map(move |batch| one(batch, sender.clone(), server.clone()))
        .buffered(IN_FLIGHT);
    let last = stream::once(async move {
        let reason = match (stopped.is_cancelled(), Instant::now() >= oldest) {
            (true, _) => ("STOPPING", "the server is stopping; open another stream"),
            (_, true) => ("STREAM_TOO_OLD", "the stream is old; open another one"),
            _ => return None,
        };
        Some(Err(status::unavailable(reason.0, reason.1, RETRY_SOON)))
    });
    Ok(Box::pin(acknowledged.chain(last.filter_map(std::future::ready))))
}

/// Takes a batch in, once there is room for it; there may be none, where reading failed. What it says is read only then, and
/// nothing else of it kept.
async fn taken(
    batch: Result<StreamUsageRequest, Status>,
    sender: Sender,
    recorder: Recorder,
) -> Result<(i64, parse::Batch, Room), Status> {
    let StreamUsageRequest { batch_id, events } = batch?;
    caller::own_events_only(sender.key(), &events)?;
    parse::batch_size(&events).map_err(Error::Invalid)?;
    let room = recorder.room_in_turn(events.len(), sender.key()).await?;
    let batch = parse::batch(events, sender.key()).map_err(Error::Invalid)?;
    Ok((batch_id, batch, room))
}

/// Records one batch.
async fn one(
    batch: Result<(i64, parse::Batch, Room), Status>,
    sender: Sender,
    Server { keys, recorder, known }: Server,
) -> Result<StreamUsageResponse, Status> {
    let (batch_id, batch, room) = batch?;
    sender.verify_again(&keys).await?;
    let outcomes = recorder.record_in(room, batch.events).await?;
    let answer = answer::batch_recorded(batch.ids, batch.places, outcomes, known.now().map(timestamp));
    Ok(StreamUsageResponse {
        batch_id,
        accepted_count: answer.accepted_count,
        duplicate_count: answer.duplicate_count,
        rejected_count: answer.rejected_count,
        results: answer.results,
        server_time: answer.server_time,
    })
}
