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
//! | [`measure`] | latencies, reports, tables |

mod bench;
mod child;
mod database;
mod measure;
mod process;
mod workload;

use clap::Parser;

/// As in the binary that is deployed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "nexus-bench", version, about)]
enum Cli {
    /// CheckQuota, unary, against an echo behind the same layers and a bare one
    CheckQuota(bench::check_quota::Args),
    /// BatchRecordUsage, committed before the ack, against COPY BINARY into the same table
    Ingest(bench::ingest::Args),
    /// RecordUsage, unary, committed before the ack, against a bare echo and an fdatasync
    Record(bench::record::Args),
    /// What the benchmarks start this program as
    #[command(subcommand, hide = true)]
    Child(child::Child),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let work = async {
        match Cli::parse() {
            Cli::CheckQuota(args) => bench::check_quota::run(args).await,
            Cli::Ingest(args) => bench::ingest::run(args).await,
            Cli::Record(args) => bench::record::run(args).await,
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
