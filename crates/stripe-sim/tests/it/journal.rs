//! The state over restarts.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::json;
use stripe_sim::{Config, Error};

use crate::harness::{Sim, header, id};

async fn start(file: &Path) -> Result<Sim> {
    Sim::start_with(Config { data: Some(file.to_owned()), ..Config::default() }).await
}

#[tokio::test]
async fn everything_survives_a_restart() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("stripe.jsonl");
    let sim = start(&file).await?;
    let customer = sim.customer().await?;
    let gone = id(&sim.item(&customer, "5", &[]).await?)?;
    sim.delete(&format!("/v1/invoiceitems/{gone}")).send().await?.error_for_status()?;
    sim.item(&customer, "100", &[]).await?;
    sim.create("/v1/invoices", &[("customer", &customer), ("pending_invoice_items_behavior", "include")])
        .await?;
    sim.subscription(&customer).await?;
    let keyed = |sim: &Sim| sim.post("/v1/customers", &[]).header("Idempotency-Key", "k");
    let kept = keyed(&sim).send().await?.text().await?;
    sim.advance(3600).await?;
    let before = sim.read("/_sim/state").await?;
    sim.stop().await?;

    let sim = start(&file).await?;
    assert_eq!(sim.read("/_sim/state").await?, before);
    let replayed = keyed(&sim).send().await?;
    assert_eq!(header(&replayed, "idempotent-replayed").as_deref(), Some("true"));
    assert_eq!(replayed.text().await?, kept);
    let now = sim.read("/_sim/clock").await?["now"].as_i64().unwrap_or(0);
    ensure!(now >= chrono::Utc::now().timestamp() + 3590);
    sim.stop().await
}

#[tokio::test]
async fn a_torn_last_line_is_dropped_and_written_over() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("stripe.jsonl");
    let sim = start(&file).await?;
    let first = sim.customer().await?;
    let second = sim.customer().await?;
    sim.stop().await?;
    let content = fs::read(&file)?;
    fs::write(&file, &content[..content.len() - 10])?;

    let sim = start(&file).await?;
    let path = |id: &str| format!("/v1/customers/{id}");
    assert_eq!(sim.get(&path(&first)).send().await?.status(), 200);
    assert_eq!(sim.get(&path(&second)).send().await?.status(), 404);
    let third = sim.customer().await?;
    sim.stop().await?;

    let sim = start(&file).await?;
    assert_eq!(sim.get(&path(&first)).send().await?.status(), 200);
    assert_eq!(sim.get(&path(&third)).send().await?.status(), 200);
    sim.stop().await
}

#[tokio::test]
async fn a_damaged_or_used_journal_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("stripe.jsonl");
    let sim = start(&file).await?;
    sim.customer().await?;
    let second = start(&file).await?.stop().await;
    ensure!(second.is_err_and(|error| matches!(error.downcast_ref(), Some(Error::JournalInUse { .. }))));
    sim.stop().await?;

    let content = fs::read_to_string(&file)?;
    fs::write(&file, format!("{}\n{content}", json!({ "not": "a line" })))?;
    let damaged = start(&file).await?.stop().await;
    ensure!(
        damaged
            .is_err_and(|error| matches!(error.downcast_ref(), Some(Error::JournalCorrupt { line: 1, .. })))
    );
    Ok(())
}
