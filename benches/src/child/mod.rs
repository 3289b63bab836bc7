//! What this program does when a benchmark starts it as a server or as a load generator.

mod batch_load;
mod batches;
mod check_load;
mod classic_load;
mod copy_load;
mod echo;
mod record_load;
mod server;

pub(crate) use batches::Loaded;

#[derive(clap::Subcommand)]
pub(crate) enum Child {
    /// usage-svc, as it is deployed
    Usage(Box<server::Usage>),
    /// Answers CheckQuota with a given message and RecordUsage with `ACCEPTED`, on bare tonic
    Echo(server::Echo),
    /// The same behind the layers that every server of ours has
    LayeredEcho(Box<server::LayeredEcho>),
    /// Calls CheckQuota for some seconds
    CheckLoad(check_load::Args),
    /// Calls RecordUsage for some seconds
    RecordLoad(record_load::Args),
    /// Sends batches of events
    BatchLoad(batch_load::Args),
    /// Copies the same rows into the table
    CopyLoad(copy_load::Args),
    /// Inserts the same rows and calls the counter function
    ClassicLoad(classic_load::Args),
}

impl Child {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        match self {
            Child::Usage(usage) => usage.run().await,
            Child::Echo(echo) => echo.run().await,
            Child::LayeredEcho(echo) => echo.run().await,
            Child::CheckLoad(args) => check_load::run(args).await,
            Child::RecordLoad(args) => record_load::run(args).await,
            Child::BatchLoad(args) => batch_load::run(args).await,
            Child::CopyLoad(args) => copy_load::run(args).await,
            Child::ClassicLoad(args) => classic_load::run(args).await,
        }
    }
}
