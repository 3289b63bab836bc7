//! What a reconciliation has taken over from Stripe: what is told of it, on whose behalf it was done; and what was made and
//! is gone when a run comes back to it.

use anyhow::{Context, Result, ensure};
use nexus_proto::billing::v1::{ExplainChargeRequest, ListChargesRequest};
use nexus_testkit::db::TestDb;
use serde_json::json;

use crate::{
    altered::{agree, edit, id, item_of},
    reconcile::{charged, copy, sql},
    support::{Billing, Sim, meter, runner},
};

async fn told(billing: &Billing) -> Result<String> {
    let request = ListChargesRequest { eco_id: "eco_a".to_owned(), ..Default::default() };
    let charges = billing.client.clone().list_charges(runner()?.request(request)).await?.into_inner().charges;
    let charge_id = charges.first().context("a charge")?.charge_id.clone();
    let request = ExplainChargeRequest { charge_id };
    Ok(billing.client.clone().explain_charge(runner()?.request(request)).await?.into_inner().explanation)
}

/// Who has changed the charges since an entry of the audit log.
async fn actors(db: &TestDb, after: i64) -> Result<Vec<String>> {
    let actors = "select distinct actor from eco_audit_log where subject in ('charge', 'parked_period') and audit_id > $1";
    Ok(sqlx::query_scalar(actors).bind(after).fetch_all(&db.pool).await?)
}

#[tokio::test]
async fn repairs_are_told_for_what_they_are_and_are_their_callers() -> Result<()> {
    for way in ["accepted", "adopted", "revived", "given up", "second"] {
        let (db, sim) = (TestDb::new().await?, Sim::start().await?);
        let billing = charged(&db, &sim, &["eco_a"]).await?;
        let first = told(&billing).await?;
        let item = item_of(&sim, "eco_a").await?;
        match way {
            "accepted" => edit(&sim, &item, "amount=4").await?,
            "adopted" => {
                sql(&db, "delete from eco_overage_charges").await?;
                sql(&db, "update eco_usage_records set billed_micros = 0").await?;
            }
            "revived" => {
                sql(&db, "update eco_overage_charges set status = 'failed', stripe_invoice_item_id = null")
                    .await?;
                sql(&db, "update eco_usage_records set billed_micros = 0").await?;
            }
            "given up" => {
                sim.delete(&format!("invoiceitems/{}", id(&item)?)).await?;
            }
            _ => {
                let customer = item["customer"].as_str().context("a customer")?;
                sim.invoice(customer).await?;
                copy(&sim, &item, &[]).await?;
                sim.invoice(customer).await?;
            }
        }
        let last: i64 =
            sqlx::query_scalar("select max(audit_id) from eco_audit_log").fetch_one(&db.pool).await?;
        ensure!(billing.differences(true).await?.len() == 1, "{way}");
        let actors = actors(&db, last).await?;
        ensure!(actors.len() == 1 && actors[0].starts_with("service:"), "{way}: {actors:?}");
        let (now, taken) = (told(&billing).await?, "A reconciliation took it over on ");
        match way {
            "accepted" => {
                let rest = now.strip_prefix(taken).context("taken over")?;
                ensure!(
                    rest.ends_with(&format!(" as Stripe had it. It was first written down so: {first}")),
                    "{now}"
                );
            }
            "adopted" => ensure!(now.starts_with(taken) && now.ends_with("is not in the ledger."), "{now}"),
            "second" => ensure!(now.contains("on an invoice twice"), "{now}"),
            _ => assert_eq!(now, first, "{way}"),
        }
        billing.stop().await?;
    }
    Ok(())
}

/// Every answer is lost; then somebody deletes the item before the next run, whose request Stripe answers as it did the first.
#[tokio::test]
async fn an_item_that_was_deleted_since_is_not_taken_for_charged() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    sim.pro(&db, "eco_a").await?;
    meter(&db, "eco_a", 100_100).await?;
    sim.fault(json!({ "times": 6, "outcome": { "kind": "drop", "effect": true } })).await?;
    assert_eq!(billing.run_all().await?.errors.len(), 1);
    sim.call(hyper::Method::DELETE, "/_sim/faults", "application/json", String::new()).await?;
    sim.delete(&format!("invoiceitems/{}", id(&item_of(&sim, "eco_a").await?)?)).await?;
    let run = billing.run_all().await?;
    assert_eq!((run.charged_count, run.errors.len()), (1, 0), "{run:?}");
    assert_eq!(sim.amounts().await?, [10]);
    agree(&billing, &sim, "eco_a", 10).await?;
    billing.stop().await
}
