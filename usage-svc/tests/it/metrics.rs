//! What an operator sees of the quota and of the queue.

use anyhow::Result;
use nexus_core::plan::Plan;
use nexus_kit::db;
use tonic::Code;

use crate::{
    lease_quota::{granted_of, settle},
    support::*,
};

#[tokio::test]
async fn units_are_counted_from_grant_to_return() -> Result<()> {
    let (db, one) = server().await?;
    let two = Server::start(db.args()).await?;
    hear(&db, 2).await?;
    account(&db, "eco_a", Plan::Free).await?;
    // The second check, at the pace of the first, leases more than it needs.
    check(&one, "eco_a", 400).await?;
    check(&one, "eco_a", 100).await?;
    let leased = granted(&db, "eco_a").await?;
    assert!(leased > 500);
    assert_eq!(one.metric("nexus_quota_granted_units_total").await?, leased);
    assert_eq!(one.metric("nexus_quota_admitted_units_total").await?, 500);

    // Only what the first gives back could make up for it, and that is not enough either.
    refused(check(&two, "eco_a", 501).await, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    assert!(two.metric("nexus_quota_recalls_total").await? >= 1);
    assert_eq!(two.metric("nexus_quota_refused_checks_total").await?, 1);
    assert_eq!(two.metric("nexus_quota_admitted_units_total").await?, 0);
    eventually(async || {
        let returned = one.metric("nexus_quota_returned_units_total").await?;
        Ok(returned == leased - 500 && granted(&db, "eco_a").await? == 500)
    })
    .await?;
    assert_eq!(one.metric("nexus_quota_open_units_total").await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn units_that_clients_hold_are_counted_as_well() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    hear(&db, 1).await?;
    let (mut client, lease) = granted_of(&server, 40).await?;
    assert_eq!(server.metric("nexus_quota_granted_units_total").await?, lease.granted_count);
    client.ask(settle(&lease.lease_id, 15)).await?;
    assert_eq!(server.metric("nexus_quota_returned_units_total").await?, lease.granted_count - 15);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_wait_are_shown_beside_their_bound() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    record(&server, event("eco_a")).await?;
    let waiting = async || server.metric("nexus_usage_waiting_events").await;
    assert_eq!(server.metric("nexus_usage_waiting_events_limit").await?, 100_000);
    eventually(async || Ok(waiting().await? == 0)).await?;

    // The flush waits for the account's counters.
    let mut transaction = db::begin(&db.pool).await?;
    sqlx::query("lock table eco_usage_counters").execute(&mut *transaction).await?;
    let batch = (0..7).map(|_| event("eco_a")).collect();
    let recording = record_batch(&server, batch);
    let watched = async {
        eventually(async || Ok(waiting().await? == 7)).await?;
        transaction.rollback().await.map_err(anyhow::Error::from)
    };
    let (recorded, watched) = tokio::join!(recording, watched);
    watched?;
    assert_eq!(recorded?.accepted_count, 7);
    eventually(async || Ok(waiting().await? == 0)).await
}
