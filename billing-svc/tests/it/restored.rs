//! A database that was restored, or failed over: nothing is charged before the ledger is known to be whole.

use std::{num::NonZeroU32, sync::Arc};

use anyhow::{Context, Result, ensure};
use nexus_billing::{
    app::process_overage::{Engine, charge_account},
    domain::period::PeriodKey,
    payments::pace::Pace,
};
use nexus_core::plan::Plan;
use nexus_kit::{
    db::{self, Role},
    status::reason,
};
use nexus_proto::billing::v1::{ProcessOverageRequest, ReconcileRequest};
use nexus_testkit::{db::TestDb, seed};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::{
    memory::Memory,
    support::{Billing, Sim, anchor, meter, only, record, runner},
};

async fn refused(billing: &Billing, request: ProcessOverageRequest) -> Result<()> {
    let refused = billing.client.clone().process_overage(runner()?.request(request)).await;
    let refused = refused.err().context("a run on a database that may have lost rows")?;
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "RECONCILE_REQUIRED"));
    Ok(())
}

#[tokio::test]
async fn nothing_is_charged_until_all_accounts_were_reconciled_with_stripe() -> Result<()> {
    for other in [
        "system_identifier = system_identifier + 1",
        "timeline_id = timeline_id + 1",
        "database_oid = database_oid + 1",
        "ledger_oid = ledger_oid + 1",
    ] {
        let (db, sim) = (TestDb::new().await?, Sim::start().await?);
        let billing = Billing::start(&db, &sim.base).await?;
        for eco_id in ["eco_a", "eco_b"] {
            sim.pro(&db, eco_id).await?;
            meter(&db, eco_id, 100_100).await?;
        }
        assert_eq!(billing.run_all().await?.charged_count, 2);
        // The backup is from before a charge, and of a server that is no more.
        sqlx::query("delete from eco_overage_charges where eco_id = 'eco_a'").execute(&db.pool).await?;
        sqlx::query("update eco_usage_records set billed_micros = 0 where eco_id = 'eco_a'")
            .execute(&db.pool)
            .await?;
        let statement = format!("update eco_database_identity set {other}");
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&db.pool).await?;

        refused(&billing, ProcessOverageRequest::default()).await?;
        refused(&billing, only("eco_b")).await?;
        let dry_run = ProcessOverageRequest { dry_run: true, ..Default::default() };
        assert_eq!(billing.run(dry_run).await?.charged_count, 1);
        // Neither some of the accounts, nor a ledger that lacks something.
        let of_b = ReconcileRequest { account_ids: vec!["eco_b".to_owned()], ..Default::default() };
        assert_eq!(billing.reconcile(of_b).await?.differences_count, 0);
        refused(&billing, ProcessOverageRequest::default()).await?;
        assert_eq!(billing.differences(false).await?.len(), 1);
        refused(&billing, ProcessOverageRequest::default()).await?;
        // What is not about the ledger holds up nothing.
        sqlx::query("delete from eco_api_usage where eco_id = 'eco_b'").execute(&db.pool).await?;
        assert_eq!(billing.differences(true).await?.len(), 2);
        assert_eq!(billing.run_all().await?.charged_count, 0);
        ensure!(sim.amounts().await? == [10, 10]);
        billing.stop().await?;
    }
    Ok(())
}

/// The server is the same, and so is its timeline.
#[tokio::test]
async fn a_backup_that_is_loaded_into_the_same_server_is_known_for_one() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    sim.pro(&db, "eco_a").await?;
    meter(&db, "eco_a", 100_100).await?;
    let backup = db.restored().await?;
    let billing = Billing::start(&backup, &sim.base).await?;
    refused(&billing, ProcessOverageRequest::default()).await?;
    ensure!(billing.differences(false).await?.is_empty());
    assert_eq!(billing.run_all().await?.charged_count, 1);
    billing.stop().await
}

/// A server takes over while a run, or a settlement, is under way.
#[tokio::test]
async fn what_is_under_way_charges_nothing_more_on_another_server() -> Result<()> {
    let (db, memory) = (TestDb::new().await?, Arc::new(Memory::new()));
    memory.add_customer("cus_1");
    seed::account(&db.pool, "eco_a", Plan::Pro, anchor()).await?;
    seed::stripe_ids(&db.pool, "eco_a", "cus_1", None).await?;
    record(&db, "eco_a", 105_000).await?;
    let pool = db::pool(&db.args(), Role::Billing)?;
    nexus_billing::app::refresh::drain(&pool).await?;
    let rate = NonZeroU32::new(1_000).context("not zero")?;
    let engine = Engine::new(pool, memory.clone(), Pace::new(rate), 1, CancellationToken::new());
    let start = sqlx::query_scalar("select period_start from eco_usage_records").fetch_one(&db.pool).await?;
    let period = PeriodKey { eco_id: "eco_a".to_owned(), start };
    sqlx::query("update eco_database_identity set timeline_id = timeline_id + 1").execute(&db.pool).await?;
    let charged = charge_account(&engine.outside_runs(), std::slice::from_ref(&period)).await;
    let error = charged.error.context("an error")?;
    assert_eq!(error.reason, "RECONCILE_REQUIRED");
    ensure!(memory.items().is_empty());
    sqlx::query("update eco_database_identity set timeline_id = timeline_id - 1").execute(&db.pool).await?;
    ensure!(charge_account(&engine.outside_runs(), &[period]).await.charged);
    Ok(())
}
