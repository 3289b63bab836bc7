//! The children of a run: this program again, as a server or as a load generator. They get a clean
//! environment, so that the caller's settings do not change what is measured.

use std::{net::SocketAddr, process::Stdio};

use anyhow::{Context, Result, ensure};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdin, Command},
};
use tokio_util::sync::CancellationToken;

/// Variable that carries the load generator's token.
pub(crate) const TOKEN_VARIABLE: &str = "NEXUS_BENCH_TOKEN";

/// Settings of a child, beside its arguments.
pub(crate) type Environment = Vec<(&'static str, String)>;

/// A server in a process of its own. Its log goes to /dev/null: written, and nowhere else.
pub(crate) struct ServerProcess {
    child: Child,
    /// Held open while the server is to run.
    stdin: ChildStdin,
    /// Its URL.
    pub(crate) url: String,
    /// URL of its operations port; empty where it has none to tell.
    pub(crate) operations_url: String,
}

impl ServerProcess {
    /// Starts it and waits until it listens.
    pub(crate) async fn start(arguments: &[&str], environment: &Environment) -> Result<Self> {
        let mut child = command(arguments, environment)?
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {arguments:?}"))?;
        let stdin = child.stdin.take().context("the child's input")?;
        let stdout = child.stdout.take().context("the child's output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).await?;
        ensure!(line.starts_with("http"), "{arguments:?} ended before it listened");
        let (url, operations_url) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        Ok(Self { child, stdin, url: url.to_owned(), operations_url: operations_url.to_owned() })
    }

    /// The most memory it had at a time.
    pub(crate) fn peak_resident_bytes(&self) -> Result<u64> {
        self.memory("VmHWM:")
    }

    /// The memory it has.
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    fn memory(&self, name: &'static str) -> Result<u64> {
        let pid = self.child.id().context("the server has ended")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context(name)?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib * 1024)
    }

    /// Asks it to end, and waits for that.
    pub(crate) async fn stop(mut self) -> Result<()> {
        drop(self.stdin);
        let status = self.child.wait().await?;
        ensure!(status.success(), "a server ended with {status}");
        Ok(())
    }
}

/// The server's side: says where it listens, and stops it when the parent lets go of its input.
pub(crate) fn listening(address: SocketAddr) -> CancellationToken {
    println!("http://{address}");
    until_parent_ends()
}

/// The same, where there is an operations port too.
pub(crate) fn listening_with_operations(address: SocketAddr, operations: SocketAddr) -> CancellationToken {
    println!("http://{address} http://{operations}");
    until_parent_ends()
}

fn until_parent_ends() -> CancellationToken {
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    std::thread::spawn(move || {
        // End of input and a broken pipe mean the same: the parent is gone.
        let _ended = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        stop.cancel();
    });
    shutdown
}

/// Runs a load generator to its end and reads its report.
pub(crate) async fn load<T: DeserializeOwned>(arguments: &[&str], environment: &Environment) -> Result<T> {
    let child = command(arguments, environment)?.stdin(Stdio::null()).spawn()?;
    let output = child.wait_with_output().await?;
    ensure!(output.status.success(), "{arguments:?} ended with {}", output.status);
    serde_json::from_slice(&output.stdout).with_context(|| format!("the report of {arguments:?}"))
}

/// The load generator's side.
pub(crate) fn report(report: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}

fn command(arguments: &[&str], environment: &Environment) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("child")
        .args(arguments)
        .env_clear()
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    Ok(command)
}
