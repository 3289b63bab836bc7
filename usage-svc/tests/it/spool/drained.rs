//! What is drained long after it was accepted, and what cannot be counted then.

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use nexus_core::{id::EcoId, plan::Plan};
use nexus_usage::{
    domain::event::{Event, Payload},
    spool::{Call, Spool},
};
use uuid::Uuid;

use super::*;

/// An event that was accepted then; its units tell it from others.
fn spooled(units: i64, at: DateTime<Utc>, accepted: DateTime<Utc>) -> Result<Event> {
    Ok(Event {
        event_id: Uuid::now_v7(),
        eco_id: EcoId::parse("eco_a")?,
        accepted: Some(accepted),
        payload: Payload {
            event_time: at,
            endpoint: "/v1/things".to_owned(),
            method: "GET".to_owned(),
            status_code: 200,
            response_time_ms: 3,
            units_count: units,
            api_key_id: None,
            admission: None,
        },
    })
}

/// Puts events there, as a server does that a service sends them.
fn put(spool: &Spool, events: &[Event]) -> Result<()> {
    let kept = spool.append(&[Call { events: events.iter().collect(), by_key: false }])?;
    assert_eq!(kept, [true]);
    Ok(())
}

/// A server whose spool had these events when it started; it has drained them.
async fn drain(db: &TestDb, events: &[Event]) -> Result<(Server, TempDir)> {
    let folder = TempDir::new()?;
    let spool = Spool::open(folder.path(), 1 << 30)?;
    put(&spool, events)?;
    drop(spool);
    let server = Server::start_with(with_spool(config(db.args()), folder.path())).await?;
    drained(&server).await?;
    Ok((server, folder))
}

fn days(days: i64) -> TimeDelta {
    TimeDelta::days(days)
}

#[tokio::test]
async fn events_count_though_they_are_too_old_by_now() -> Result<()> {
    let db = TestDb::new().await?;
    let anchor = now() - days(100);
    nexus_testkit::seed::account(&db.pool, "eco_a", Plan::Pro, anchor).await?;
    let events =
        [spooled(1, now() - days(36), now() - days(2))?, spooled(2, now() - days(34), now() - days(1))?];
    let _drained = drain(&db, &events).await?;
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(3));
    // Their own periods are settled: they count in the one that is now.
    let periods = "select count(*) from eco_api_usage
        where late and period_start = nexus_period_start($1, now())";
    let late: i64 = sqlx::query_scalar(periods).bind(anchor).fetch_one(&db.pool).await?;
    assert_eq!(late, 2);
    Ok(())
}

#[tokio::test]
async fn an_account_that_was_closed_meanwhile_takes_the_calls_from_before() -> Result<()> {
    let db = TestDb::new().await?;
    nexus_testkit::seed::account(&db.pool, "eco_a", Plan::Pro, now() - days(20)).await?;
    let closed = now() - days(5);
    sqlx::query("update eco_identities set status = 'closed', closed_time = $1")
        .bind(closed)
        .execute(&db.pool)
        .await?;
    let events = [
        // Within the grace, and only now after it.
        spooled(1, closed - TimeDelta::hours(1), closed + TimeDelta::hours(1))?,
        spooled(2, closed + TimeDelta::hours(1), closed + TimeDelta::hours(1))?,
        spooled(4, closed - TimeDelta::hours(1), closed + TimeDelta::hours(25))?,
    ];
    let _drained = drain(&db, &events).await?;
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(1));
    let closed = |units| ("closed_account".to_owned(), units);
    assert_eq!(quarantine(&db).await?, [closed(2), closed(4)]);
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_counted_is_in_quarantine_and_the_rest_is_counted() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    sqlx::raw_sql("alter table eco_api_usage add constraint superstition check (units_count <> 13)")
        .execute(&db.pool)
        .await?;
    let at = now();
    let mut events: Vec<Event> = (1..=30).map(|units| spooled(units, at, at)).collect::<Result<_>>()?;
    events[2].eco_id = EcoId::parse("eco_nobody")?;
    events[4].payload.api_key_id = Some(format!("eco_api_{}", "x".repeat(22)));
    events[6].payload.event_time = now() - days(60);
    events[6].accepted = Some(now() - days(30));
    let mut conflict = events[7].clone();
    conflict.payload.units_count = 100;
    events.push(conflict);
    let (server, _folder) = drain(&db, &events).await?;
    let found = quarantine(&db).await?;
    let found: Vec<(&str, i64)> = found.iter().map(|(reason, units)| (reason.as_str(), *units)).collect();
    let expected = [
        ("conflict", 100),
        ("day_not_retained", 7),
        ("foreign_key", 5),
        ("rejected", 13),
        ("unknown_account", 3),
    ];
    assert_eq!(found, expected);
    assert_eq!(sums(&db.pool, "eco_a").await?, plain((1..=30).sum::<i64>() - 3 - 5 - 7 - 13));
    assert_eq!(server.metric("nexus_usage_quarantined_events_total").await?, 5);
    assert_eq!(server.metric("nexus_usage_drained_events_total").await?, 26);
    // Whole, so that it can be counted by hand.
    let kept: (Uuid, DateTime<Utc>, String, Option<DateTime<Utc>>) = sqlx::query_as(
        "select event_id, event_time, endpoint, accepted_time from eco_usage_quarantine where units_count = 13",
    )
    .fetch_one(&db.pool)
    .await?;
    assert_eq!(kept, (events[12].event_id, at, "/v1/things".to_owned(), Some(at)));
    Ok(())
}

#[tokio::test]
async fn a_spool_of_several_batches_and_journals_is_counted_in_full() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let folder = TempDir::new()?;
    let spool = Spool::open(folder.path(), 1 << 30)?;
    for _ in 0..3 {
        let events: Vec<Event> = (0..7_000).map(|_| spooled(1, now(), now())).collect::<Result<_>>()?;
        put(&spool, &events)?;
    }
    drop(spool);
    // Another journal of the same spool.
    let spool = Spool::open(folder.path(), 1 << 30)?;
    put(&spool, &[spooled(1, now(), now())?])?;
    drop(spool);
    assert_eq!(files(folder.path(), "redb")?.len(), 2);
    let server = Server::start_with(with_spool(config(db.args()), folder.path())).await?;
    drained(&server).await?;
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(21_001));
    eventually(async || Ok(files(folder.path(), "redb")?.is_empty())).await
}
