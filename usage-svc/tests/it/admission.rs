//! Recording what was admitted: consumed once, never by a forged or foreign admission.

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use nexus_core::plan::Plan;
use nexus_proto::usage::v1::UsageEvent;
use nexus_testkit::seed;
use uuid::Uuid;

use crate::support::*;

fn admitted(eco_id: &str, admission: &str, units_count: i64) -> UsageEvent {
    UsageEvent { admission: admission.to_owned(), units_count, ..event(eco_id) }
}

/// Recorded and consumed units.
async fn position(server: &Server, eco_id: &str) -> Result<(i64, i64)> {
    let usage = current(server, eco_id).await?;
    Ok((usage.api_calls_count, usage.consumed_count))
}

#[tokio::test]
async fn recording_an_admitted_call_does_not_consume_twice() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Free).await?;
    let admission = check(&server, "eco_a", 3).await?.admission;
    assert_eq!(position(&server, "eco_a").await?, (0, 3));
    let event = admitted("eco_a", &admission, 2);
    record(&server, event.clone()).await?;
    record(&server, event).await?; // a repeat books nothing
    assert_eq!(position(&server, "eco_a").await?, (2, 3));
    // One unit of the lease is left: of four units three are beyond it.
    record(&server, admitted("eco_a", &admission, 4)).await?;
    assert_eq!(position(&server, "eco_a").await?, (6, 6));
    // It is used up.
    record(&server, admitted("eco_a", &admission, 1)).await?;
    assert_eq!(position(&server, "eco_a").await?, (7, 7));
    let booked: i64 =
        sqlx::query_scalar("select booked_units from eco_quota_leases").fetch_one(&db.pool).await?;
    assert_eq!(booked, 3);
    Ok(())
}

#[tokio::test]
async fn an_admission_cannot_be_forged_or_borrowed() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Free).await?;
    account(&db, "eco_b", Plan::Free).await?;
    let of_b = check(&server, "eco_b", 5).await?.admission;
    record(&server, admitted("eco_a", &of_b, 2)).await?;
    record(&server, admitted("eco_a", &Uuid::new_v4().to_string(), 3)).await?;
    assert_eq!(position(&server, "eco_a").await?, (5, 5));
    assert_eq!(position(&server, "eco_b").await?, (0, 5));
    let booked: i64 =
        sqlx::query_scalar("select booked_units from eco_quota_leases").fetch_one(&db.pool).await?;
    assert_eq!(booked, 0);
    Ok(())
}

#[tokio::test]
async fn an_admission_used_at_two_servers_at_once_is_booked_once() -> Result<()> {
    let (db, one) = server().await?;
    let two = Server::start(db.args()).await?;
    account(&db, "eco_a", Plan::Free).await?;
    let admission = check(&one, "eco_a", 10).await?.admission;
    let events: Vec<UsageEvent> = (0..20).map(|_| admitted("eco_a", &admission, 1)).collect();
    let calls = events.into_iter().enumerate().map(|(i, event)| {
        let server = if i % 2 == 0 { &one } else { &two };
        record(server, event)
    });
    futures::future::try_join_all(calls).await?;
    assert_eq!(position(&one, "eco_a").await?, (20, 20));
    assert_eq!(sums(&db.pool, "eco_a").await?, Sums { unadmitted: 10, ..plain(20) });
    Ok(())
}

/// A lease of the period that ended at `anchor`.
async fn lease_of_the_period_before(
    db: &nexus_testkit::db::TestDb,
    anchor: DateTime<Utc>,
) -> Result<(Uuid, DateTime<Utc>)> {
    let lease = Uuid::now_v7();
    let start: DateTime<Utc> = sqlx::query_scalar(
        "insert into eco_quota_leases (lease_id, eco_id, period_start, period_end, granted_units)
         values ($1, 'eco_a', nexus_period_start($2, $2 - interval '1 second'), $2, 5) returning period_start",
    )
    .bind(lease)
    .bind(anchor)
    .fetch_one(&db.pool)
    .await?;
    Ok((lease, start))
}

#[tokio::test]
async fn an_admitted_call_counts_in_its_leases_period_until_that_is_settled() -> Result<()> {
    for (ended, counts_in_the_leases) in [(TimeDelta::hours(1), true), (TimeDelta::hours(25), false)] {
        let (db, server) = server().await?;
        let anchor = now() - ended;
        seed::account(&db.pool, "eco_a", Plan::Free, anchor).await?;
        let (lease, start) = lease_of_the_period_before(&db, anchor).await?;
        record(&server, admitted("eco_a", &lease.to_string(), 1)).await?;
        let counted: (DateTime<Utc>, i64) =
            sqlx::query_as("select period_start, unadmitted_units from eco_usage_counters")
                .fetch_one(&db.pool)
                .await?;
        assert_eq!(counted, if counts_in_the_leases { (start, 0) } else { (anchor, 1) });
    }
    Ok(())
}
