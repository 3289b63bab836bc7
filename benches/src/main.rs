//! Benchmarks: ours beside a reference, in one run on one machine. Figures are printed, never asserted.
//!
//! The process that a person starts only conducts: it runs a private PostgreSQL, and starts itself again
//! as a server (usage-svc or a reference) and as a load generator, so that each has a process of its own.
//!
//! | module | what it does |
//! |---|---|
//! | [`bench`](mod@bench) | one file a benchmark: what is measured against what, the table |
//! | [`child`] | what the process does when it is started as a server or as a load generator |
//! | [`process`] | starts those, reads what they say, stops them |
//! | [`database`] | the private PostgreSQL and its accounts |
//! | [`workload`] | the events: accounts by Zipf or uniform, monotonic ids |
//! | [`curve`] | thirds and slope of what is looked at again and again |
//! | [`measure`] | latencies, reports, tables |

mod bench;
mod child;
mod curve;
mod database;
mod measure;
mod process;
mod workload;

use alloc_counter::AllocCounter;
use clap::Parser;
use mimalloc::MiMalloc;

/// As in the binary that is deployed, but each thread counts what it allocates: a nanosecond or so.
#[global_allocator]
static ALLOCATOR: AllocCounter<MiMalloc> = AllocCounter(MiMalloc);

#[derive(Parser)]
#[command(name = "nexus-bench", version, about)]
enum Cli {
    /// CheckQuota, unary, against an echo behind the same layers and a bare one
    CheckQuota(bench::check_quota::Args),
    /// One decision in process: nanoseconds and allocations
    Decision(bench::decision::Args),
    /// Envoy's ShouldRateLimit, against the limitador crate and an echo, both on bare tonic
    RateLimit(bench::rate_limit::Args),
    /// BatchRecordUsage, committed before the ack, against COPY BINARY into the same table
    Ingest(bench::ingest::Args),
    /// RecordUsage, unary, committed before the ack, against a bare echo and an fdatasync
    Record(bench::record::Args),
    /// GetCurrentUsage, with a history of millions of events
    CurrentUsage(bench::current_usage::Args),
    /// What analytics-svc answers, with a history of millions of events
    Analytics(bench::analytics::Args),
    /// Everything at once for a while: memory and queue from beginning to end
    Soak(bench::soak::Args),
    /// ProcessOverage over many accounts, against the same invoice items without a ledger
    ProcessOverage(bench::process_overage::Args),
    /// How long until a revoked key or another plan is in force at every replica
    Changes(bench::changes::Args),
    /// What the benchmarks start this program as
    #[command(subcommand, hide = true)]
    Child(child::Child),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // reqwest asks for a TLS provider, also where there is no TLS.
    if tokio_rustls::rustls::crypto::ring::default_provider().install_default().is_err() {
        unreachable!("nothing has run before");
    }
    let work = async {
        match Cli::parse() {
            Cli::CheckQuota(args) => bench::check_quota::run(args).await,
            Cli::Decision(args) => bench::decision::run(args).await,
            Cli::RateLimit(args) => bench::rate_limit::run(args).await,
            Cli::Ingest(args) => bench::ingest::run(args).await,
            Cli::Record(args) => bench::record::run(args).await,
            Cli::CurrentUsage(args) => bench::current_usage::run(args).await,
            Cli::Analytics(args) => bench::analytics::run(args).await,
            Cli::Soak(args) => bench::soak::run(args).await,
            Cli::ProcessOverage(args) => bench::process_overage::run(args).await,
            Cli::Changes(args) => bench::changes::run(args).await,
            Cli::Child(child) => child.run().await,
        }
    };
    // Interrupted, the work is dropped: its children end and its PostgreSQL stops.
    tokio::select! {
        result = work => result,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            anyhow::bail!("interrupted")
        }
    }
}
