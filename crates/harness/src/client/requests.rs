//! The three RPCs that record calls, each asked once of one replica.

use std::time::Duration;

use anyhow::{Result, bail};
use futures::stream;
use nexus_client::{CallOptions, is_transient};
use nexus_proto::usage::v1::*;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tonic::{Code, Status, transport::Channel};
use usage_service_client::UsageServiceClient;
use uuid::Uuid;

use super::{Args, workload::Call};

/// A replica may be stopped: then another is asked.
const DEADLINE: Duration = Duration::from_secs(2);
/// Batches of a stream: more than a replica has under way of one.
const STREAMED: usize = 6;

/// An RPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Way {
    /// RecordUsage; of several calls the first alone.
    Single,
    /// BatchRecordUsage.
    Batch,
    /// StreamUsage: several batches, none waiting for the acknowledgement of the one before.
    Stream,
}

/// What became of the events that were answered, with a reason where one was refused.
pub(super) type Answered = Vec<(Uuid, EventOutcome, String)>;

/// The replicas.
pub(super) struct Requests {
    replicas: Vec<UsageServiceClient<Channel>>,
    options: CallOptions,
}

impl Requests {
    pub(super) fn new(args: &Args) -> Result<Self> {
        let replicas = args.replicas.iter().map(|url| Ok(nexus_client::usage(nexus_client::channel(url)?)));
        let options = CallOptions::bearer(&args.token, DEADLINE)?;
        Ok(Self { replicas: replicas.collect::<Result<_>>()?, options })
    }

    /// How many there are.
    pub(super) fn replicas(&self) -> usize {
        self.replicas.len()
    }

    /// An admission of units, if it is answered.
    pub(super) async fn admission(
        &self,
        replica: usize,
        eco_id: &str,
        units_count: i64,
    ) -> Result<Option<String>> {
        let request = CheckQuotaRequest { eco_id: eco_id.to_owned(), units_count, ..Default::default() };
        match self.replicas[replica].clone().check_quota(self.options.request(request)).await {
            Ok(answer) => Ok(Some(answer.into_inner().admission)),
            Err(status) if is_transient(&status) => Ok(None),
            Err(status) => bail!("CheckQuota at replica {replica}: {status:?}"),
        }
    }

    /// Records calls; what is not answered is to be sent again.
    pub(super) async fn record(&self, replica: usize, way: Way, calls: &[Call]) -> Result<Answered> {
        let mut answered = Vec::new();
        let ended = match way {
            Way::Single => self.single(replica, &calls[0], &mut answered).await,
            Way::Batch => self.batch(replica, calls, &mut answered).await,
            Way::Stream => self.stream(replica, calls, &mut answered).await,
        };
        match ended {
            Err(status) if !is_transient(&status) => bail!("replica {replica} answered {way:?}: {status:?}"),
            _ => Ok(answered),
        }
    }

    async fn single(&self, replica: usize, call: &Call, answered: &mut Answered) -> Result<(), Status> {
        let request = RecordUsageRequest { event: Some(call.event()) };
        let (outcome, reason) =
            match self.replicas[replica].clone().record_usage(self.options.request(request)).await {
                Ok(answer) => (answer.into_inner().outcome(), String::new()),
                Err(status) => {
                    let outcome = match (status.code(), nexus_kit::status::reason(&status).as_str()) {
                        (Code::AlreadyExists, "EVENT_CONFLICT") => EventOutcome::Conflict,
                        (Code::NotFound, "ACCOUNT_NOT_FOUND") => EventOutcome::UnknownAccount,
                        (Code::FailedPrecondition, "EVENT_TOO_OLD") => EventOutcome::TooOld,
                        _ => return Err(status),
                    };
                    (outcome, status.message().to_owned())
                }
            };
        answered.push((call.id, outcome, reason));
        Ok(())
    }

    async fn batch(&self, replica: usize, calls: &[Call], answered: &mut Answered) -> Result<(), Status> {
        let request = BatchRecordUsageRequest { events: calls.iter().map(Call::event).collect() };
        let answer = self.replicas[replica].clone().batch_record_usage(self.options.request(request)).await?;
        answered.extend(outcomes(calls, answer.into_inner().results)?);
        Ok(())
    }

    async fn stream(&self, replica: usize, calls: &[Call], answered: &mut Answered) -> Result<(), Status> {
        let batches: Vec<&[Call]> = calls.chunks(calls.len().div_ceil(STREAMED)).collect();
        let requests: Vec<_> =
            (0..).zip(&batches).map(|(batch_id, calls)| request(batch_id, calls)).collect();
        let mut client = self.replicas[replica].clone();
        let opened = client.stream_usage(self.options.endless(stream::iter(requests)));
        let mut acknowledgements = within(opened).await?.into_inner();
        while let Some(acknowledged) = within(acknowledgements.message()).await? {
            let batch = usize::try_from(acknowledged.batch_id).ok().and_then(|batch| batches.get(batch));
            let batch = batch.ok_or_else(|| Status::internal("an acknowledgement of no batch"))?;
            answered.extend(outcomes(batch, acknowledged.results)?);
        }
        Ok(())
    }
}

fn request(batch_id: i64, calls: &[Call]) -> StreamUsageRequest {
    StreamUsageRequest { batch_id, events: calls.iter().map(Call::event).collect() }
}

/// Each next message of a stream has as long as a call.
async fn within<T>(next: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    timeout(DEADLINE, next).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("nothing came")))
}

/// What became of a batch that was answered: what is not in its results was accepted.
fn outcomes(calls: &[Call], results: Vec<EventResult>) -> Result<Answered, Status> {
    let accepted = |call: &Call| (call.id, EventOutcome::Accepted, String::new());
    let mut outcomes: Answered = calls.iter().map(accepted).collect();
    for result in results {
        let outcome = result.outcome();
        let place = usize::try_from(result.index).ok().and_then(|index| outcomes.get_mut(index));
        let place = place.ok_or_else(|| Status::internal("an outcome of no event"))?;
        (place.1, place.2) = (outcome, result.message);
    }
    Ok(outcomes)
}
