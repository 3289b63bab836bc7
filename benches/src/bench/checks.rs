//! What the benchmarks of checks share.

use anyhow::Result;
use nexus_core::text::thousands;

use crate::{
    child::Rpc,
    database::Database,
    measure::Report,
    process::{self, Environment},
};

#[derive(clap::Args)]
pub(super) struct LoadArgs {
    /// Connections of the load generator
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024), value_name = "N")]
    connections: u32,
    /// Requests in flight on each connection
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024), value_name = "N")]
    in_flight: u32,
    /// Accounts that are asked for, in turn
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000), value_name = "N")]
    pub(super) accounts: u32,
    /// All accounts have a hard limit, which is out of reach: units are granted by the shrinking sizes that keep it exact
    #[arg(long)]
    hard_limit: bool,
    /// Measured seconds of a round; a second of warming up goes before
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600), value_name = "S")]
    seconds: u32,
    /// Rounds, each of all servers; the median is shown
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100), value_name = "N")]
    pub(super) rounds: u32,
}

impl LoadArgs {
    /// A database with the accounts.
    pub(super) async fn database(&self) -> Result<Database> {
        let mut database = Database::start(self.accounts).await?;
        if self.hard_limit {
            database.limit_hard().await?;
        }
        Ok(database)
    }

    /// Calls for the measured time.
    pub(super) async fn load(&self, rpc: Rpc, url: &str, environment: &Environment) -> Result<Report> {
        let seconds = self.seconds.to_string();
        self.run(rpc, url, &["--seconds", &seconds], environment).await
    }

    /// Calls once for each account.
    pub(super) async fn once_each(&self, rpc: Rpc, url: &str, environment: &Environment) -> Result<Report> {
        self.run(rpc, url, &[], environment).await
    }

    async fn run(&self, rpc: Rpc, url: &str, more: &[&str], environment: &Environment) -> Result<Report> {
        let numbers = [self.connections, self.in_flight, self.accounts].map(|n| n.to_string());
        let [connections, in_flight, accounts] = &numbers;
        let arguments = [
            "check-load",
            "--url",
            url,
            "--rpc",
            rpc.word(),
            "--connections",
            connections,
            "--in-flight",
            in_flight,
            "--accounts",
            accounts,
        ];
        process::load(&[&arguments, more].concat(), environment).await
    }

    pub(super) fn title(&self, of: &str, database_version: &str) -> String {
        format!(
            "{of}: {} connections x {} in flight, {} accounts{}, PostgreSQL {database_version}, \
             median of {} round(s) of {} s",
            self.connections,
            self.in_flight,
            thousands(self.accounts),
            if self.hard_limit { " with a hard limit" } else { "" },
            self.rounds,
            self.seconds
        )
    }
}
