//! The lines that `nexus dev` prints, run as they stand by a shell. `./test` brings grpcurl.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{curl::replay, support::Dev};

async fn shell(line: &str) -> Result<Value> {
    let output = Command::new("sh").args(["-c", line]).stdin(Stdio::null()).output().await.context("sh")?;
    ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[tokio::test]
async fn an_empty_runs_lines_work_in_their_order() -> Result<()> {
    let dev = Dev::start(&["--ephemeral", "--empty"]).await?;
    let (mut answers, mut record) = (Vec::new(), None);
    for line in dev.banner.lines() {
        if line.starts_with("grpcurl ") {
            answers.push(shell(line).await?);
            record = record.or(line.ends_with("/RecordUsage").then_some(line));
        } else if line.starts_with("curl ") {
            let status = replay(line).await?;
            ensure!(status.is_success(), "{status}: {line}");
        }
    }
    let [created, recorded, users, preview] = answers.as_slice() else {
        panic!("four calls by grpcurl: {answers:?}")
    };
    assert_eq!(created["account"]["ecoId"], "eco_demo_pro");
    assert_eq!(recorded["outcome"], "EVENT_OUTCOME_ACCEPTED");
    assert_eq!(users["users"][0]["ecoId"], "eco_demo_pro");
    // Two calls are no overage: nothing is planned, and nothing was begun.
    assert_eq!((preview.get("plannedCharges"), preview.get("runId")), (None, None));

    // Each run of the line is a call of its own, and both are the account's.
    let again = shell(record.context("a line that records")?).await?;
    assert_eq!(again["outcome"], "EVENT_OUTCOME_ACCEPTED");
    let pro = dev.text("/tokens/pro/token")?;
    assert_eq!(dev.get("/gateway_url", "/api/usage/current", pro).await?["api_calls"], json!(2));
    dev.stop().await
}
