//! `nexus usage`: the server, and with a subcommand what accounts have used, by the services.
//!
//! | module | what it does |
//! |---|---|
//! | [`show`] | `show`: where an account stands in its period, and its days |
//! | [`top`] | `top`: the accounts with the most usage |
//! | [`endpoints`] | `endpoints`: an account's busiest endpoints |

mod endpoints;
mod show;
mod top;

use std::process::ExitCode;

use anyhow::Result;
use clap::{ArgMatches, Args, Command, FromArgMatches, Subcommand};

pub(crate) const HELP: &str = "\
Examples:
  nexus usage --grpc-addr 0.0.0.0:50051          serve
  nexus usage show --account eco_demo_pro        look at an account: see nexus usage show --help";

/// What to do: serve, unless a subcommand is named. What only the server needs is demanded of nobody who looks.
pub(crate) enum Usage {
    Serve(Box<nexus_usage::Config>),
    Look(Look),
}

#[derive(Subcommand)]
pub(crate) enum Look {
    /// Show where an account stands in its current period
    #[command(after_help = show::HELP)]
    Show(show::ShowArgs),
    /// List the accounts with the most usage in their current period; for admins
    #[command(after_help = top::HELP)]
    Top(top::TopArgs),
    /// List an account's busiest endpoints, with latency and success rate
    #[command(after_help = endpoints::HELP)]
    Endpoints(endpoints::EndpointsArgs),
}

impl FromArgMatches for Usage {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        if matches.subcommand_name().is_some() {
            Look::from_arg_matches(matches).map(Self::Look)
        } else {
            nexus_usage::Config::from_arg_matches(matches).map(|config| Self::Serve(Box::new(config)))
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Usage {
    fn augment_args(command: Command) -> Command {
        let command = Look::augment_subcommands(nexus_usage::Config::augment_args(command));
        // So a subcommand also lifts what the server demands.
        command.args_conflicts_with_subcommands(true)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

pub(crate) async fn look(what: Look) -> Result<ExitCode> {
    match what {
        Look::Show(args) => show::run(&args).await?,
        Look::Top(args) => top::run(&args).await?,
        Look::Endpoints(args) => endpoints::run(&args).await?,
    }
    Ok(ExitCode::SUCCESS)
}
