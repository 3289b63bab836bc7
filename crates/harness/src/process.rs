//! The processes of a seed: this program again, as a replica of usage-svc or as a client. They get a clean
//! environment, and end with whoever started them, however that ends.

use std::{
    fs::OpenOptions,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, Utc};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, ChildStdin, Command},
};

use crate::{
    front::Front,
    proxy::Proxy,
    script::Script,
    stage::{self, Seed},
};

/// Starts a replica that has a spool: writing beyond 512 blocks of a file fails, as on a disk that is full.
const FULL_DISK: &str = r#"trap '' XFSZ; ulimit -f 512; exec "$0" "$@""#;

/// Settings of a child, beside its arguments.
pub(crate) type Environment = Vec<(&'static str, String)>;

/// A usage-svc in a process of its own, behind a line to the database that can be broken.
pub(crate) struct Replica {
    number: usize,
    folder: PathBuf,
    environment: Environment,
    /// Its line to the database.
    pub(crate) line: Proxy,
    front: Front,
    process: Process,
}

/// The process that is a replica now.
struct Process {
    child: Child,
    /// Where its metrics are.
    operations: SocketAddr,
    /// How far its clock was ahead of ours when it started.
    ahead_seconds: i64,
}

impl Replica {
    /// Starts one, and returns once it listens.
    pub(crate) async fn start(
        seed: &Seed,
        script: &Arc<Script>,
        number: usize,
        settings: Environment,
    ) -> Result<Self> {
        let line = Proxy::start(seed.socket()?, script.clone(), number).await?;
        let url = format!("postgres://postgres@{}/{}?sslmode=disable", line.address(), seed.name);
        let environment = [settings, stage::secrets().into(), vec![("DATABASE_URL", url)]].concat();
        let folder = seed.folder.clone();
        let front = Front::start().await?;
        let process = spawn_replica(&folder, number, &environment, &front).await?;
        Ok(Self { number, folder, environment, line, front, process })
    }

    /// Where it and those that take its place are reached.
    pub(crate) fn url(&self) -> &str {
        self.front.url()
    }

    /// How far its clock was ahead of ours when it started, in seconds.
    pub(crate) fn ahead_seconds(&self) -> i64 {
        self.process.ahead_seconds
    }

    /// How often its log has this.
    pub(crate) fn logged(&self, text: &str) -> Result<usize> {
        let log = std::fs::read(replica_log(&self.folder, self.number))?;
        Ok(String::from_utf8_lossy(&log).matches(text).count())
    }

    /// A metric without labels, as it is now.
    pub(crate) async fn metric(&self, name: &str) -> Result<i64> {
        let mut connection = TcpStream::connect(self.process.operations).await?;
        connection.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await?;
        let value = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("replica {} has no metric {name}", self.number))?.parse()?)
    }

    /// kill -9, and another in its place.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.process.child.kill().await?;
        self.front.lead_to(None);
        self.again().await
    }

    /// SIGTERM, its end, and another in its place.
    pub(crate) async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        self.again().await
    }

    /// SIGTERM, and its end in order.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let status = self.process.child.wait().await?;
        self.front.lead_to(None);
        ensure!(status.success(), "replica {} was asked to stop and ended with {status}", self.number);
        Ok(())
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        send(&self.process.child, signal)
    }

    /// Its end, which nobody asked for.
    pub(crate) async fn ended(&mut self) -> String {
        let status = said(self.process.child.wait().await);
        format!("replica {} ended by itself with {status}", self.number)
    }

    async fn again(&mut self) -> Result<()> {
        self.process = spawn_replica(&self.folder, self.number, &self.environment, &self.front).await?;
        Ok(())
    }
}

async fn spawn_replica(
    folder: &Path,
    number: usize,
    environment: &Environment,
    front: &Front,
) -> Result<Process> {
    let log = replica_log(folder, number);
    let mut child = command(&["child", "usage"], environment, &log)?.stdin(Stdio::null()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line).await?;
    let [address, operations, clock] = line.split_whitespace().collect::<Vec<_>>()[..] else {
        bail!("no replica; see {}", log.display());
    };
    front.lead_to(Some(address.parse()?));
    let ahead = clock.parse::<DateTime<Utc>>()? - Utc::now();
    Ok(Process { child, operations: operations.parse()?, ahead_seconds: ahead.num_seconds() })
}

fn replica_log(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("replica-{number}.log"))
}

/// A client in a process of its own. It makes new events for as long as its input is open.
pub(crate) struct Client {
    number: u32,
    arguments: Vec<String>,
    environment: Environment,
    folder: PathBuf,
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Client {
    pub(crate) fn start(
        folder: &Path,
        number: u32,
        arguments: Vec<String>,
        environment: Environment,
    ) -> Result<Self> {
        let (child, stdin) = spawn_client(folder, number, &arguments, &environment)?;
        Ok(Self { number, arguments, environment, folder: folder.to_owned(), child, stdin })
    }

    /// kill -9, and another in its place, which goes on from the journal.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.child.kill().await?;
        (self.child, self.stdin) =
            spawn_client(&self.folder, self.number, &self.arguments, &self.environment)?;
        Ok(())
    }

    /// No new events: it delivers what it has, and ends.
    pub(crate) async fn finish(&mut self) -> Result<()> {
        self.stdin = None;
        let status = self.child.wait().await?;
        ensure!(status.success(), "client {} ended with {status}: {}", self.number, self.last_words());
        Ok(())
    }

    /// Its end, which nobody asked for.
    pub(crate) async fn ended(&mut self) -> String {
        // Its input is kept out of the way of `wait`, which would close it.
        let status = said(self.child.wait().await);
        format!("client {} ended by itself with {status}: {}", self.number, self.last_words())
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(client_log(&self.folder, self.number)).unwrap_or_default();
        log.lines().last().unwrap_or("(no word)").to_owned()
    }
}

fn client_log(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("client-{number}.log"))
}

fn spawn_client(
    folder: &Path,
    number: u32,
    arguments: &[String],
    environment: &Environment,
) -> Result<(Child, Option<ChildStdin>)> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let log = client_log(folder, number);
    let mut child = command(&[&["child", "client"], &arguments[..]].concat(), environment, &log)?
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let stdin = child.stdin.take();
    Ok((child, stdin))
}

/// This program again, with a log of its own.
pub(crate) fn command(arguments: &[&str], environment: &Environment, log: &Path) -> Result<Command> {
    let log = OpenOptions::new().create(true).append(true).open(log)?;
    let program = std::env::current_exe()?;
    let mut command = Command::new(&program);
    if environment.iter().any(|(name, _)| *name == "SPOOL_DIR") {
        command = Command::new("/bin/sh");
        command.arg("-c").arg(FULL_DISK).arg(program);
    }
    command
        .args(arguments)
        .env_clear()
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::piped())
        .stderr(log)
        .kill_on_drop(true);
    Ok(command)
}

fn send(child: &Child, signal: Signal) -> Result<()> {
    // Not reaped yet, so the number is still its own.
    let pid = child.id().context("the process has ended")?;
    Ok(kill(Pid::from_raw(pid.cast_signed()), signal)?)
}

fn said(status: io::Result<ExitStatus>) -> String {
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}

/// In a child: ends it when its parent ends, even where it is stopped then. Children are started from the
/// parent's main thread, which ends with it.
pub(crate) fn die_with_parent() -> Result<()> {
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    ensure!(nix::unistd::getppid() != Pid::from_raw(1), "the parent is gone");
    Ok(())
}
