use std::{os::unix::process::ExitStatusExt, time::Duration};

use anyhow::{Context, Result};
use nexus_proto::{common::v1::Plan, usage::v1::RecordUsageRequest};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{sync::watch, time::timeout};

use super::suite::{Suite, event};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_server_ends_by_itself_on_sigterm_and_on_sigint() -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut suite = Suite::start().await?;
        for (name, mut server) in suite.servers.drain() {
            let pid = Pid::from_raw(server.child.id().context("running")?.try_into()?);
            kill(pid, signal)?;
            let status = timeout(Duration::from_secs(20), server.child.wait())
                .await
                .with_context(|| format!("{name} hangs"))??;
            assert_eq!((status.code(), status.signal()), (Some(0), None), "{name} on {signal}");
        }
    }
    Ok(())
}

/// Calls that are under way when SIGTERM comes are answered, and what was acknowledged is counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_server_finishes_what_is_in_flight() -> Result<()> {
    let mut suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    let (acknowledged, mut progress) = watch::channel(0i64);
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let (mut client, acknowledged) = (suite.usage()?, acknowledged.clone());
            let request =
                move |suite: &Suite| suite.request(RecordUsageRequest { event: Some(event("eco_a", 1)) });
            let requests: Vec<_> = (0..500).map(|_| request(&suite)).collect::<Result<_>>()?;
            Ok(tokio::spawn(async move {
                for request in requests {
                    match client.record_usage(request).await {
                        Ok(_) => acknowledged.send_modify(|n| *n += 1),
                        Err(status) => return Some(status),
                    }
                }
                None
            }))
        })
        .collect::<Result<_>>()?;
    progress.wait_for(|n| *n > 200).await?;
    let mut server = suite.servers.remove("usage").context("running")?;
    kill(Pid::from_raw(server.child.id().context("running")?.try_into()?), Signal::SIGTERM)?;
    let status = timeout(Duration::from_secs(20), server.child.wait()).await??;
    assert_eq!(status.code(), Some(0));
    for caller in callers {
        // A call that the client had not sent yet ends as unavailable or cancelled, without an effect.
        let Some(status) = caller.await? else { continue };
        let unsent = matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Cancelled);
        // tonic has a code of its own for a call that met the server's farewell.
        let farewell = format!("{status:?}").contains("GoAway(b\"\", NO_ERROR, Remote)");
        assert!(unsent || farewell, "cut off with {status:?}");
    }
    let counted: i64 =
        sqlx::query_scalar("select coalesce(sum(recorded_units), 0)::bigint from eco_usage_counters")
            .fetch_one(&suite.db.pool)
            .await?;
    assert_eq!(counted, *acknowledged.borrow(), "acknowledged = counted");
    Ok(())
}
