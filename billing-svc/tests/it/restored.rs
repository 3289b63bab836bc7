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
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::{
    altered::agree,
    memory::Memory,
    reconcile::pairs,
    support::{Billing, NONE_WAITS, Sim, anchor, event, meter, only, record, runner, until},
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

/// After the backup it got another customer, by a subscription that was made for it, and was charged there. `known`: the
/// server is the one that it was.
async fn charged_on_a_customer_of_later(known: bool) -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    sim.pro(&db, "eco_a").await?;
    meter(&db, "eco_a", 100_100).await?;
    let (later, backup) = (db.restored().await?, db.restored().await?);
    if known {
        sqlx::query(IS_KNOWN).execute(&backup.pool).await?;
    }
    let billing = Billing::start(&later, &sim.base).await?;
    billing.reconcile(ReconcileRequest::default()).await?;
    let customer = sim.customer().await?;
    let price = sim.price("pro").await?;
    let form = format!("customer={customer}&items[0][price]={price}&metadata[eco_id]=eco_a");
    let subscription = sim.create("subscriptions", &form).await?;
    billing.event(&event("evt_1", "customer.subscription.created", json!({ "id": subscription }))).await?;
    until(&later, NONE_WAITS).await?;
    assert_eq!(billing.run_all().await?.charged_count, 1);
    assert_eq!(sim.items().await?[0]["customer"], *customer);
    sim.invoice(&customer).await?;
    billing.stop().await?;

    let billing = Billing::start(&backup, &sim.base).await?;
    let withheld = async || -> Result<()> {
        let run = billing.run_all().await?;
        let reasons: Vec<_> = run.errors.iter().map(|e| e.reason.as_str()).collect();
        assert_eq!((run.charged_count, reasons), (0, vec!["ACCOUNT_WITHHELD"]));
        Ok(())
    };
    let named = pairs(&[("eco_a", "ITEM_STRAY")]);
    if !known {
        // And so it stays, as long as it is looked at without a repair.
        for _ in 0..2 {
            assert_eq!(billing.differences(false).await?, named, "its event may come yet");
            withheld().await?;
        }
    }
    // It brings the customer, and the next one what was charged there.
    assert_eq!(billing.differences(true).await?, named);
    withheld().await?;
    assert_eq!(billing.differences(true).await?, pairs(&[("eco_a", "ITEM_EXTRA")]));
    agree(&billing, &sim, "eco_a", 10).await?;
    billing.stop().await
}

#[tokio::test]
async fn what_was_charged_on_a_customer_of_later_is_not_charged_again_on_the_one_of_before() -> Result<()> {
    charged_on_a_customer_of_later(false).await
}

#[tokio::test]
async fn nor_is_it_where_the_server_counts_as_known() -> Result<()> {
    charged_on_a_customer_of_later(true).await
}

/// The customer was changed by hand: nothing but a person brings it back, however often it is repaired.
#[tokio::test]
async fn an_item_that_waits_on_a_lost_customer_is_kept_until_somebody_decides() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    sim.pro(&db, "eco_a").await?;
    meter(&db, "eco_a", 100_100).await?;
    let (later, backup) = (db.restored().await?, db.restored().await?);
    let customer = sim.customer().await?;
    let set = "update eco_identities set stripe_customer_id = $1 where eco_id = 'eco_a'";
    sqlx::query(set).bind(&customer).execute(&later.pool).await?;
    let billing = Billing::start(&later, &sim.base).await?;
    billing.reconcile(ReconcileRequest::default()).await?;
    assert_eq!(billing.run_all().await?.charged_count, 1);
    billing.stop().await?;

    let billing = Billing::start(&backup, &sim.base).await?;
    for _ in 0..3 {
        assert_eq!(billing.differences(true).await?, pairs(&[("eco_a", "ITEM_STRAY")]));
        assert_eq!((billing.run_all().await?.charged_count, sim.amounts().await?), (0, vec![10]));
    }
    sqlx::query(set).bind(&customer).execute(&backup.pool).await?;
    assert_eq!(billing.differences(true).await?, pairs(&[("eco_a", "ITEM_EXTRA")]));
    agree(&billing, &sim, "eco_a", 10).await?;
    billing.stop().await
}

/// The database counts as the one that it was.
const IS_KNOWN: &str =
    "update eco_database_identity set ledger_oid = 'eco_overage_charges'::regclass::oid::bigint,
    database_oid = (select oid::bigint from pg_database where datname = current_database())";

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

/// A disk that was put back has the identity that it had: what its repair brings to an end is charged only once the ledger has
/// what it lost.
#[tokio::test]
async fn a_repair_on_a_server_that_counts_as_known_charges_nothing_twice() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    seed::account(&db.pool, "eco_a", Plan::Free, anchor()).await?;
    let customer = sim.customer().await?;
    let form =
        format!("customer={customer}&items[0][price]={}&metadata[eco_id]=eco_a", sim.price("pro").await?);
    let subscription = sim.create("subscriptions", &form).await?;
    billing.event(&event("evt_1", "customer.subscription.created", json!({ "id": subscription }))).await?;
    until(&db, NONE_WAITS).await?;
    // Counts alone: what the raw log says is not what this is about.
    record(&db, "eco_a", 100_500).await?;
    billing.stop().await?;

    let (later, backup) = (db.restored().await?, db.restored().await?);
    for database in [&later, &backup] {
        let same =
            "update eco_database_identity set ledger_oid = 'eco_overage_charges'::regclass::oid::bigint,
            database_oid = (select oid::bigint from pg_database where datname = current_database())";
        sqlx::query(same).execute(&database.pool).await?;
    }
    let billing = Billing::start(&later, &sim.base).await?;
    assert_eq!(billing.run_all().await?.charged_count, 1);
    sim.invoice(&customer).await?;
    sim.cancel(&subscription).await?;
    billing.stop().await?;
    // By then keys are forgotten.
    sim.admin("/clock", json!({ "advance_seconds": 25 * 3_600 })).await?;

    // Somebody else's.
    let withheld = "insert into eco_withheld_accounts (eco_id, oldest_item_time) values ('eco_z', now())";
    sqlx::query(withheld).execute(&backup.pool).await?;
    let billing = Billing::start(&backup, &sim.base).await?;
    let hold = json!({ "method": "GET", "path": "/v1/invoiceitems", "hold": true });
    sim.admin("/faults", hold).await?;
    let listed = async {
        sim.read("/held").await?;
        let ended = "select count(*) from eco_ended_subscriptions";
        assert_eq!(sqlx::query_scalar::<_, i64>(ended).fetch_one(&backup.pool).await?, 0);
        sim.admin("/release", json!({})).await
    };
    let (repaired, listed) = tokio::join!(billing.differences(true), listed);
    listed?;
    ensure!(repaired?.contains(&("eco_a".to_owned(), "ITEM_EXTRA".to_owned())));
    until(&backup, "select not exists (select from eco_ended_subscriptions where cleared_time is null)")
        .await?;
    assert_eq!(sim.amounts().await?, [50], "one item");
    assert_eq!(billing.differences(false).await?, pairs(&[("eco_a", "EVENTS_COUNTERS_DIFFER")]));
    assert_eq!(billing.run_all().await?.charged_count, 0);
    billing.stop().await
}
