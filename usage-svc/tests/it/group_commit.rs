//! The writer: calls that gather share a transaction, and none spoils the others.

use std::sync::Arc;

use anyhow::Result;
use futures::future::join_all;
use nexus_core::{id::EcoId, plan::Plan};
use nexus_kit::db::{self, Role};
use nexus_testkit::db::TestDb;
use nexus_usage::{
    Error,
    app::{
        away::Away,
        feed,
        flush::FlushError,
        outage::Outage,
        record_usage::Recorder,
        writer::{self, Bounds, WriterMetrics},
    },
    domain::event::{Event, Outcome, Payload},
};
use prometheus_client::registry::Registry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::*;

/// A writer alone. On a test's one thread it takes its turn after all calls that were made together.
fn start(db: &TestDb, stop: &CancellationToken) -> Result<(Recorder, JoinHandle<()>)> {
    start_many(db, 1, stop)
}

fn start_many(db: &TestDb, writers: u32, stop: &CancellationToken) -> Result<(Recorder, JoinHandle<()>)> {
    let pool = db::pool(&db.args(), Role::Usage)?;
    let metrics = WriterMetrics::register(&mut Registry::default());
    let bounds = Bounds { writers, one_try: TIMEOUT, events: 10_000 };
    let (feed, _) = feed::start(&db.args(), stop.clone())?;
    let away = Away::Refused(Arc::new(Outage::new(feed)));
    Ok(writer::start(&pool, bounds, &metrics, &Default::default(), &away, stop))
}

fn event_on(endpoint: &str) -> Result<Event> {
    event_of("eco_a", endpoint)
}

fn event_of(eco_id: &str, endpoint: &str) -> Result<Event> {
    Ok(Event {
        event_id: Uuid::now_v7(),
        eco_id: EcoId::parse(eco_id)?,
        accepted: None,
        payload: Payload {
            event_time: now(),
            endpoint: endpoint.to_owned(),
            method: "GET".to_owned(),
            status_code: 200,
            response_time_ms: 1,
            units_count: 1,
            api_key_id: None,
            admission: None,
        },
    })
}

async fn transactions(db: &TestDb) -> Result<i64> {
    Ok(sqlx::query_scalar("select count(distinct xmin::text) from eco_api_usage").fetch_one(&db.pool).await?)
}

#[tokio::test]
async fn calls_that_gather_share_a_transaction() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let stop = CancellationToken::new();
    let (recorder, writer) = start(&db, &stop)?;
    let events = (0..100).map(|_| event_on("/v1/a")).collect::<Result<Vec<_>>>()?;
    for outcomes in join_all(events.into_iter().map(|e| recorder.record(vec![e], None))).await {
        assert_eq!(outcomes?, [Outcome::Accepted]);
    }
    assert_eq!(transactions(&db).await?, 1);
    // Nobody is waited for: a lone event is written at once.
    assert_eq!(recorder.record(vec![event_on("/v1/a")?], None).await?, [Outcome::Accepted]);
    assert_eq!(transactions(&db).await?, 2);
    stop.cancel();
    writer.await?;
    let refused = recorder.record(vec![event_on("/v1/a")?], None).await;
    assert!(matches!(refused, Err(Error::Stopping)), "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn an_event_that_cannot_be_written_fails_only_its_own_call() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    sqlx::query("alter table eco_api_usage add check (endpoint <> '/poison')").execute(&db.pool).await?;
    let stop = CancellationToken::new();
    let (recorder, writer) = start(&db, &stop)?;
    let (before, poison, after) = tokio::join!(
        recorder.record(vec![event_on("/v1/a")?], None),
        recorder.record(vec![event_on("/poison")?], None),
        recorder.record(vec![event_on("/v1/b")?], None),
    );
    assert_eq!((before?, after?), (vec![Outcome::Accepted], vec![Outcome::Accepted]));
    assert!(matches!(poison, Err(Error::Flush(FlushError::Rejected))), "{poison:?}");
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(2));
    stop.cancel();
    writer.await?;
    Ok(())
}

#[tokio::test]
async fn where_one_writers_part_fails_the_same_events_sent_again_are_counted_once() -> Result<()> {
    let db = TestDb::new().await?;
    let ids: Vec<String> = (0..32).map(|n| format!("eco_{n}")).collect();
    for id in &ids {
        account(&db, id, Plan::Pro).await?;
    }
    let stop = CancellationToken::new();
    let (recorder, writers) = start_many(&db, 2, &stop)?;
    let events = ids.iter().map(|id| event_of(id, "/v1/a")).collect::<Result<Vec<_>>>()?;
    sqlx::query("alter table eco_usage_counters add constraint fails check (eco_id <> 'eco_7')")
        .execute(&db.pool)
        .await?;
    let failed = recorder.record(events.clone(), None).await;
    assert!(matches!(failed, Err(Error::Flush(FlushError::Rejected))), "{failed:?}");
    sqlx::query("alter table eco_usage_counters drop constraint fails").execute(&db.pool).await?;

    let again = recorder.record(events, None).await?;
    let written_before = again.iter().filter(|outcome| **outcome == Outcome::Duplicate).count();
    assert!((1..32).contains(&written_before), "{written_before} were counted by the other writer");
    assert!(again.iter().all(|outcome| matches!(outcome, Outcome::Duplicate | Outcome::Accepted)));
    assert_eq!(again[7], Outcome::Accepted);
    for id in &ids {
        assert_eq!(sums(&db.pool, id).await?, plain(1), "{id}");
    }
    stop.cancel();
    writers.await?;
    Ok(())
}
