//! Runs a command with a private PostgreSQL beside it:
//!
//! ```text
//! with-postgres cargo nextest run --workspace
//! ```
//!
//! The command finds the superuser's URL in `NEXUS_TEST_DATABASE_URL`. The server ends with the command, whose exit
//! code is passed on (128 + number when a signal ended it; 127 when there is none to pass on). SIGINT and SIGTERM are
//! handed to the command.

use anyhow::{Context, Result, bail};
use nexus_pg::{Cluster, Options};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::io::{IsTerminal, stdin};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal as Arrivals, SignalKind, signal};

/// Where the command finds the database.
const URL_VARIABLE: &str = "NEXUS_TEST_DATABASE_URL";

/// The exit code of a shell that cannot run a command.
const CANNOT_RUN: i32 = 127;

#[tokio::main]
async fn main() -> ExitCode {
    match with_postgres().await {
        Ok(code) => exit_code(code),
        Err(error) => {
            eprintln!("with-postgres: {error:#}");
            exit_code(CANNOT_RUN)
        }
    }
}

/// The exit code; an error is one of ours, not of the command.
async fn with_postgres() -> Result<i32> {
    let mut arguments = std::env::args_os().skip(1).skip_while(|argument| argument == "--");
    let Some(program) = arguments.next() else { bail!("usage: with-postgres COMMAND [ARGUMENT...]") };
    let mut signals =
        Signals { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? };
    let starting = Cluster::start(options(), &|said| eprintln!("with-postgres: {said}"));
    let cluster = tokio::select! {
        started = starting => started?,
        arrived = signals.next() => return Ok(128 + arrived as i32),
    };
    let ran = run(&program, arguments.collect(), &cluster, &mut signals).await;
    cluster.stop().await.context("stopping PostgreSQL")?;
    let status = ran.with_context(|| format!("running {}", program.to_string_lossy()))?;
    Ok(status.code().or_else(|| status.signal().map(|number| 128 + number)).unwrap_or(CANNOT_RUN))
}

/// Many tests at once, each with databases of its own; durable as in production, since that is what is tested.
fn options() -> Options {
    [
        ("max_connections", "400"),
        ("shared_buffers", "256MB"),
        // Fewer checkpoints, and no log shipping to prepare for.
        ("max_wal_size", "4GB"),
        ("checkpoint_timeout", "30min"),
        ("wal_level", "minimal"),
        ("max_wal_senders", "0"),
        ("jit", "off"),
    ]
    .into_iter()
    .fold(Options::ephemeral(), |options, (name, value)| options.setting(name, value))
}

async fn run(
    program: &OsString,
    arguments: Vec<OsString>,
    cluster: &Cluster,
    signals: &mut Signals,
) -> Result<ExitStatus> {
    let mut child =
        Command::new(program).args(arguments).env(URL_VARIABLE, cluster.url("postgres")).spawn()?;
    loop {
        tokio::select! {
            status = child.wait() => return Ok(status?),
            arrived = signals.next() => pass_on(arrived, &child)?,
        }
    }
}

fn pass_on(arrived: Signal, child: &Child) -> Result<()> {
    // A terminal's Ctrl-C reaches the whole process group, so the command has it already; twice would mean "at once"
    // to many a test runner.
    if arrived == Signal::SIGINT && stdin().is_terminal() {
        return Ok(());
    }
    // No number: it has ended, and its status is about to be read.
    if let Some(pid) = child.id() {
        kill(Pid::from_raw(pid.cast_signed()), arrived).context("passing a signal on")?;
    }
    Ok(())
}

struct Signals {
    interrupt: Arrivals,
    terminate: Arrivals,
}

impl Signals {
    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::SIGINT,
            _ = self.terminate.recv() => Signal::SIGTERM,
        }
    }
}

/// Exit codes have eight bits.
fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code & 0xff).expect("masked to eight bits"))
}
