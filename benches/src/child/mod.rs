//! What this program does when a benchmark starts it as a server or as a load generator.

mod batch_load;
mod batches;
mod callers;
mod check_load;
mod classic_load;
mod copy_load;
mod echo;
mod rate_limit;
mod read_load;
mod record_load;
mod server;
mod soak_load;
mod stripe;

pub(crate) use batches::Loaded;
pub(crate) use check_load::{Rpc, about};
pub(crate) use soak_load::Soaked;

use tonic::transport::{Channel, Endpoint};

#[derive(clap::Subcommand)]
pub(crate) enum Child {
    /// usage-svc, as it is deployed
    Usage(Box<server::Usage>),
    /// Answers CheckQuota with a given message and RecordUsage with `ACCEPTED`, on bare tonic
    Echo(server::Echo),
    /// The same behind the layers that every server of ours has
    LayeredEcho(Box<server::LayeredEcho>),
    /// Answers ShouldRateLimit with a given message, on bare tonic
    RateLimitEcho(rate_limit::EchoArgs),
    /// The same behind the layers that every server of ours has
    LayeredRateLimitEcho(Box<server::LayeredRateLimitEcho>),
    /// Answers ShouldRateLimit by the `limitador` crate, on bare tonic
    Limitador(rate_limit::LimitadorArgs),
    /// Calls CheckQuota, GetCurrentUsage or ShouldRateLimit
    CheckLoad(check_load::Args),
    /// analytics-svc, as it is deployed
    Analytics(Box<server::Analytics>),
    /// Reads from analytics-svc for some seconds
    ReadLoad(read_load::Args),
    /// Calls RecordUsage for some seconds
    RecordLoad(record_load::Args),
    /// Sends batches and single events and checks for some seconds
    SoakLoad(soak_load::Args),
    /// Sends batches of events
    BatchLoad(batch_load::Args),
    /// Copies the same rows into the table
    CopyLoad(copy_load::Args),
    /// Inserts the same rows and calls the counter function
    ClassicLoad(classic_load::Args),
    /// billing-svc, as it is deployed
    Billing(Box<stripe::Billing>),
    /// The stand-in Stripe
    StripeSim(stripe::Sim),
    /// Makes customers at the stand-in Stripe
    Customers(stripe::Customers),
    /// Makes invoice items there, without a ledger
    ItemLoad(stripe::ItemLoad),
}

impl Child {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        match self {
            Child::Usage(usage) => usage.run().await,
            Child::Echo(echo) => echo.run().await,
            Child::LayeredEcho(echo) => echo.run().await,
            Child::RateLimitEcho(echo) => echo.run().await,
            Child::LayeredRateLimitEcho(echo) => echo.run().await,
            Child::Limitador(limitador) => limitador.run().await,
            Child::CheckLoad(args) => check_load::run(args).await,
            Child::Analytics(analytics) => analytics.run().await,
            Child::ReadLoad(args) => read_load::run(args).await,
            Child::RecordLoad(args) => record_load::run(args).await,
            Child::SoakLoad(args) => soak_load::run(args).await,
            Child::BatchLoad(args) => batch_load::run(args).await,
            Child::CopyLoad(args) => copy_load::run(args).await,
            Child::ClassicLoad(args) => classic_load::run(args).await,
            Child::Billing(billing) => billing.run().await,
            Child::StripeSim(sim) => sim.run().await,
            Child::Customers(customers) => customers.run().await,
            Child::ItemLoad(load) => load.run().await,
        }
    }
}

/// Tries of a call.
const TRIES: u32 = 3;

/// Calls until there is an answer: a server ends connections that are of age, and a call that meets that end is made
/// again.
async fn answered<T, F>(mut call: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
{
    let mut tries = 1;
    loop {
        match call().await {
            Err(status) if tries < TRIES && nexus_client::is_transient(&status) => tries += 1,
            answer => return Ok(answer?.into_inner()),
        }
    }
}

/// A connection of its own.
async fn connect(url: &str) -> anyhow::Result<Channel> {
    Ok(Endpoint::from_shared(url.to_owned())?.tcp_nodelay(true).connect().await?)
}
