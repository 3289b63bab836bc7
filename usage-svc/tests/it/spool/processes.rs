//! Real processes: usage-svc killed, its disk full, PostgreSQL killed.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use nexus_core::plan::Plan;
use nexus_kit::db::MIGRATOR;
use nexus_pg::{Cluster, Options};
use nexus_testkit::{seed, settings};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sqlx::{Connection, PgConnection, PgPool};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Child,
};
use tonic::Code;

use super::*;
use crate::outages::{has_retry_info, insist};

/// usage-svc as a process; killed when dropped.
struct Process {
    child: Child,
    server: Server,
}

impl Process {
    /// Started by a shell, after what it is to do first.
    async fn start(database: &str, spool: &Path, first: &str) -> Result<Self> {
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("{first} exec \"$0\""), env!("CARGO_BIN_EXE_usage-svc")])
            .env("DATABASE_URL", database)
            .env("SPOOL_DIR", spool)
            .env("USAGE_GRPC_ADDR", settings::ANY_PORT.to_string())
            .env("USAGE_METRICS_ADDR", settings::ANY_PORT.to_string())
            .env("JWT_SECRET", settings::JWT_SECRET)
            .env("SERVICE_TOKEN_SECRET", settings::SERVICE_TOKEN_SECRET)
            .env("OPEN_HEALTH", "true")
            .stderr(Stdio::piped())
            .stdin(Stdio::null());
        let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn()?;
        let mut lines = BufReader::new(child.stderr.take().context("piped")?).lines();
        let mut log = Vec::new();
        while let Some(line) = lines.next_line().await? {
            log.push(line.clone());
            let Ok(entry) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
            if entry["message"] == "listening" {
                let address = |name: &str| anyhow::Ok(entry[name].as_str().context("an address")?.parse()?);
                let server = Server::elsewhere(address("main")?, address("operations")?);
                // Read on, so that it never waits for its log to be read.
                tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                return Ok(Self { child, server });
            }
        }
        bail!("usage-svc ended before it listened:\n{}", log.join("\n"))
    }

    async fn kill(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_keeps_what_it_acknowledged() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let (proxy, folder) = (Proxy::before(&db).await?, TempDir::new()?);
    let url = proxy.args(&db)?.database_url;
    let url = secrecy::ExposeSecret::expose_secret(&url);
    let process = Process::start(url, folder.path(), "").await?;
    hear(&db, 1).await?;
    insist(&process.server, event("eco_a")).await?;
    proxy.cut();
    // Killed while it takes events: what was answered is what counts, and what was not may.
    let events: Vec<UsageEvent> = (0..400).map(|_| event("eco_a")).collect();
    let sending = async {
        let mut acknowledged = Vec::new();
        for event in &events {
            match record(&process.server, event.clone()).await {
                Ok(_) => acknowledged.push(event.event_id.clone()),
                Err(_) => break,
            }
        }
        acknowledged
    };
    let server = &process.server;
    let pid = Pid::from_raw(i32::try_from(process.child.id().context("it runs")?)?);
    let killing = async {
        eventually(async || Ok(server.metric("nexus_usage_spooled_events_total").await? > 50)).await?;
        anyhow::Ok(kill(pid, Signal::SIGKILL)?)
    };
    let (acknowledged, killed) = tokio::join!(sending, killing);
    killed?;
    assert!(acknowledged.len() >= 50 && acknowledged.len() < 400, "{} acknowledged", acknowledged.len());
    process.kill().await?;

    proxy.mend();
    let process = Process::start(url, folder.path(), "").await?;
    drained(&process.server).await?;
    let recorded: Vec<String> =
        sqlx::query_scalar("select event_id::text from eco_api_usage").fetch_all(&db.pool).await?;
    assert!(acknowledged.iter().all(|id| recorded.contains(id)));
    let one_more = [acknowledged.len() + 1, acknowledged.len() + 2];
    assert!(one_more.contains(&recorded.len()), "{} of {}", recorded.len(), acknowledged.len());
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(recorded.len() as i64));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_unavailable_and_loses_nothing() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let (proxy, folder) = (Proxy::before(&db).await?, TempDir::new()?);
    let url = proxy.args(&db)?.database_url;
    let url = secrecy::ExposeSecret::expose_secret(&url);
    // Files of at most 512 blocks: writing beyond fails as on a disk that is full.
    let process = Process::start(url, folder.path(), "trap '' XFSZ; ulimit -f 512;").await?;
    hear(&db, 1).await?;
    insist(&process.server, event("eco_a")).await?;
    proxy.cut();
    let mut acknowledged = 1;
    let status = loop {
        match record_batch(&process.server, (0..2000).map(|_| event("eco_a")).collect()).await {
            Ok(answer) => acknowledged += i64::from(answer.accepted_count),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    has_retry_info(&status)?;
    // A smaller one finds room in another file.
    insist(&process.server, event("eco_a")).await?;
    acknowledged += 1;
    proxy.mend();
    drained(&process.server).await?;
    let recorded = sums(&db.pool, "eco_a").await?;
    // What was refused may be there as far as it was written.
    assert!(recorded.raw >= acknowledged && recorded.raw <= acknowledged + 2000, "{recorded:?}");
    assert_eq!(recorded, plain(recorded.raw));
    Ok(())
}

/// A private PostgreSQL in a folder.
async fn postgres(folder: &Path) -> Result<Cluster> {
    let options = Options { fetch: false, ..Options::persistent(folder) };
    Ok(Cluster::start(options, &|line| eprintln!("{line}")).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgresql_that_is_killed_costs_nothing() -> Result<()> {
    let folder = TempDir::new()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    let (data, spool) = (folder.path().join("pg"), folder.path().join("spool"));
    let cluster = postgres(&data).await?;
    let url = cluster.url("postgres");
    MIGRATOR.run_direct(None, &mut PgConnection::connect(&url).await?, false).await?;
    let pool = PgPool::connect(&url).await?;
    seed::account(&pool, "eco_a", Plan::Pro, now() - chrono::TimeDelta::days(10)).await?;
    let process = Process::start(&url, &spool, "").await?;
    hear_at(&pool, 1).await?;
    insist(&process.server, event("eco_a")).await?;

    kill(Pid::from_raw(cluster.pid()), Signal::SIGKILL)?;
    drop(cluster);
    for _ in 0..50 {
        record(&process.server, event("eco_a")).await?;
    }
    assert_eq!(process.server.metric("nexus_usage_spooled_events_total").await?, 50);

    let cluster = postgres(&data).await?;
    drained(&process.server).await?;
    let pool = PgPool::connect(&url).await?;
    assert_eq!(sums(&pool, "eco_a").await?, plain(51));
    pool.close().await;
    process.kill().await?;
    Ok(cluster.stop().await?)
}
