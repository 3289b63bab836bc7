use std::time::Duration;

use anyhow::Result;
use nexus_client::CallOptions;
use nexus_kit::auth::Scope;
use nexus_proto::usage::v1::CheckQuotaRequest;
use prost::Message;

use super::{checks::LoadArgs, server_environment, token};
use crate::{
    child::Rpc,
    measure::{Report, print_row, print_table},
    process::{Environment, ServerProcess, TOKEN_VARIABLE},
    workload,
};

/// CheckQuota, unary: requests a second and latency, of usage-svc, of an echo of the same messages behind
/// the same authentication, tracing and log layers, and of that echo bare.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    load: LoadArgs,
}

pub(crate) async fn run(Args { load }: Args) -> Result<()> {
    let database = load.database().await?;
    let token = token(&[Scope::UsageCheck])?;
    let with_database = [server_environment(), vec![("DATABASE_URL", database.url())]].concat();
    let usage = ServerProcess::start(&["usage"], &with_database).await?;
    let answer = answer(&usage.url, &token).await?;
    let layered = ServerProcess::start(&["layered-echo", "--answer", &answer], &server_environment()).await?;
    let bare = ServerProcess::start(&["echo", "--answer", &answer], &server_environment()).await?;

    let generator: Environment = vec![(TOKEN_VARIABLE, token)];
    let first = load.once_each(Rpc::CheckQuota, &usage.url, &generator).await?;
    let (mut ours, mut same_layers, mut echo) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=load.rounds {
        eprintln!("round {round} of {}", load.rounds);
        // What was idle while others were measured went back.
        load.once_each(Rpc::CheckQuota, &usage.url, &generator).await?;
        for (server, reports) in [(&usage, &mut ours), (&layered, &mut same_layers), (&bare, &mut echo)] {
            reports.push(load.load(Rpc::CheckQuota, &server.url, &generator).await?);
        }
    }
    for server in [usage, layered, bare] {
        server.stop().await?;
    }
    let title = load.title("CheckQuota", database.version());
    database.stop().await?;
    print_table(
        &title,
        "requests",
        ("usage-svc", Report::median(ours)),
        &[("echo behind the same layers", Report::median(same_layers)), ("echo, bare", Report::median(echo))],
    );
    print_row("usage-svc, first check of each", &first);
    Ok(())
}

/// A real answer of usage-svc, for the echoes to give.
pub(super) async fn answer(url: &str, token: &str) -> Result<String> {
    let options = CallOptions::bearer(token, Duration::from_secs(10))?;
    let request = CheckQuotaRequest { eco_id: workload::account(0), ..Default::default() };
    let mut client = nexus_client::usage(nexus_client::channel(url)?);
    let answer = client.check_quota(options.request(request)).await?.into_inner();
    Ok(hex::encode(answer.encode_to_vec()))
}
