//! StreamUsage: batches up, acknowledgements down.

use anyhow::{Context, Result};
use futures::{
    FutureExt,
    future::{join_all, select_all},
    stream,
};
use nexus_client::CallOptions;
use nexus_core::plan::Plan;
use nexus_proto::usage::v1::*;
use nexus_testkit::db::TestDb;
use nexus_usage::Config;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use crate::{outages::has_retry_info, support::*};

/// A stream that is open.
struct Open {
    batches: mpsc::Sender<StreamUsageRequest>,
    acknowledgements: Streaming<StreamUsageResponse>,
}

impl Open {
    async fn by(options: &CallOptions, server: &Server) -> Result<Self> {
        let (batches, sent) = mpsc::channel(64);
        let request = options.request(ReceiverStream::new(sent));
        let acknowledgements = server.client()?.stream_usage(request).await?.into_inner();
        Ok(Self { batches, acknowledgements })
    }

    async fn at(server: &Server) -> Result<Self> {
        Self::by(&service()?, server).await
    }

    async fn send(&self, batch_id: i64, events: Vec<UsageEvent>) -> Result<()> {
        Ok(self.batches.send(StreamUsageRequest { batch_id, events }).await?)
    }

    async fn next(&mut self) -> Result<StreamUsageResponse, Status> {
        let next = self.acknowledgements.message().await.transpose().expect("the stream goes on")?;
        assert!(next.server_time.is_some(), "{next:?}");
        Ok(StreamUsageResponse { server_time: None, ..next })
    }
}

fn accepted(batch_id: i64, accepted_count: i32) -> StreamUsageResponse {
    StreamUsageResponse { batch_id, accepted_count, ..StreamUsageResponse::default() }
}

fn events(count: usize) -> Vec<UsageEvent> {
    (0..count).map(|_| event("eco_a")).collect()
}

async fn raw_rows(db: &TestDb) -> Result<i64> {
    Ok(sqlx::query_scalar("select count(*) from eco_api_usage").fetch_one(&db.pool).await?)
}

#[tokio::test]
async fn batches_are_acknowledged_in_their_order_after_their_commit() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let mut stream = Open::at(&server).await?;
    let held = hold_flushes(&db).await?;
    // More than may be under way at once, under ids in no order.
    let sizes: Vec<i32> = (1..=12).collect();
    for size in &sizes {
        stream.send(i64::from(100 - size), events(usize::try_from(*size)?)).await?;
    }
    tokio::select! {
        early = stream.next() => anyhow::bail!("acknowledged before the commit: {early:?}"),
        waited = service_waits(&db) => waited?,
    }
    held.commit().await?;
    let mut so_far = 0;
    for size in sizes {
        so_far += i64::from(size);
        assert_eq!(stream.next().await?, accepted(i64::from(100 - size), size));
        assert!(raw_rows(&db).await? >= so_far);
    }
    drop(stream.batches);
    assert_eq!(stream.acknowledgements.message().await?, None);
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(so_far));
    Ok(())
}

#[tokio::test]
async fn each_event_of_a_batch_has_its_outcome() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let mut stream = Open::at(&server).await?;
    let first = events(3);
    let (repeat, conflict) = (first[0].clone(), UsageEvent { status_code: 404, ..first[1].clone() });
    stream.send(1, first).await?;
    let bad = UsageEvent { status_code: 7, ..event("eco_a") };
    let no_id = UsageEvent { event_id: "é".repeat(100_000), ..event("eco_a") };
    stream.send(2, vec![repeat, bad, event("eco_a"), conflict, event("eco_unknown"), no_id]).await?;
    assert_eq!(stream.next().await?, accepted(1, 3));
    let second = stream.next().await?;
    assert_eq!(
        (second.batch_id, second.accepted_count, second.duplicate_count, second.rejected_count),
        (2, 1, 1, 4)
    );
    let results: Vec<_> = second.results.iter().map(|r| (r.index, r.outcome())).collect();
    assert_eq!(
        results,
        [
            (0, EventOutcome::Duplicate),
            (1, EventOutcome::Invalid),
            (3, EventOutcome::Conflict),
            (4, EventOutcome::UnknownAccount),
            (5, EventOutcome::Invalid)
        ]
    );
    assert_eq!(second.results[1].field, "status_code");
    assert_eq!(second.results[4].event_id, format!("{}…", "é".repeat(32)), "it is not repeated whole");
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(4));
    Ok(())
}

#[tokio::test]
async fn a_batch_that_is_refused_as_a_whole_ends_the_stream_after_those_before_it() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    for wrong in [Vec::new(), events(10_001)] {
        let mut stream = Open::at(&server).await?;
        stream.send(1, events(2)).await?;
        stream.send(2, wrong).await?;
        assert_eq!(stream.next().await?, accepted(1, 2));
        let status = refused(stream.next().await, Code::InvalidArgument, "INVALID_ARGUMENT");
        assert_eq!(fields(&status), ["events"]);
    }
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(4));
    Ok(())
}

#[tokio::test]
async fn a_full_server_holds_a_stream_up_and_refuses_nothing_of_it() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let server = Server::start_with(Config { ingest_queue: 10_000, ..config(db.args()) }).await?;
    let mut stream = Open::at(&server).await?;
    let held = hold_flushes(&db).await?;
    for id in 0..4 {
        stream.send(id, events(4_000)).await?;
    }
    service_waits(&db).await?;
    held.commit().await?;
    for id in 0..4 {
        assert_eq!(stream.next().await?, accepted(id, 4_000));
    }
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(16_000));
    Ok(())
}

/// What waits for room is in memory, too: of many streams not all may.
#[tokio::test]
async fn a_full_server_holds_up_as_many_events_as_it_takes_and_refuses_the_streams_beyond() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let server = Server::start_with(Config { ingest_queue: 100, ..config(db.args()) }).await?;
    let held = hold_flushes(&db).await?;
    let mut streams = Vec::new();
    for id in 0..5 {
        let stream = Open::at(&server).await?;
        stream.send(id, events(50)).await?;
        streams.push(stream);
    }
    let (first, _, others) = select_all(streams.iter_mut().map(|stream| stream.next().boxed())).await;
    has_retry_info(&refused(first, Code::Unavailable, "OVERLOADED"))?;
    held.commit().await?;
    for answer in join_all(others).await {
        assert_eq!(answer?.accepted_count, 50);
    }
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(200));
    Ok(())
}

#[tokio::test]
async fn a_server_that_stops_acknowledges_what_it_read_and_ends_the_stream() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let (mut busy, mut idle) = (Open::at(&server).await?, Open::at(&server).await?);
    let held = hold_flushes(&db).await?;
    busy.send(1, events(5)).await?;
    service_waits(&db).await?;
    let stop = tokio::spawn(server.stop());
    refused(idle.next().await, Code::Unavailable, "STOPPING");
    held.commit().await?;
    assert_eq!(busy.next().await?, accepted(1, 5));
    refused(busy.next().await, Code::Unavailable, "STOPPING");
    tokio::time::timeout(TIMEOUT, stop).await???;
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(5));
    Ok(())
}

#[tokio::test]
async fn what_a_caller_that_goes_away_had_sent_is_written() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let stream = Open::at(&server).await?;
    let held = hold_flushes(&db).await?;
    stream.send(1, events(5)).await?;
    service_waits(&db).await?;
    drop(stream);
    held.commit().await?;
    server.stop().await?;
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(5));
    Ok(())
}

#[tokio::test]
async fn a_key_streams_for_its_own_account_until_it_is_revoked() -> Result<()> {
    let (db, server) = server().await?;
    for id in ["eco_a", "eco_b"] {
        account(&db, id, Plan::Pro).await?;
    }
    let made = make_key(&server, "eco_a", false).await?;
    let key = api_key(&made.key)?;
    let mut stream = Open::by(&key, &server).await?;
    stream.send(1, vec![UsageEvent { eco_id: String::new(), ..event("eco_a") }]).await?;
    assert_eq!(stream.next().await?, accepted(1, 1));
    let mut foreign = Open::by(&key, &server).await?;
    foreign.send(1, vec![event("eco_b")]).await?;
    refused(foreign.next().await, Code::PermissionDenied, "PERMISSION_DENIED");

    let revoke = RevokeApiKeyRequest { key_id: key_id(&made) };
    server.client()?.revoke_api_key(user("eco_a")?.request(revoke)).await?;
    stream.send(2, events(1)).await?;
    refused(stream.next().await, Code::Unauthenticated, "INVALID_API_KEY");
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(1));

    let by_user = Open::by(&user("eco_a")?, &server).await.err().context("users may not stream")?;
    refused(Err::<(), _>(by_user.downcast()?), Code::PermissionDenied, "PERMISSION_DENIED");
    Ok(())
}

/// How a stream of these messages ends.
async fn ends<M: prost::Message + Default + 'static>(
    server: &Server,
    rpc: &str,
    message: M,
) -> Result<Status> {
    let mut client = Grpc::new(server.channel()?);
    client.ready().await?;
    let path = PathAndQuery::try_from(format!("/nexus.usage.v1.UsageService/{rpc}"))?;
    let messages = service()?.request(stream::iter([message]));
    let answers = client.streaming(messages, path, ProstCodec::<M, ()>::default()).await?;
    answers.into_inner().message().await.err().context("it ends well")
}

/// Each is the other's: a text where a number is to be, or a number for a text.
#[tokio::test]
async fn a_stream_ends_at_what_is_no_message_and_says_so() -> Result<()> {
    let (_db, server) = server().await?;
    let text = LeaseQuotaRequest { eco_id: "eco_a".to_owned(), ..LeaseQuotaRequest::default() };
    let number = StreamUsageRequest { batch_id: 5, events: Vec::new() };
    for status in [ends(&server, "StreamUsage", text).await?, ends(&server, "LeaseQuota", number).await?] {
        refused(Err::<(), _>(status), Code::InvalidArgument, "MALFORMED_MESSAGE");
    }
    Ok(())
}
