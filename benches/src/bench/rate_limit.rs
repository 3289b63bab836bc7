use std::time::Duration;

use anyhow::Result;
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_service_client::RateLimitServiceClient;
use nexus_client::CallOptions;
use nexus_kit::auth::Scope;
use prost::Message;

use super::{checks::LoadArgs, server_environment, token};
use crate::{
    child::{Rpc, about},
    measure::{Report, print_row, print_table},
    process::{Environment, ServerProcess, TOKEN_VARIABLE},
    workload,
};

const RPC: Rpc = Rpc::ShouldRateLimit;

/// Envoy's ShouldRateLimit: requests a second and latency, of usage-svc, of the `limitador` crate (in memory)
/// behind bare tonic, and of an echo of the same messages, bare and behind the same layers as usage-svc.
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
    let accounts = load.accounts.to_string();
    let plain = server_environment();
    let limitador = ServerProcess::start(&["limitador", "--accounts", &accounts], &plain).await?;
    let bare = ServerProcess::start(&["rate-limit-echo", "--answer", &answer], &plain).await?;
    let layered = ServerProcess::start(&["layered-rate-limit-echo", "--answer", &answer], &plain).await?;
    let servers = [usage, limitador, bare, layered];

    let generator: Environment = vec![(TOKEN_VARIABLE, token)];
    let first = load.once_each(RPC, &servers[0].url, &generator).await?;
    let mut reports = [const { Vec::new() }; 4];
    for round in 1..=load.rounds {
        eprintln!("round {round} of {}", load.rounds);
        // What was idle while others were measured went back.
        load.once_each(RPC, &servers[0].url, &generator).await?;
        for (server, reports) in servers.iter().zip(&mut reports) {
            reports.push(load.load(RPC, &server.url, &generator).await?);
        }
    }
    for server in servers {
        server.stop().await?;
    }
    let title = load.title("ShouldRateLimit", database.version());
    database.stop().await?;
    let [ours, limitador, bare, layered] = reports.map(Report::median);
    let references = [
        ("limitador in memory, bare tonic", limitador),
        ("echo, bare", bare),
        ("echo behind the same layers", layered),
    ];
    print_table(&title, "requests", ("usage-svc", ours), &references);
    print_row("usage-svc, first check of each", &first);
    Ok(())
}

/// A real answer of usage-svc, for the echoes to give.
async fn answer(url: &str, token: &str) -> Result<String> {
    let options = CallOptions::bearer(token, Duration::from_secs(10))?;
    let mut client = RateLimitServiceClient::new(nexus_client::channel(url)?);
    let request = options.request(about(workload::account(0)));
    Ok(hex::encode(client.should_rate_limit(request).await?.into_inner().encode_to_vec()))
}
