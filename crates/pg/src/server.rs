//! `initdb`, and the server process from start to end.

use crate::account::ServerAccount;
use crate::binaries::Binaries;
use crate::folder::{Folder, remove_tree};
use crate::pidfile::PostmasterPid;
use crate::{Error, Report};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, Output};
use std::thread;
use std::time::{Duration, Instant};

/// How long a server may take until it takes connections; recovery after a crash is part of it.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// How long a fast shutdown (it writes a checkpoint) may take before the immediate one.
const FAST_LIMIT: Duration = Duration::from_secs(60);
/// How long the immediate shutdown may take.
const IMMEDIATE_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// Writes new data into the folder; it appears under its name only when whole.
pub(crate) async fn init(
    folder: &Folder,
    binaries: &Binaries,
    account: &ServerAccount,
    report: Report<'_>,
) -> Result<(), Error> {
    let unfinished = folder.root().join("data.new");
    let mut output = run_initdb(&unfinished, folder, binaries, account, "C.UTF-8").await?;
    if !output.status.success() && String::from_utf8_lossy(&output.stderr).contains("invalid locale") {
        report("this PostgreSQL does not know the locale C.UTF-8: using C");
        output = run_initdb(&unfinished, folder, binaries, account, "C").await?;
    }
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        return Err(Error::InitFailed { output: String::from_utf8_lossy(&said).trim().to_owned() });
    }
    fs::rename(&unfinished, folder.data()).map_err(Error::io("rename", &unfinished))
}

async fn run_initdb(
    data: &Path,
    folder: &Folder,
    binaries: &Binaries,
    account: &ServerAccount,
    locale: &str,
) -> Result<Output, Error> {
    remove_tree(data)?;
    DirBuilder::new().mode(0o700).create(data).map_err(Error::io("make", data))?;
    account.give(data)?;
    let program = binaries.dir.join("initdb");
    let mut command = tokio::process::Command::from(account.command(&program));
    command
        .args([
            "--auth=trust",
            "--encoding=UTF8",
            "--data-checksums",
            "--username=postgres",
            "--no-instructions",
        ])
        .arg(format!("--locale={locale}"))
        .arg("--pgdata")
        .arg(data)
        // Its messages are read above.
        .env("LC_ALL", "C")
        .kill_on_drop(true);
    if folder.is_ephemeral() {
        // What a crash of the machine would lose is thrown away anyhow.
        command.arg("--no-sync");
    }
    command.output().await.map_err(Error::io("run", &program))
}

/// A running server, our own child. Dropping it shuts it down, and blocks until that is done.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
}

impl Server {
    pub(crate) fn spawn(
        folder: &Folder,
        socket_dir: &Path,
        binaries: &Binaries,
        account: &ServerAccount,
        settings: &[(String, String)],
    ) -> Result<Self, Error> {
        let log = folder.log();
        let out = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&log)
            .map_err(Error::io("open", &log))?;
        let program = binaries.dir.join("postgres");
        let mut command = account.command(&program);
        command.arg("-D").arg(folder.data());
        for (name, value) in settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        // Last, because of two settings of one name the later counts.
        command.args(["-c", "listen_addresses=", "-p", "5432", "-k"]).arg(socket_dir);
        command.stdout(out.try_clone().map_err(Error::io("open", &log))?).stderr(out);
        let child = command.spawn().map_err(Error::io("run", &program))?;
        Ok(Self { child })
    }

    /// Waits until the server takes connections.
    pub(crate) async fn until_ready(&mut self, folder: &Folder) -> Result<(), Error> {
        let pid_file = folder.data().join("postmaster.pid");
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().map_err(Error::io("wait for", &pid_file))? {
                return Err(Error::EndedEarly { status: status.to_string(), log: tail(&folder.log()) });
            }
            let state = match fs::read_to_string(&pid_file) {
                Ok(text) => PostmasterPid::parse(&text),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => return Err(Error::io("read", &pid_file)(error)),
            };
            if state == Some(PostmasterPid { pid: self.pid(), ready: true }) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::NotReady { seconds: READY_LIMIT.as_secs(), log: tail(&folder.log()) });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The server's process, its postmaster.
    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Kills the postmaster, and waits for its end. Does nothing when the server has ended.
    pub(crate) fn kill(&mut self) -> Result<(), Error> {
        self.child.kill().map_err(self.io("kill"))?;
        self.child.wait().map(|_| ()).map_err(self.io("wait for"))
    }

    /// Shuts the server down: fast (open transactions are rolled back, a checkpoint is written), and if that takes
    /// too long immediately (the next start recovers). Blocks. Does nothing when the server has ended.
    pub(crate) fn shut_down(&mut self) -> Result<(), Error> {
        for (signal, limit) in [(Signal::SIGINT, FAST_LIMIT), (Signal::SIGQUIT, IMMEDIATE_LIMIT)] {
            if self.ended_within(Duration::ZERO)? {
                return Ok(());
            }
            // The child is not reaped yet, so the number is still its own.
            kill(Pid::from_raw(self.pid()), signal).map_err(|error| self.io("signal")(error.into()))?;
            if self.ended_within(limit)? {
                return Ok(());
            }
        }
        Err(Error::WillNotStop { pid: self.pid() })
    }

    #[expect(clippy::disallowed_methods, reason = "runs in Drop too, where nothing can be awaited")]
    fn ended_within(&mut self, limit: Duration) -> Result<bool, Error> {
        let deadline = Instant::now() + limit;
        loop {
            if self.child.try_wait().map_err(self.io("wait for"))?.is_some() {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            thread::sleep(POLL);
        }
    }

    fn io(&self, action: &'static str) -> impl FnOnce(std::io::Error) -> Error + use<> {
        Error::io(action, Path::new(&format!("the PostgreSQL server (process {})", self.pid())))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.shut_down() {
            tracing::warn!(%error, "cannot stop the private PostgreSQL");
        }
    }
}

/// The last lines of the server's log, or why they cannot be shown.
fn tail(log: &Path) -> String {
    const LINES: usize = 20;
    match fs::read(log) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<_> = text.lines().collect();
            lines[lines.len().saturating_sub(LINES)..].join("\n")
        }
        Err(error) => format!("(cannot read {}: {error})", log.display()),
    }
}
