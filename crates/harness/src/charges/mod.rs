//! The kill harness of billing: billing-svc is killed before and after whatever it waits for, PostgreSQL and Stripe,
//! while Stripe fails in every way that the stand-in knows; afterwards each intent has one item, and what is owed is
//! charged to the cent.
//!
//! | module | what it does |
//! |---|---|
//! | [`world`] | the accounts of a seed, and what they owe by their counts |
//! | [`setting`] | brings them into the database and to Stripe |
//! | [`trial`] | a seed: rounds, time that passes between them, calm in the end |
//! | [`rounds`] | a round: usage grows, Stripe fails, a run is called for |
//! | [`cycles`] | subscriptions that renew and end, their invoices and webhooks |
//! | [`retries`] | customers who can be charged again |
//! | [`calls`] | calls, during which billing-svc is struck and started again |
//! | [`time`] | lets time pass for Stripe and for the database |
//! | [`replica`], [`lines`] | a billing-svc, and its lines to PostgreSQL and to Stripe |
//! | [`gateway`] | hands Stripe's webhooks on |
//! | [`postgres`], [`http`] | as much of the protocols as the lines need |
//! | [`strikes`], [`atlas`] | the points where it is struck; which of them were struck so far |
//! | [`check`] | what must hold in the end |

mod atlas;
mod calls;
mod check;
mod cycles;
mod gateway;
mod http;
mod lines;
mod postgres;
mod replica;
mod retries;
mod rounds;
mod setting;
mod strikes;
mod time;
mod trial;
mod world;

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use tokio::time::timeout;

use self::{atlas::Atlas, trial::Trial};
use crate::{
    report::{Outcome, Tally},
    stage::Seed,
};

/// A seed that takes so long has come to a stop.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seeds to run
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub(crate) seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    pub(crate) first: u64,
}

impl Args {
    /// What runs a seed again.
    pub(crate) fn of_seed(&self, seed: u64) -> String {
        format!("charges --first {seed}")
    }
}

/// What the seeds of a run share: the points that were struck.
#[derive(Default)]
pub(crate) struct Coverage(Arc<Atlas>);

impl std::fmt::Display for Coverage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Runs one seed to its end.
pub(crate) async fn run(seed: &Seed, coverage: &Coverage) -> Result<Outcome> {
    let mut trial = Trial::start(seed, coverage.0.clone()).await?;
    let mut tally = Tally::default();
    Ok(match timeout(PATIENCE, trial.run(&mut tally)).await {
        Ok(Ok((done, failures))) => Outcome::done(tally, done, failures),
        Ok(Err(error)) => Outcome::failed(tally, format!("{error:#}")),
        Err(_) => Outcome::failed(tally, format!("not at rest after {PATIENCE:?}")),
    })
}
