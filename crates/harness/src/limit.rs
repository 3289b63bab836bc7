//! A hard limit, or a spend cap, under faults: thousands of checks at once at four replicas, one of which is stopped, cut off,
//! restarted, killed or has the wrong time. Admitted is never more than the limit, and all of it but what the
//! service reports as lost.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use nexus_client::CallOptions;
use nexus_kit::config::parse_duration;
use nix::sys::signal::Signal;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use crate::{
    process::{Environment, Replica},
    report::{Outcome, Tally},
    script::{At, Due, Fault, Script, Verdict},
    stage::{self, Seed},
    storm::{self, Storm},
};

/// The account that is checked, and its limit: that of the plan `free`, or of a spend cap.
pub(crate) const ACCOUNT: &str = "eco_limited";
const LIMIT: u32 = 1_000;
/// Of a capped account: units that its plan includes, micros of one beyond them, and of those, the units that the cap
/// pays for at first.
const INCLUDED: u32 = 400;
const UNIT: u32 = 1_000;
const AT_FIRST: u32 = 200;
const REPLICAS: usize = 4;
/// A replica is killed at one of so many answers of PostgreSQL: a sign of life, a grant and a settlement take fewer.
const STEPS: u32 = 12;
/// What a replica that is killed loses at most: half of what is left shared by the replicas, and as much that it was
/// granted ahead of need.
const MAX_LOSS: u32 = 2 * LIMIT.div_ceil(2 * REPLICAS as u32);
/// A seed that takes so long has come to a stop.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long units may take to come back, or to be reported as lost, once their holders are gone. A holder is
/// taken for gone after 10 s without a sign of life.
const SETTLING: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seeds to run
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub(crate) seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    pub(crate) first: u64,
    /// What happens meanwhile; by default the seeds take turns
    #[arg(long)]
    variant: Option<Variant>,
    /// Checks at once, of one unit each
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1_100..=10_000), value_name = "N")]
    checks: u32,
    /// How long a replica is stopped or cut off; up to 15 s, as connections without a sign of life are given up
    #[arg(long, default_value = "2s", value_parser = parse_duration, value_name = "DURATION")]
    pause: Duration,
}

impl Args {
    /// What runs a seed again.
    pub(crate) fn of_seed(&self, seed: u64) -> String {
        let variant = self.variant(seed);
        let name = variant.to_possible_value().expect("no variant is skipped");
        let (name, pause) = (name.get_name(), self.pause.as_millis());
        format!("limit --first {seed} --variant {name} --checks {} --pause {pause}ms", self.checks)
    }

    fn variant(&self, seed: u64) -> Variant {
        let turns = Variant::value_variants();
        self.variant.unwrap_or_else(|| turns[(seed % turns.len() as u64) as usize])
    }
}

/// What happens to replicas meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Variant {
    /// Nothing
    Plain,
    /// SIGSTOP of a replica, and SIGCONT after the pause
    Stopped,
    /// A replica is cut off from the database for the pause
    CutOff,
    /// SIGTERM of a replica; a new one takes its place
    Restarted,
    /// The clock of a replica an hour ahead, that of another an hour behind
    Clocks,
    /// kill -9 of replicas, up to three times
    Killed,
    /// The limit is a spend cap, which is raised to it meanwhile
    Capped,
}

/// Runs one seed to its end.
pub(crate) async fn run(seed: &Seed, args: &Args) -> Result<Outcome> {
    let variant = args.variant(seed.number);
    let mut tally = Tally::default();
    if variant == Variant::Clocks && !Path::new(&libfaketime()).exists() {
        return Ok(Outcome::left_out("there is no libfaketime to set clocks with"));
    }
    let mut trial = Trial::start(seed, variant, args).await?;
    Ok(match timeout(PATIENCE, trial.run(&mut tally)).await {
        Ok(Ok((done, failures))) => Outcome::done(tally, format!("{variant:?}, {done}"), failures),
        Ok(Err(error)) => Outcome::failed(tally, format!("{variant:?}: {error:#}")),
        Err(_) => Outcome::failed(tally, format!("{variant:?}: not at rest after {PATIENCE:?}")),
    })
}

/// The processes of a seed.
struct Trial<'a> {
    seed: &'a Seed,
    variant: Variant,
    args: &'a Args,
    replicas: Vec<Replica>,
    script: Arc<Script>,
    dues: mpsc::UnboundedReceiver<Due>,
    rng: StdRng,
    kills: u32,
}

impl<'a> Trial<'a> {
    async fn start(seed: &'a Seed, variant: Variant, args: &'a Args) -> Result<Self> {
        let plan = if variant == Variant::Capped { "pro" } else { "free" };
        seed.accounts(&[ACCOUNT], plan).await?;
        if variant == Variant::Capped {
            seed.include("pro", INCLUDED).await?;
            seed.cap(ACCOUNT, AT_FIRST * UNIT).await?;
        }
        let (script, dues) = Script::new(Vec::new());
        let mut replicas = Vec::new();
        for replica in 0..REPLICAS {
            let ahead = match (variant, replica) {
                (Variant::Clocks, 0) => 3_600,
                (Variant::Clocks, 1) => -3_600,
                _ => 0,
            };
            let started = Replica::start(seed, &script, replica, settings(ahead)).await?;
            let seen = started.ahead_seconds();
            ensure!((seen - ahead).abs() <= 60, "replica {replica} is {seen} s ahead, not {ahead}");
            replicas.push(started);
        }
        let rng = StdRng::seed_from_u64(seed.number);
        Ok(Self { seed, variant, args, replicas, script, dues, rng, kills: 0 })
    }

    /// The storm with its faults, then what is left; returns what was done, and what does not hold.
    async fn run(&mut self, tally: &mut Tally) -> Result<(String, Vec<String>)> {
        let urls: Vec<&str> = self.replicas.iter().map(Replica::url).collect();
        let storm = Storm::new(&urls, CallOptions::bearer(&stage::token()?, storm::DEADLINE)?)?;
        // Half of the seeds begin with so few checks at a time that replicas hold units when it goes wrong.
        let first = if self.rng.random_bool(0.5) { self.rng.random_range(100..LIMIT) } else { 0 };
        let calls = storm.run(first, self.args.checks, StdRng::from_rng(&mut self.rng));
        let strikes = self.rng.random_range(1..first + LIMIT / 2);
        let (called, disturbed) = tokio::join!(calls, self.disturb(&storm, strikes, tally));
        called?;
        disturbed?;
        self.calm().await?;
        let judged = self.exhaust(&storm).await?;
        for replica in &mut self.replicas {
            replica.stop().await?;
        }
        Ok(judged)
    }

    /// What goes wrong during the storm, each time so many checks are answered.
    async fn disturb(&mut self, storm: &Storm, strikes: u32, tally: &mut Tally) -> Result<()> {
        let target = self.rng.random_range(0..REPLICAS);
        storm.reached(strikes).await;
        let replica = &mut self.replicas[target];
        match self.variant {
            Variant::Plain => {}
            Variant::Clocks => tally.add("clock an hour off", 2),
            Variant::Capped => {
                tally.add("spend cap raised", 1);
                self.seed.cap(ACCOUNT, (LIMIT - INCLUDED) * UNIT).await?;
            }
            Variant::Stopped => {
                tally.note(Fault::PauseReplica { commits: 0 });
                replica.signal(Signal::SIGSTOP)?;
                sleep(self.args.pause).await;
                replica.signal(Signal::SIGCONT)?;
            }
            Variant::CutOff => {
                tally.note(Fault::Partition { commits: 0 });
                replica.line.partition();
                sleep(self.args.pause).await;
                replica.line.heal();
            }
            Variant::Restarted => {
                tally.note(Fault::RestartReplica);
                replica.restart().await?;
            }
            Variant::Killed => {
                for nth in 1..=self.rng.random_range(1..=3) {
                    storm.reached((strikes * nth).min(self.args.checks)).await;
                    self.kill(storm, target, tally).await?;
                }
            }
        }
        Ok(())
    }

    /// kill -9 of a replica now, or of whichever one after a few more answers of PostgreSQL, the last of them held.
    async fn kill(&mut self, storm: &Storm, target: usize, tally: &mut Tally) -> Result<()> {
        if self.rng.random_bool(0.25) {
            tally.note(Fault::KillReplica);
            self.kills += 1;
            return self.replicas[target].kill().await;
        }
        let skip = self.rng.random_range(0..STEPS);
        self.script.plan(0, At::Any { skip }, Fault::KillReplica);
        let due = tokio::select! {
            due = self.dues.recv() => due,
            // It is too late, unless it strikes just now.
            () = storm.reached(self.args.checks) => match self.script.clear() {
                0 => self.dues.recv().await,
                _ => {
                    tally.add("kills whose place was not reached", 1);
                    return Ok(());
                }
            },
        };
        let due = due.context("the script is told as long as replicas run")?;
        tally.note(due.fault);
        tally.add(format!("killed {skip:>2} answers of PostgreSQL later"), 1);
        self.kills += 1;
        self.replicas[due.replica].kill().await?;
        // Where nobody waits any more, its replica is gone.
        let _unheard = due.verdict.send(Verdict::Sever);
        self.script.done();
        Ok(())
    }

    /// All replicas but the first end in order, and give back what they hold; new ones take their places.
    async fn calm(&mut self) -> Result<()> {
        for replica in &mut self.replicas[1..] {
            replica.restart().await?;
        }
        Ok(())
    }

    /// Asks for what is left and records what was admitted, until every unit of the limit is accounted for.
    /// Returns the figures, and what does not hold.
    async fn exhaust(&self, storm: &Storm) -> Result<(String, Vec<String>)> {
        let limit = i64::from(LIMIT);
        let until = Instant::now() + SETTLING;
        let may_lose = self.variant == Variant::Killed;
        let (admitted, recorded, consumed, lost) = loop {
            let refused_for = storm.drain().await?;
            // What is recorded is not lost with its holder any more.
            storm.record().await?;
            let (admitted, usage) = (storm.admitted(), storm.usage().await?);
            let (consumed, lost) = (usage.consumed_count, usage.forfeited_count);
            let is_whole = consumed == limit && admitted + lost == limit && (lost == 0 || may_lose);
            if is_whole || Instant::now() > until {
                break (admitted, usage.api_calls_count, consumed, lost);
            }
            sleep(refused_for).await;
        };
        let rules = [
            (admitted <= limit, "more is admitted than the limit"),
            (admitted + lost == limit, "admitted and forfeited are not the limit"),
            (lost == 0 || may_lose, "units are forfeited though nobody was killed"),
            (lost <= i64::from(self.kills * MAX_LOSS), "more is forfeited than who was killed may hold"),
            (recorded == admitted, "what is recorded is not what was admitted"),
            (consumed == limit, "consumed is not the limit"),
        ];
        let figures =
            format!("{admitted} admitted, {recorded} recorded, {consumed} consumed, {lost} forfeited");
        let broken = rules.iter().filter(|(holds, _)| !holds);
        let failures = broken.map(|(_, what)| format!("{what}: {figures}")).collect();
        Ok((format!("{figures}, {} calls made again", storm.unanswered()), failures))
    }
}

/// Where Debian has the library that shifts the clock of a process.
fn libfaketime() -> String {
    format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", std::env::consts::ARCH)
}

/// Settings of a replica whose clock is so many seconds ahead.
fn settings(ahead: i64) -> Environment {
    let mut settings = vec![
        ("NEXUS_LOG_FORMAT", "text".to_owned()),
        // A line for each of thousands of calls costs more than the calls.
        ("NEXUS_LOG", "warn,nexus_usage::error=error".to_owned()),
        ("DATABASE_MAX_CONNECTIONS", "8".to_owned()),
    ];
    if ahead != 0 {
        settings.push(("LD_PRELOAD", libfaketime()));
        settings.push(("FAKETIME", format!("{ahead:+}s")));
        // Time-outs are measured by the other clock.
        settings.push(("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()));
    }
    settings
}
