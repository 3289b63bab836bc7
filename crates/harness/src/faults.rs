//! Faults while usage is recorded: replicas, clients and PostgreSQL killed, connections cut in a commit, lines
//! cut off, replicas stopped, restarted; afterwards everything acknowledged is counted, once.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use futures::{FutureExt, future::select_all};
use nix::sys::signal::Signal;
use rand::{Rng, SeedableRng, rngs::StdRng};
use sqlx::PgConnection;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::{
    check,
    client::{TOKEN_VARIABLE, journal::History, workload::ACCOUNTS},
    process::{Client, Environment, Replica},
    report::{Outcome, Tally},
    script::{At, Due, Fault, Planned, Script, Verdict},
    stage::{self, Seed, Stage},
};

/// Clients; the last of them uses the Tracker.
const CLIENTS: u32 = 4;
/// A seed that takes so long has come to a stop.
const PATIENCE: Duration = Duration::from_secs(180);
/// How often a spool is asked whether it is drained.
const DRAINING: Duration = Duration::from_millis(50);
/// What a spool may take: as little as can be set.
const SPOOL_BYTES: u32 = 1024 * 1024;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seeds to run
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub(crate) seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    pub(crate) first: u64,
    /// Replicas of usage-svc; by default 2 or 3, as the seed has it
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=8), value_name = "N")]
    replicas: Option<u8>,
    /// Faults of a seed
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=1_000), value_name = "N")]
    faults: u32,
    /// Whether replicas have spools, on disks that are soon full
    #[arg(long)]
    spools: bool,
}

impl Args {
    /// What runs a seed again.
    pub(crate) fn of_seed(&self, seed: u64) -> String {
        let replicas = self.replicas.map(|replicas| format!(" --replicas {replicas}")).unwrap_or_default();
        let spools = if self.spools { " --spools" } else { "" };
        format!("faults --first {seed} --faults {}{replicas}{spools}", self.faults)
    }
}

/// Runs one seed to its end.
pub(crate) async fn run(stage: &mut Stage, seed: &Seed, args: &Args) -> Result<Outcome> {
    let mut rng = StdRng::seed_from_u64(seed.number);
    let replicas = args.replicas.map_or_else(|| rng.random_range(2..=3), usize::from);
    seed.accounts(&ACCOUNTS, "pro").await?;
    let (script, dues) = Script::new(plan(&mut rng, args.faults));
    let mut cast = Cast::start(seed, replicas, args.spools, script, rng).await?;
    let mut tally = Tally::default();
    match timeout(PATIENCE, cast.perform(stage, dues, &mut tally)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Ok(Outcome::failed(tally, format!("{error:#}"))),
        Err(_) => return Ok(Outcome::failed(tally, format!("not at rest after {PATIENCE:?}"))),
    }
    let histories: Vec<History> = (0..CLIENTS)
        .map(|client| History::read(&History::path(&seed.folder, client)))
        .collect::<Result<_>>()?;
    tally.add("events sent again and counted once", histories.iter().map(|history| history.duplicates).sum());
    let recovered: u64 = histories.iter().map(|history| history.recovered).sum();
    tally.add("events found in a disk buffer", u32::try_from(recovered)?);
    tally.add(
        "events in large batches",
        histories.iter().map(|history| history.large).sum::<usize>().try_into()?,
    );
    tally.add(
        "events over streams",
        histories.iter().map(|history| history.streamed).sum::<usize>().try_into()?,
    );
    let mut connection = seed.connect().await?;
    if args.spools {
        tally.add("events drained from spools", drained(&mut connection).await?);
    }
    let checked = check::run(&mut connection, &histories, args.spools).await?;
    let done = format!("{} events acknowledged", checked.acknowledged);
    Ok(Outcome::done(tally, done, checked.failures))
}

/// Which faults a seed has, where and after how many commits.
fn plan(rng: &mut StdRng, faults: u32) -> Vec<Planned> {
    let mut commits = 0;
    let mut planned = Vec::new();
    for _ in 0..faults {
        commits += rng.random_range(3..=15);
        let inside = At::InTransaction { skip: rng.random_range(0..8) };
        let either = [At::Committing, At::Committed, inside, inside][rng.random_range(0..4)];
        let lasting = rng.random_range(5..=25);
        let (at, fault) = match rng.random_range(0..100) {
            0..15 => (At::Committed, Fault::SwallowCommit),
            15..23 => (At::Committing, Fault::LoseCommit),
            23..30 => (inside, Fault::CutTransaction),
            30..50 => (either, Fault::KillReplica),
            50..60 => (either, Fault::KillDatabase),
            60..75 => (either, Fault::KillClient),
            75..85 => (either, Fault::PauseReplica { commits: lasting }),
            85..93 => (either, Fault::Partition { commits: lasting }),
            _ => (At::Committed, Fault::RestartReplica),
        };
        planned.push(Planned { commits, at, fault });
    }
    planned.push(Planned { commits: commits + 20, at: At::Any { skip: 0 }, fault: Fault::End });
    planned
}

/// Settings of a replica: bounds short enough that a fault is over soon, and a spool, if it has one.
fn settings(spool: Option<&Path>) -> Result<Environment> {
    let set = |name, value: &str| (name, value.to_owned());
    let mut settings = vec![
        set("FLUSH_TIMEOUT", "2s"),
        set("SHUTDOWN_GRACE", "5s"),
        set("DATABASE_MAX_CONNECTIONS", "8"),
        set("NEXUS_LOG_FORMAT", "text"),
    ];
    if let Some(folder) = spool {
        settings.push(set("SPOOL_DIR", folder.to_str().context("the folder's name is text")?));
        settings.push(("SPOOL_MAX_BYTES", SPOOL_BYTES.to_string()));
        // Its log is a file, too, and must not become too large.
        settings.push(set("NEXUS_LOG", "warn"));
    }
    Ok(settings)
}

/// Events that came from spools.
async fn drained(connection: &mut PgConnection) -> Result<u32> {
    let drained = sqlx::query_scalar("select coalesce(sum(next_number), 0)::bigint from eco_spool_cursors");
    let drained: i64 = drained.fetch_one(connection).await?;
    Ok(drained.try_into()?)
}

/// The processes of a seed.
struct Cast {
    replicas: Vec<Replica>,
    clients: Vec<Client>,
    /// Replicas that are stopped or cut off.
    out: BTreeSet<usize>,
    spools: bool,
    script: Arc<Script>,
    rng: StdRng,
}

impl Cast {
    async fn start(
        seed: &Seed,
        replicas: usize,
        spools: bool,
        script: Arc<Script>,
        rng: StdRng,
    ) -> Result<Self> {
        let mut cast =
            Self { replicas: Vec::new(), clients: Vec::new(), out: BTreeSet::new(), spools, script, rng };
        for replica in 0..replicas {
            let spool = spools.then(|| seed.folder.join(format!("spool-{replica}")));
            let settings = settings(spool.as_deref())?;
            cast.replicas.push(Replica::start(seed, &cast.script, replica, settings).await?);
        }
        let token = stage::token()?;
        for client in 0..CLIENTS {
            let folder = seed.folder.to_str().context("the temporary folder's name is text")?;
            let mut arguments = format!("--seed {} --number {client}", seed.number);
            if client == CLIENTS - 1 {
                arguments += " --tracker";
            }
            if spools {
                arguments += " --spools";
            }
            let mut arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
            arguments.extend(["--folder".to_owned(), folder.to_owned()]);
            for replica in &cast.replicas {
                arguments.extend(["--replica".to_owned(), replica.url().to_owned()]);
            }
            let environment = vec![(TOKEN_VARIABLE, token.clone())];
            cast.clients.push(Client::start(&seed.folder, client, arguments, environment)?);
        }
        Ok(cast)
    }

    /// Plays the script, lets everything come to rest, and stops the replicas in order.
    async fn perform(
        &mut self,
        stage: &mut Stage,
        mut dues: mpsc::UnboundedReceiver<Due>,
        tally: &mut Tally,
    ) -> Result<()> {
        loop {
            let due = tokio::select! {
                due = dues.recv() => due.context("the script is told as long as replicas run")?,
                what = ended(&mut self.replicas, &mut self.clients) => bail!(what),
            };
            tally.note(due.fault);
            if due.fault == Fault::End {
                self.script.clear();
                // Where nobody waits any more, its replica is gone.
                let _unheard = due.verdict.send(Verdict::Forward);
                break;
            }
            self.strike(stage, due).await?;
            self.script.done();
        }
        self.script.done();
        for replica in 0..self.replicas.len() {
            self.recover(replica)?;
        }
        for client in &mut self.clients {
            client.finish().await?;
        }
        for replica in &mut self.replicas {
            if self.spools {
                while replica.metric("nexus_usage_spool_events").await? > 0 {
                    sleep(DRAINING).await;
                }
                let full = replica.logged("the spool takes no events")?;
                tally.add("spool full", full.try_into()?);
            }
            replica.stop().await?;
        }
        Ok(())
    }

    /// Carries out a fault, then decides about what is held.
    async fn strike(&mut self, stage: &mut Stage, due: Due) -> Result<()> {
        let here = due.replica;
        let mut verdict = Verdict::Forward;
        match due.fault {
            Fault::SwallowCommit | Fault::CutTransaction | Fault::LoseCommit => verdict = Verdict::Sever,
            Fault::KillReplica => {
                verdict = Verdict::Sever;
                self.replicas[here].kill().await?;
            }
            Fault::RestartReplica => {
                // It has to finish what it has in hand, this answer too; and it may be stopped.
                let _unheard = due.verdict.send(Verdict::Forward);
                self.recover(here)?;
                return self.replicas[here].restart().await;
            }
            Fault::PauseReplica { commits } => {
                self.keep_another_than(here)?;
                self.replicas[here].signal(Signal::SIGSTOP)?;
                self.script.plan(commits, At::Any { skip: 0 }, Fault::Recover(here));
            }
            Fault::Partition { commits } => {
                self.keep_another_than(here)?;
                self.replicas[here].line.partition();
                self.script.plan(commits, At::Any { skip: 0 }, Fault::Recover(here));
            }
            Fault::KillDatabase => {
                stage.cluster.kill()?;
                if self.rng.random_bool(0.5) {
                    verdict = Verdict::Sever;
                }
                let _unheard = due.verdict.send(verdict);
                return Ok(stage.cluster.restart().await?);
            }
            Fault::KillClient => {
                let client = self.rng.random_range(0..self.clients.len());
                self.clients[client].kill().await?;
            }
            Fault::Recover(replica) => self.recover(replica)?,
            Fault::End => {}
        }
        let _unheard = due.verdict.send(verdict);
        Ok(())
    }

    /// Ends its pause and its partition.
    fn recover(&mut self, replica: usize) -> Result<()> {
        self.out.remove(&replica);
        self.replicas[replica].line.heal();
        self.replicas[replica].signal(Signal::SIGCONT)
    }

    /// Takes a replica out. One of the others works, or else nothing would be committed any more, and nothing
    /// that is planned came about.
    fn keep_another_than(&mut self, replica: usize) -> Result<()> {
        self.out.insert(replica);
        if self.out.len() == self.replicas.len() {
            let others: Vec<usize> = self.out.iter().copied().filter(|other| *other != replica).collect();
            others.into_iter().try_for_each(|other| self.recover(other))?;
        }
        Ok(())
    }
}

/// A process that ended by itself.
async fn ended(replicas: &mut [Replica], clients: &mut [Client]) -> String {
    let replicas = replicas.iter_mut().map(|replica| replica.ended().boxed());
    let clients = clients.iter_mut().map(|client| client.ended().boxed());
    select_all(replicas.chain(clients)).await.0
}
