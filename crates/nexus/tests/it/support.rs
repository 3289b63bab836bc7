//! Runs the binary.

use std::{
    fs,
    io::Read,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use anyhow::{Context, Result, anyhow, ensure};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use nix::{
    pty::{OpenptyResult, Winsize, openpty},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use sqlx::PgPool;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    sync::mpsc,
};

/// Variables of whoever runs the tests that would change what is tested.
const NOT_OURS: [&str; 10] = [
    "DATABASE_URL",
    "STRIPE_SECRET_KEY",
    "STRIPE_API_BASE",
    "ADMIN_ECO_IDS",
    "NEXUS_TOKEN",
    "USAGE_ADDR",
    "BILLING_ADDR",
    "ANALYTICS_ADDR",
    "NEXUS_LOG",
    "NEXUS_LOG_FORMAT",
];

/// The last line of the banner: everything before it, the ready file included, is done.
const BANNER_END: &str = "Ctrl-C stops everything.";

/// Free ports, for runs that are not ephemeral.
pub(crate) const FREE_PORTS: [&str; 9] = [
    "--http-port=0",
    "--usage-port=0",
    "--billing-port=0",
    "--analytics-port=0",
    "--stripe-port=0",
    "--http-metrics-port=0",
    "--usage-metrics-port=0",
    "--billing-metrics-port=0",
    "--analytics-metrics-port=0",
];

/// The binary with a clean environment.
pub(crate) fn nexus() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nexus"));
    for name in NOT_OURS {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs the binary to its end.
pub(crate) async fn run(arguments: &[&str]) -> Result<Output> {
    Ok(nexus().args(arguments).output().await?)
}

/// What it wrote where people look.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A running `nexus dev`.
pub(crate) struct Dev {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// What it printed.
    pub(crate) banner: String,
    /// Where its ready file is.
    pub(crate) ready_file: PathBuf,
    /// What that says.
    pub(crate) ready: Value,
    _folder: TempDir,
}

impl Dev {
    /// Starts it and waits for its banner.
    pub(crate) async fn start(arguments: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let ready_file = folder.path().join("ready.json");
        let mut command = nexus();
        command.arg("dev").args(arguments).arg("--ready-file").arg(&ready_file);
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("the output is piped")?;
        let mut lines = BufReader::new(stdout).lines();
        let mut banner = String::new();
        loop {
            let line = lines.next_line().await?.with_context(|| format!("it ended early: {banner}"))?;
            banner.push_str(&line);
            banner.push('\n');
            if line == BANNER_END {
                break;
            }
        }
        let ready = serde_json::from_slice(&fs::read(&ready_file)?)?;
        Ok(Self { child, lines, banner, ready_file, ready, _folder: folder })
    }

    /// A text of the ready file, by JSON pointer.
    pub(crate) fn text(&self, pointer: &str) -> Result<&str> {
        let value = self.ready.pointer(pointer).and_then(Value::as_str);
        value.with_context(|| format!("{pointer} is missing in the ready file"))
    }

    /// The folder of the private PostgreSQL's socket.
    pub(crate) fn socket_folder(&self) -> Result<String> {
        let url = self.text("/database_url")?;
        let host = url.split_once("host=").and_then(|(_, rest)| rest.split('&').next());
        Ok(host.context("the URL names a socket folder")?.replace("%2F", "/"))
    }

    /// Connections to its database, as superuser.
    pub(crate) async fn database(&self) -> Result<PgPool> {
        Ok(PgPool::connect(self.text("/database_url")?).await?)
    }

    /// The JSON that a GET with a bearer token answers.
    pub(crate) async fn get(&self, base: &str, path: &str, token: &str) -> Result<Value> {
        let url = format!("{}{path}", self.text(base)?);
        let response = nexus_testkit::http::client().get(url).bearer_auth(token).send().await?;
        ensure!(response.status().is_success(), "{path}: {}", response.text().await?);
        Ok(response.json().await?)
    }

    /// Runs a command of the binary against it, with the service token.
    pub(crate) async fn command(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = nexus();
        command.args(arguments);
        command.env("NEXUS_TOKEN", self.text("/tokens/service/token")?);
        command.env("USAGE_ADDR", self.text("/usage_addr")?);
        command.env("BILLING_ADDR", self.text("/billing_addr")?);
        command.env("DATABASE_URL", self.text("/database_url")?);
        Ok(command.output().await?)
    }

    /// Stops it as Ctrl-C does, and waits for its end.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.signal(Signal::SIGINT)?;
        while self.lines.next_line().await?.is_some() {}
        let status = self.child.wait().await?;
        ensure!(status.success(), "it ended with {status}");
        ensure!(!self.ready_file.exists(), "the ready file stays behind");
        Ok(())
    }

    /// Kills it as nothing can prevent.
    pub(crate) async fn kill(mut self) -> Result<()> {
        self.child.kill().await?;
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = self.child.id().context("it runs")?;
        Ok(kill(Pid::from_raw(i32::try_from(id)?), signal)?)
    }
}

/// Processes whose command line names a path.
pub(crate) fn processes_with(path: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        // Processes end while we look.
        let Ok(command) = fs::read(entry?.path().join("cmdline")) else { continue };
        let command = text(&command).replace('\0', " ");
        if command.contains(path) {
            found.push(command);
        }
    }
    Ok(found)
}

/// What a JWT says; its signature is the servers' to check.
pub(crate) fn claims(token: &str) -> Result<Value> {
    let payload = token.split('.').nth(1).context("a JWT has three parts")?;
    Ok(serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload)?)?)
}

/// A path as an argument.
pub(crate) fn argument(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| anyhow!("a path in UTF-8"))
}

/// A terminal.
pub(crate) struct Terminal {
    chunks: mpsc::UnboundedReceiver<Vec<u8>>,
    /// What it has shown.
    pub(crate) seen: String,
}

impl Terminal {
    /// One of so many columns, and what a command is to write to.
    pub(crate) fn open(columns: u16) -> Result<(Self, OwnedFd)> {
        let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(Some(&size), None)?;
        let (sender, chunks) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            let (mut master, mut buffer) = (fs::File::from(master), [0; 4096]);
            // An error is the end: nobody writes to it any more.
            while let Ok(read @ 1..) = master.read(&mut buffer) {
                if sender.send(buffer[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok((Self { chunks, seen: String::new() }, slave))
    }

    /// Returns once it shows these words.
    pub(crate) async fn shows(&mut self, words: &str) -> Result<()> {
        while !self.seen.contains(words) {
            let chunk =
                self.chunks.recv().await.with_context(|| format!("no `{words}` in {:?}", self.seen))?;
            self.seen.push_str(&text(&chunk));
        }
        Ok(())
    }

    /// Everything it shows until nobody writes to it any more.
    pub(crate) async fn end(mut self) -> String {
        while let Some(chunk) = self.chunks.recv().await {
            self.seen.push_str(&text(&chunk));
        }
        self.seen
    }
}
