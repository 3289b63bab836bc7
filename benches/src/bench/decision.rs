use std::{
    num::NonZero,
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use alloc_counter::count_alloc;
use anyhow::{Context, Result, anyhow, ensure};
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use nexus_core::{id::EcoId, text::thousands};
use nexus_kit::{
    config::DbArgs,
    db::{self, Role},
};
use nexus_usage::app::{
    feed,
    outage::Outage,
    quota::{self, Quota, Verdict},
};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::{database::Database, workload};

/// Each decision asks for another account; a step that has no divisor in common with their number visits all.
const STEP: usize = 7_919;
/// A first lease of an account has no more than this, so that asking for as much twice is asking for two.
const LEAST: i64 = 1_000;
/// Accounts that are leased for at once.
const AT_ONCE: usize = 64;

/// One decision in process, from a lease that is held: nanoseconds and allocations.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Accounts that are asked for, in turn; can be given more than once
    #[arg(long, default_values = ["1", "1000", "20000"], value_parser = clap::value_parser!(u32).range(1..=1_000_000), value_name = "N")]
    accounts: Vec<u32>,
    /// Decisions of a thread in a round
    #[arg(long, default_value_t = 2_000_000, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    decisions: u32,
    /// Rounds; the median is shown
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100), value_name = "N")]
    rounds: u32,
}

pub(crate) async fn run(args: Args) -> Result<()> {
    let database = Database::start(args.accounts.iter().copied().max().unwrap_or(1)).await?;
    let stop = CancellationToken::new();
    let settings = DbArgs { database_url: database.url().into(), database_max_connections: 16 };
    let (feed, listening) = feed::start(&settings, stop.clone())?;
    let pool = db::pool(&settings, Role::Usage)?;
    let (quota, holding) = quota::start(
        pool,
        Arc::new(Outage::new(feed)),
        Default::default(),
        "nexus-bench".to_owned(),
        Duration::from_secs(60),
        stop.clone(),
    );
    let cores = thread::available_parallelism()?;
    println!("\nA decision from a held lease: PostgreSQL {}, median of {}", database.version(), args.rounds);
    println!("{:>12} {:>10} {:>16} {:>24}", "accounts", "threads", "ns a decision", "allocations a decision");
    for accounts in &args.accounts {
        let ids: Vec<_> =
            (0..*accounts).map(|n| EcoId::parse(&workload::account(n))).collect::<Result<_, _>>()?;
        for threads in [NonZero::<usize>::MIN, cores] {
            let mut rounds = Vec::new();
            for _ in 0..args.rounds {
                lease(&quota, &ids, i64::from(args.decisions) * threads.get() as i64).await?;
                let decisions = args.decisions as usize;
                rounds.push(tokio::task::block_in_place(|| measure(&quota, &ids, threads.get(), decisions))?);
            }
            rounds.sort_by_key(|(took, _)| *took);
            let (took, allocations) = rounds[rounds.len() / 2];
            let decisions = f64::from(args.decisions);
            let each = allocations as f64 / decisions / threads.get() as f64;
            let (accounts, ns) = (thousands(*accounts), took.as_nanos() as f64 / decisions);
            println!("{accounts:>12} {threads:>10} {ns:>16.1} {each:>24.6}");
        }
    }
    stop.cancel();
    holding.await?;
    listening.await?;
    database.stop().await
}

/// Has the quota hold more units of each account than a round takes. Twice as many spent in an instant make it
/// lease for ten seconds at that pace.
async fn lease(quota: &Quota, ids: &[EcoId], units: i64) -> Result<()> {
    let units = (units / ids.len() as i64).max(LEAST);
    stream::iter(ids)
        .map(|eco_id| async move {
            for _ in 0..2 {
                let decision = quota.admit(eco_id, units).await.map_err(|e| anyhow!("{eco_id}: {e}"))?;
                ensure!(matches!(decision.verdict, Verdict::Admitted(_)), "{eco_id}: {decision:?}");
            }
            Ok(())
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

/// The time of the slowest thread, and the allocations of all.
fn measure(quota: &Quota, ids: &[EcoId], threads: usize, decisions: usize) -> Result<(Duration, usize)> {
    let (start, runtime) = (Barrier::new(threads), Handle::current());
    let measured = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|n| {
                let (start, runtime) = (&start, &runtime);
                scope.spawn(move || {
                    let _runtime = runtime.enter();
                    start.wait();
                    let began = Instant::now();
                    let ((allocations, reallocations, _), decided) =
                        count_alloc(|| decide(quota, ids, n * STEP / 2, decisions));
                    decided.map(|()| (began.elapsed(), allocations + reallocations))
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|t| t.join().map_err(|_| anyhow!("a thread panicked"))?)
            .collect::<Result<Vec<_>>>()
    })?;
    let slowest = measured.iter().map(|(took, _)| *took).max().context("there are threads")?;
    Ok((slowest, measured.iter().map(|(_, allocations)| allocations).sum()))
}

fn decide(quota: &Quota, ids: &[EcoId], from: usize, decisions: usize) -> Result<()> {
    let mut next = from % ids.len();
    for _ in 0..decisions {
        let decision =
            quota.admit(&ids[next], 1).now_or_never().context("a decision waited for the database")?;
        ensure!(matches!(decision, Ok(d) if matches!(d.verdict, Verdict::Admitted(_))), "a unit was refused");
        next = (next + STEP) % ids.len();
    }
    Ok(())
}
