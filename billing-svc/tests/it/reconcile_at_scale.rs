//! 1,500 accounts, 500 of them altered at Stripe in five ways: each fault is found as what it is, and no other.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use hyper::Method;
use nexus_proto::billing::v1::{ProcessOverageRequest, ReconcileRequest, ReconcileResponse};
use nexus_testkit::db::TestDb;
use serde_json::Value;

use crate::{
    reconcile::copy,
    support::{Billing, Sim},
};

const CLEAN: usize = 1_000;
const FAULTY: usize = 500;
const AT_ONCE: usize = 16;
const FORM: &str = "application/x-www-form-urlencoded";

/// The way in which a faulty account is altered, by its number.
const KINDS: [&str; 5] =
    ["ITEM_MISSING", "ITEM_EXTRA", "ITEM_AMOUNT_DIFFERS", "ITEM_WRONG_CUSTOMER", "ITEM_WRONG_PERIOD"];

fn eco_id(n: usize) -> String {
    format!("eco_{n:04}")
}

/// Pro accounts with a customer each, that have used 100 to 399 units beyond what is included.
async fn accounts(db: &TestDb, sim: &Sim) -> Result<()> {
    let customers: Vec<String> =
        stream::iter(0..CLEAN + FAULTY).map(|_| sim.customer()).buffered(AT_ONCE).try_collect().await?;
    let mut transaction = nexus_kit::db::begin(&db.pool).await?;
    for statement in [
        "insert into eco_identities (eco_id, stripe_customer_id)
         select 'eco_' || lpad((n - 1)::text, 4, '0'), c from unnest($1::text[]) with ordinality as u (c, n)",
        "insert into eco_subscriptions (eco_id, plan, plan_version, status, anchor_time)
         select eco_id, 'pro', 1, 'active', now() - interval '3 days' from eco_identities where $1::text[] is not null",
        "insert into eco_api_usage (event_id, eco_id, event_day, event_time, period_start, segment, units_count, endpoint,
                                    method, status_code, response_time_ms, test_mode, late)
         select gen_random_uuid(), eco_id, (now() at time zone 'UTC')::date, now(), nexus_period_start(anchor_time, now()),
                0, 100100 + substr(eco_id, 5)::int % 300, '/v1/x', 'GET', 200, 10, false, false
         from eco_subscriptions where $1::text[] is not null",
        "select increment_api_calls(array_agg(eco_id), array_agg(period_start), array_agg(0), 0::smallint,
                array_agg(units), array_agg(units), array_agg(0::bigint), array_agg(now()))
         from (select eco_id, period_start, units_count as units from eco_api_usage
               where $1::text[] is not null order by eco_id) u",
    ] {
        sqlx::query(statement).bind(&customers).execute(&mut *transaction).await?;
    }
    Ok(transaction.commit().await?)
}

/// Reconciles everything, however long that takes.
async fn reconcile(billing: &Billing, n: u8) -> Result<ReconcileResponse> {
    let request_id = format!("0b9c0bd4-55a6-4a2e-8a3f-9d1d4c1a7f{n:02}");
    billing.reconciled(ReconcileRequest { request_id, ..Default::default() }).await
}

/// Charges everybody.
async fn charge(billing: &Billing) -> Result<()> {
    let request = ProcessOverageRequest {
        request_id: "0b9c0bd4-55a6-4a2e-8a3f-9d1d4c1a7f77".to_owned(),
        ..Default::default()
    };
    loop {
        let run = billing.run(request.clone()).await?;
        if !run.running {
            ensure!(run.charged_count as usize == CLEAN + FAULTY && run.errors.is_empty(), "{run:?}");
            return Ok(());
        }
    }
}

async fn alter(sim: &Sim, n: usize, item: &Value, stranger: &str) -> Result<()> {
    let id = item["id"].as_str().context("an id")?;
    let path = format!("/v1/invoiceitems/{id}");
    let delete = async || sim.call(Method::DELETE, &path, FORM, String::new()).await;
    match KINDS[n % KINDS.len()] {
        "ITEM_MISSING" => drop(delete().await?),
        "ITEM_EXTRA" => {
            let charge = uuid::Uuid::from_u128(n as u128).to_string();
            copy(sim, item, &[("metadata[charge_id]", &charge)]).await?;
        }
        "ITEM_AMOUNT_DIFFERS" => {
            let amount = item["amount"].as_i64().context("an amount")? + 1;
            sim.call(Method::POST, &path, FORM, format!("amount={amount}")).await?;
        }
        "ITEM_WRONG_CUSTOMER" => {
            delete().await?;
            copy(sim, item, &[("customer", stranger)]).await?;
        }
        "ITEM_WRONG_PERIOD" => {
            let start = "metadata[billing_period_start]=2020-01-01T00%3A00%3A00Z";
            sim.call(Method::POST, &path, FORM, start.to_owned()).await?;
        }
        other => anyhow::bail!("{other}"),
    }
    Ok(())
}

#[tokio::test]
async fn five_hundred_faults_are_found_and_a_thousand_clean_accounts_raise_no_alarm() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    accounts(&db, &sim).await?;
    let billing = Billing::start(&db, &sim.base).await?;
    charge(&billing).await?;
    let clean = reconcile(&billing, 1).await?;
    assert_eq!(clean.differences_count, 0, "{:?}", clean.differences);
    assert_eq!((clean.accounts_count, clean.items_count), (1_500, 1_500));

    let stranger = sim.customer().await?;
    let items = sim.items().await?;
    let by_account: BTreeMap<&str, &Value> =
        items.iter().filter_map(|item| Some((item["metadata"]["eco_id"].as_str()?, item))).collect();
    stream::iter(0..FAULTY)
        .map(|n| {
            let (by_account, sim, stranger) = (&by_account, &sim, &stranger);
            async move {
                let item = by_account.get(eco_id(n).as_str()).context("an item")?;
                alter(sim, n, item, stranger).await
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;

    let found = reconcile(&billing, 2).await?;
    assert_eq!(found.differences_count, found.differences.len() as i64, "not all are told");
    let mut found: Vec<_> = found.differences.into_iter().map(|d| (d.eco_id, d.kind)).collect();
    found.sort();
    let expected: Vec<_> = (0..FAULTY).map(|n| (eco_id(n), KINDS[n % KINDS.len()].to_owned())).collect();
    ensure!(found == expected, "{} found: {found:?}", found.len());
    billing.stop().await
}
