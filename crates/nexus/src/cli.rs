//! The command line. Every setting is a flag, and where it makes sense an environment variable.

use std::{env, ffi::OsString, net::SocketAddr, process::ExitCode};

use clap::{
    ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind,
    parser::ValueSource,
};
use clap_complete::Shell;
use nexus_kit::config::{self, LogFormat, TelemetryArgs};

use crate::{accounts, charges, dev, import, keys, maintenance, overage, reconcile, text, token, usage};

const EXAMPLES: &str = "\
Examples:
  nexus                                    everything in one process, with demo data (the same as `nexus dev`)
  nexus dev --ephemeral --empty            a throw-away one on free ports, without data
  nexus usage --grpc-addr 0.0.0.0:50051    one server, as in production
  nexus migrate                            bring DATABASE_URL to this version's schema
  nexus token user --eco-id eco_demo_pro   a user's token
  nexus usage show                         where the account stands whose user's token NEXUS_TOKEN is
  nexus accounts list --sort revenue       as an admin: all accounts, with usage and revenue
  nexus keys create --name ci              an API key; its secret is shown this once
  nexus charges list                       what was charged; `nexus charges explain` says why
  nexus overage process --dry-run          what would be charged now
  nexus reconcile                          what differs between billing's records and Stripe
  nexus import access.log --create-accounts free --shift-to-now";

/// Counts API calls exactly once, enforces plan limits, bills overage through Stripe.
#[derive(Parser)]
#[command(name = "nexus", version, after_help = EXAMPLES)]
pub(crate) struct Raw {
    #[command(flatten)]
    telemetry: TelemetryArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What to do, and how to log meanwhile.
pub(crate) struct Cli {
    pub(crate) telemetry: TelemetryArgs,
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run everything in one process: a private PostgreSQL, a stand-in Stripe, the four servers, demo data
    #[command(after_help = dev::HELP)]
    Dev(Box<dev::DevArgs>),
    /// Serve usage-svc: recording, quota, API keys; with a subcommand: look at what accounts have used
    #[command(after_help = usage::HELP)]
    Usage(Box<usage::Usage>),
    /// Serve billing-svc: accounts, plans, overage through Stripe
    Billing(Box<nexus_billing::Config>),
    /// Serve analytics-svc: history, endpoints, revenue
    Analytics(Box<nexus_analytics::Config>),
    /// Serve the gateway: REST over the three services
    Gateway(Box<nexus_gateway::Config>),
    /// Serve a stand-in Stripe for development and tests
    StripeSim(StripeSimArgs),
    /// Bring a database to this version's schema
    #[command(after_help = maintenance::MIGRATE_HELP)]
    Migrate(maintenance::DatabaseArgs),
    /// Rebuild the usage rollup of one day from the raw log
    #[command(after_help = maintenance::ROLLUP_HELP)]
    Rollup(maintenance::RollupArgs),
    /// Print a token
    #[command(after_help = token::HELP)]
    Token {
        #[command(subcommand)]
        whose: token::Whose,
    },
    /// List accounts, create one, change a plan
    #[command(after_help = accounts::HELP)]
    Accounts {
        #[command(subcommand)]
        action: accounts::Action,
    },
    /// Create, list, rotate and revoke API keys
    #[command(after_help = keys::HELP)]
    Keys {
        #[command(subcommand)]
        action: keys::Action,
    },
    /// List an account's charges, and tell why each is what it is
    #[command(after_help = charges::HELP)]
    Charges {
        #[command(subcommand)]
        action: charges::Action,
    },
    /// Charge overage; follow and list the runs that did
    #[command(after_help = overage::HELP)]
    Overage {
        #[command(subcommand)]
        action: overage::Action,
    },
    /// Compare billing's records with each other and with Stripe
    #[command(after_help = reconcile::HELP)]
    Reconcile(Box<reconcile::ReconcileArgs>),
    /// Meter a web server's log through the gRPC API
    #[command(after_help = import::HELP)]
    Import(Box<import::ImportArgs>),
    /// Print what completes commands in a shell
    #[command(after_help = COMPLETIONS_HELP)]
    Completions {
        /// The shell
        shell: Shell,
    },
}

const COMPLETIONS_HELP: &str = "\
Examples:
  source <(nexus completions bash)                                        in ~/.bashrc
  nexus completions zsh > \"${fpath[1]}/_nexus\"
  nexus completions fish > ~/.config/fish/completions/nexus.fish";

/// Prints what completes commands in a shell.
pub(crate) fn completions(shell: Shell) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Raw::command(), "nexus", &mut script);
    text::print(&String::from_utf8(script)?)?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Args)]
pub(crate) struct StripeSimArgs {
    /// Where to listen; port 0: a free one
    #[arg(long, env = "STRIPE_SIM_ADDR", default_value = "127.0.0.1:12111", value_name = "ADDR")]
    pub(crate) addr: SocketAddr,
    #[command(flatten)]
    pub(crate) config: stripe_sim::Config,
}

/// Reads the command line; ends the process on `--help`, `--version` and mistakes.
pub(crate) fn parse() -> Cli {
    let arguments: Vec<OsString> = env::args_os().collect();
    matches(&arguments).and_then(|matches| read(&matches)).unwrap_or_else(|error| {
        let mut whole = Raw::command();
        whole.build();
        let told = arguments.iter().find_map(|argument| whole.find_subcommand(argument));
        config::exit(error, told.unwrap_or(&whole))
    })
}

fn matches(arguments: &[OsString]) -> Result<ArgMatches, clap::Error> {
    let matches = Raw::command().try_get_matches_from(arguments)?;
    if matches.subcommand_name().is_some() {
        return Ok(matches);
    }
    Raw::command().try_get_matches_from(arguments.iter().cloned().chain(["dev".into()]))
}

fn read(matches: &ArgMatches) -> Result<Cli, clap::Error> {
    let Raw { mut telemetry, command } = Raw::from_arg_matches(matches)?;
    let command = command.ok_or_else(|| Raw::command().error(ErrorKind::MissingSubcommand, "no command"))?;
    if let Some(dev) = matches.subcommand_matches("dev") {
        // The terminal is the banner's: only what goes wrong is told beside it, in words for people.
        let by_default = |name| dev.value_source(name) == Some(ValueSource::DefaultValue);
        if by_default("log") {
            "warn".clone_into(&mut telemetry.log);
        }
        if by_default("log_format") {
            telemetry.log_format = LogFormat::Text;
        }
    }
    Ok(Cli { telemetry, command })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Raw::command().debug_assert();
    }

    #[test]
    fn dev_logs_little_for_people_unless_told_otherwise() -> Result<(), clap::Error> {
        let parsed = |arguments: &[&str]| read(&Raw::command().try_get_matches_from(arguments)?);
        let quiet = parsed(&["nexus", "dev"])?;
        assert_eq!((quiet.telemetry.log.as_str(), quiet.telemetry.log_format), ("warn", LogFormat::Text));
        let told = parsed(&["nexus", "--log", "debug", "dev", "--log-format", "json"])?;
        assert_eq!((told.telemetry.log.as_str(), told.telemetry.log_format), ("debug", LogFormat::Json));
        Ok(())
    }
}
