use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::future::try_join_all;
use nexus_client::CallOptions;
use nexus_kit::auth::Scope;
use nexus_proto::usage::v1::{
    CheckQuotaRequest, CreateApiKeyRequest, RevokeApiKeyRequest, VerifyApiKeyRequest,
    usage_service_client::UsageServiceClient,
};
use tonic::{Code, transport::Channel};

use super::{server_environment, token};
use crate::{database::Database, measure::Latencies, process::ServerProcess, workload};

/// How long after its commit a change is in force at every replica: keys that are revoked, plans that are changed.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Replicas of usage-svc
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=16), value_name = "N")]
    replicas: u32,
    /// Changes of each kind
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N")]
    changes: u32,
}

type Client = UsageServiceClient<Channel>;

pub(crate) async fn run(Args { replicas, changes }: Args) -> Result<()> {
    let mut database = Database::start(changes).await?;
    let environment = [server_environment(), vec![("DATABASE_URL", database.url())]].concat();
    let servers = try_join_all((0..replicas).map(|_| ServerProcess::start(&["usage"], &environment))).await?;
    let replicas = servers
        .iter()
        .map(|server| anyhow::Ok(nexus_client::usage(nexus_client::channel(&server.url)?)))
        .collect::<Result<Vec<Client>>>()?;
    let token = token(&[Scope::UsageCheck, Scope::AccountsWrite])?;
    let options = CallOptions::bearer(&token, Duration::from_secs(10))?;
    let (mut revoked, mut changed) = (Latencies::new()?, Latencies::new()?);
    for number in 0..changes {
        let eco_id = workload::account(number);
        revoked.record(revoke(&replicas, &options, &eco_id).await?)?;
        changed.record(change_plan(&mut database, &replicas, &options, &eco_id).await?)?;
    }
    for server in servers {
        server.stop().await?;
    }
    println!(
        "\n{changes} changes of each kind, {} replicas, PostgreSQL {}",
        replicas.len(),
        database.version()
    );
    println!("{:<34} {:>10} {:>10} {:>10}", "in force at all of them", "p50 ms", "p99 ms", "max ms");
    for (what, took) in [("a key that is revoked", revoked), ("another plan", changed)] {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|quantile| took.milliseconds(quantile));
        println!("{what:<34} {p50:>10.3} {p99:>10.3} {max:>10.3}");
    }
    database.stop().await
}

/// A key that every replica knows, until every replica refuses it.
async fn revoke(replicas: &[Client], options: &CallOptions, eco_id: &str) -> Result<Duration> {
    let mut first = replicas.first().context("there are replicas")?.clone();
    let request =
        CreateApiKeyRequest { eco_id: eco_id.to_owned(), name: "bench".to_owned(), ..Default::default() };
    let made = first.create_api_key(options.request(request)).await?.into_inner();
    let key_id = made.api_key.context("its record")?.key_id;
    let verify = |replica: &Client| {
        let (mut replica, request) = (replica.clone(), VerifyApiKeyRequest { key: made.key.clone() });
        async move { replica.verify_api_key(options.request(request)).await }
    };
    for replica in replicas {
        verify(replica).await?;
    }
    first.revoke_api_key(options.request(RevokeApiKeyRequest { key_id })).await?;
    let committed = Instant::now();
    try_join_all(replicas.iter().map(async |replica| {
        loop {
            match verify(replica).await {
                Ok(_) => {}
                Err(status) if status.code() == Code::Unauthenticated => return anyhow::Ok(()),
                Err(status) => bail!(status),
            }
        }
    }))
    .await?;
    Ok(committed.elapsed())
}

/// A plan by which every replica admits, until every replica admits by another.
async fn change_plan(
    database: &mut Database,
    replicas: &[Client],
    options: &CallOptions,
    eco_id: &str,
) -> Result<Duration> {
    let limit = async |replica: &Client| {
        let request = CheckQuotaRequest { eco_id: eco_id.to_owned(), ..Default::default() };
        let answer = replica.clone().check_quota(options.request(request)).await?;
        anyhow::Ok(answer.into_inner().limit_count)
    };
    let mut before = 0;
    for replica in replicas {
        before = limit(replica).await?;
    }
    database.put_on_free(eco_id).await?;
    let committed = Instant::now();
    try_join_all(replicas.iter().map(async |replica| {
        while limit(replica).await? == before {}
        anyhow::Ok(())
    }))
    .await?;
    Ok(committed.elapsed())
}
