//! A charge that was replaced is looked at once more: what its first request made late is taken back.

use anyhow::{Context, Result, ensure};
use hyper::Method;
use nexus_proto::billing::v1::ProcessOverageRequest;
use nexus_testkit::db::TestDb;
use serde_json::{Value, json};

use crate::{
    proxy::Proxy,
    recheck_world::{OPEN, PARKED, SETTLED, World},
    support::{Billing, Sim, begin, record, until},
};

#[tokio::test]
async fn a_late_item_is_deleted_after_ten_minutes_whatever_the_period_is() -> Result<()> {
    for state in [OPEN, PARKED, SETTLED] {
        let world = World::new().await?;
        world.late().await?;
        world.sql(state).await?;
        let ahead: bool = sqlx::query_scalar(
            "select recheck_time >= finished_time + interval '10 minutes' from eco_overage_charges
             where status = 'superseded'",
        )
        .fetch_one(&world.db.pool)
        .await?;
        ensure!(ahead, "it is looked at before 10 minutes");
        let early = world.billing.run_all().await?;
        assert_eq!((early.processed_count, world.deletions().await?), (0, 0), "{state}");

        world.ten_minutes_later().await?;
        let dry = world.billing.run(ProcessOverageRequest { dry_run: true, ..Default::default() }).await?;
        ensure!(dry.planned_charges.is_empty() && dry.errors.is_empty());
        assert_eq!(world.sim.amounts().await?, [10, 10], "a dry run touches nothing");
        world.has_recheck(true).await?;

        let run = world.billing.run_all().await?;
        assert_eq!((run.processed_count, run.charged_count, run.errors.len()), (1, 0, 0), "{state}");
        world.agrees(10).await?;
        world.has_recheck(false).await?;
        let again = world.billing.run_all().await?;
        assert_eq!((again.processed_count, world.deletions().await?), (0, 1), "{state}");
        world.billing.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn nothing_is_deleted_where_the_first_request_never_arrived() -> Result<()> {
    let world = World::new().await?;
    world.ten_minutes_later().await?;
    let run = world.billing.run_all().await?;
    assert_eq!((run.processed_count, run.charged_count, run.errors.len()), (1, 0, 0));
    assert_eq!(world.deletions().await?, 0);
    world.agrees(10).await?;
    world.has_recheck(false).await?;
    world.billing.stop().await
}

#[tokio::test]
async fn killed_between_delete_and_clear_the_next_run_finds_it_done() -> Result<()> {
    let mut world = World::new().await?;
    world.late().await?;
    world.ten_minutes_later().await?;
    world.sim.admin("/faults", json!({ "method": "DELETE", "hold": true })).await?;
    let doomed = std::mem::replace(&mut world.billing, Billing::start(&world.db, &world.sim.base).await?);
    world.kill_held(doomed).await?;
    world.has_recheck(true).await?;
    world.release().await?;
    assert_eq!(world.sim.amounts().await?, [10], "it is deleted, and nobody knows");
    let run = world.billing.run_all().await?;
    assert_eq!((run.processed_count, run.errors.len()), (1, 0));
    world.agrees(10).await?;
    world.has_recheck(false).await?;
    world.billing.stop().await
}

#[tokio::test]
async fn a_deletion_whose_answer_is_lost_is_seen_in_the_list() -> Result<()> {
    let world = World::new().await?;
    world.late().await?;
    world.ten_minutes_later().await?;
    world.sim.admin("/faults", json!({ "method": "DELETE", "outcome": { "kind": "drop" } })).await?;
    let run = world.billing.run_all().await?;
    assert_eq!((run.processed_count, run.errors.len(), world.deletions().await?), (1, 0, 1));
    world.agrees(10).await?;
    world.has_recheck(false).await?;
    world.billing.stop().await
}

#[tokio::test]
async fn a_late_item_that_is_invoiced_is_credited_whatever_the_period_is() -> Result<()> {
    for state in [OPEN, PARKED, SETTLED] {
        let world = World::new().await?;
        world.late().await?;
        world.sim.invoice(&world.customer).await?;
        world.sql(state).await?;
        if state == PARKED {
            // Owed, but the period is parked.
            record(&world.db, "eco_a", 100).await?;
        }
        world.ten_minutes_later().await?;
        let run = world.billing.run_all().await?;
        assert_eq!((run.processed_count, run.total_micros, run.errors.len()), (1, -100_000, 0), "{state}");
        assert_eq!(world.sim.amounts().await?, [10, 10, -10], "{state}");
        let credit = &world.sim.items().await?[2];
        assert_eq!(
            (&credit["description"], &credit["customer"]),
            (
                &json!("Correction, invoiced twice: API overage: 100 calls beyond 100k limit"),
                &json!(world.customer)
            )
        );
        world.agrees(10).await?;
        world.has_recheck(false).await?;
        let again = world.billing.run_all().await?;
        assert_eq!((again.charged_count, again.errors.len(), world.deletions().await?), (0, 0, 0));
        // What is used later is charged as ever.
        if state == OPEN {
            record(&world.db, "eco_a", 50).await?;
            assert_eq!(world.billing.run_all().await?.total_micros, 50_000);
            assert_eq!(
                world.sim.items().await?[3]["description"],
                json!("API overage: 50 calls beyond 100k limit")
            );
            world.agrees(15).await?;
        }
        world.billing.stop().await?;
    }
    Ok(())
}

/// Somebody has seen the second one, and voided its invoice: nobody was asked for it.
#[tokio::test]
async fn a_late_item_on_a_void_invoice_is_left_alone() -> Result<()> {
    let world = World::new().await?;
    world.late().await?;
    let invoice = world.sim.create("invoices", &format!("customer={}", world.customer)).await?;
    let line = format!("lines[0][invoice_item]={}", world.late_item().await?);
    for (step, form) in [("add_lines", line.as_str()), ("finalize", ""), ("void", "")] {
        world.sim.create(&format!("invoices/{invoice}/{step}"), form).await?;
    }
    world.ten_minutes_later().await?;
    let run = world.billing.run_all().await?;
    assert_eq!((run.processed_count, run.charged_count, run.errors.len()), (1, 0, 0));
    assert_eq!((world.sim.amounts().await?, world.deletions().await?), (vec![10, 10], 0));
    assert_eq!(world.billing.overage("eco_a").await?.billed_micros, 100_000);
    world.has_recheck(false).await?;
    world.billing.stop().await
}

#[tokio::test]
async fn killed_before_the_credit_is_recorded_the_next_run_credits_once() -> Result<()> {
    let mut world = World::new().await?;
    world.late().await?;
    world.sim.invoice(&world.customer).await?;
    world.ten_minutes_later().await?;
    world.sim.fault(json!({ "hold": true })).await?;
    let doomed = std::mem::replace(&mut world.billing, Billing::start(&world.db, &world.sim.base).await?);
    world.kill_held(doomed).await?;
    world.release().await?;
    let run = world.billing.run_all().await?;
    assert_eq!((run.charged_count, run.total_micros, run.errors.len()), (1, -100_000, 0));
    assert_eq!(world.sim.amounts().await?, [10, 10, -10]);
    world.agrees(10).await?;
    world.has_recheck(false).await?;
    world.billing.stop().await
}

#[tokio::test]
async fn a_listing_without_end_leaves_the_recheck_to_a_later_run_and_holds_up_nobody() -> Result<()> {
    let mut world = World::new().await?;
    world.late().await?;
    world.ten_minutes_later().await?;
    let proxy = Proxy::with_endless_listing(&world.sim).await?;
    let healthy = std::mem::replace(&mut world.billing, Billing::start(&world.db, &proxy.base).await?);
    world.sim.pro(&world.db, "eco_b").await?;
    record(&world.db, "eco_b", 100_200).await?;
    let run = world.billing.run_all().await?;
    assert_eq!((run.running, run.processed_count, run.charged_count), (false, 2, 1));
    assert_eq!((run.errors.len(), run.errors[0].eco_id.as_str()), (1, "eco_a"));
    assert_eq!(run.errors[0].reason, "IN_DOUBT");
    assert_eq!(proxy.answered(), 100, "it is read once, and not to its end");
    assert_eq!(world.sim.amounts().await?, [10, 10, 20]);
    world.has_recheck(true).await?;
    // Once the listing ends, what came late is taken back.
    assert_eq!(healthy.run_all().await?.errors.len(), 0);
    assert_eq!(world.sim.amounts().await?, [10, 20]);
    world.has_recheck(false).await?;
    healthy.stop().await?;
    world.billing.stop().await
}

#[tokio::test]
async fn a_charge_is_rechecked_only_after_its_last_attempt_is_resolved() -> Result<()> {
    let world = World::new().await?;
    world.late().await?;
    // As if the second attempt's answer had been lost, for longer than the recheck waits.
    world
        .sql(
            "update eco_overage_charges set status = 'pending', stripe_invoice_item_id = null, finished_time = null
             where status = 'succeeded'",
        )
        .await?;
    world.ten_minutes_later().await?;
    let run = world.billing.run_all().await?;
    assert_eq!((run.charged_count, run.errors.len(), world.deletions().await?), (1, 0, 0));
    world.has_recheck(true).await?;
    assert_eq!(world.billing.run_all().await?.processed_count, 0, "and ten minutes after that");
    world.ten_minutes_later().await?;
    assert_eq!(world.billing.run_all().await?.processed_count, 1);
    world.agrees(10).await?;
    world.has_recheck(false).await?;
    world.billing.stop().await
}

#[tokio::test]
async fn what_a_person_has_changed_at_stripe_is_named_and_left_alone() -> Result<()> {
    let form = "application/x-www-form-urlencoded";
    for (reason, ours) in [("ITEM_DIFFERS", false), ("ITEM_MISSING", true)] {
        let world = World::new().await?;
        world.late().await?;
        world.ten_minutes_later().await?;
        let late = world.late_item().await?;
        if ours {
            let items = world.sim.items().await?;
            let ids = items.iter().filter_map(|item| item["id"].as_str());
            let ours = ids.into_iter().find(|id| **id != *late).context("the ledger's item")?;
            world.sim.call(Method::DELETE, &format!("/v1/invoiceitems/{ours}"), form, String::new()).await?;
        } else {
            world.sim.create(&format!("invoiceitems/{late}"), "amount=7").await?;
        }
        let before: Vec<Value> = world.sim.items().await?;
        for _ in 0..2 {
            let run = world.billing.run_all().await?;
            assert_eq!((run.processed_count, run.charged_count, run.errors.len()), (1, 0, 1), "{reason}");
            assert_eq!((run.errors[0].eco_id.as_str(), run.errors[0].reason.as_str()), ("eco_a", reason));
            ensure!(run.errors[0].message.contains("must be reconciled"));
        }
        assert_eq!(world.sim.items().await?, before);
        world.has_recheck(true).await?;
        world.billing.stop().await?;
    }
    Ok(())
}

/// Between the list and the look at the ledger, the charge is taken off a draft that nobody finalises.
#[tokio::test]
async fn what_is_taken_back_while_it_is_listed_stays_out_of_the_ledger() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    let customer = sim.pro(&db, "eco_a").await?;
    record(&db, "eco_a", 100_100).await?;
    assert_eq!(billing.run_all().await?.charged_count, 1);
    let form = format!("customer={customer}&pending_invoice_items_behavior=include");
    sim.create("invoices", &form).await?;
    let item = sim.items().await?[0]["id"].as_str().context("an id")?.to_owned();
    let world = World { db, sim, billing, customer };
    world.sql("update eco_overage_charges set recheck_time = now()").await?;
    let hold = json!({ "method": "GET", "path": "/v1/invoiceitems", "hold": true });
    world.sim.admin("/faults", hold).await?;
    let call = begin(&world.billing);
    world.sim.read("/held").await?;

    let mut transaction = nexus_kit::db::begin(&world.db.pool).await?;
    for statement in [
        "lock table eco_overage_charges in access exclusive mode",
        "update eco_overage_charges set status = 'failed', stripe_invoice_item_id = null, failure_reason = 'TAKEN_BACK'",
        "update eco_usage_records set billed_micros = 0",
    ] {
        sqlx::query(statement).execute(&mut *transaction).await?;
    }
    world.release().await?;
    until(
        &world.db,
        "select exists (select from pg_stat_activity
                                     where datname = current_database() and wait_event_type = 'Lock')",
    )
    .await?;
    world.sim.delete(&format!("invoiceitems/{item}")).await?;
    transaction.commit().await?;
    let _answer = call.await??;
    // It is owed again, and charged again.
    world.billing.run_all().await?;
    world.agrees(10).await?;
    world.has_recheck(false).await?;
    world.billing.stop().await
}

/// While it is listed, somebody asks for it to be looked at again: what came since may not be in the list.
#[tokio::test]
async fn a_recheck_that_is_asked_for_while_one_is_under_way_is_not_lost() -> Result<()> {
    let world = World::new().await?;
    world.late().await?;
    world.ten_minutes_later().await?;
    world.billing.run_all().await?;
    world.has_recheck(false).await?;
    world.sql("update eco_overage_charges set recheck_time = now() where status = 'superseded'").await?;
    let hold = json!({ "method": "GET", "path": "/v1/invoiceitems", "hold": true });
    world.sim.admin("/faults", hold).await?;
    let call = begin(&world.billing);
    world.sim.read("/held").await?;
    world.sql("update eco_overage_charges set recheck_time = now() where recheck_time is not null").await?;
    world.release().await?;
    let run = call.await??;
    assert_eq!((run.processed_count, run.errors.len()), (1, 0));
    world.has_recheck(true).await?;
    assert_eq!(world.billing.run_all().await?.processed_count, 1);
    world.has_recheck(false).await?;
    world.agrees(10).await?;
    world.billing.stop().await
}
