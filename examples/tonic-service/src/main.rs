//! A tonic service that meters itself. It is internal: its callers are trusted and say in the metadata
//! `x-account` for whom they call. Where callers are not, a layer before this one must find that out.

use std::{env, time::Duration};

use anyhow::{Context, Result};
use nexus_client::{Credentials, Guard, MeterLayer, Tracker, meter::Caller};
use reports::{
    GetReportRequest, GetReportResponse,
    report_service_server::{ReportService, ReportServiceServer},
};
use tokio::signal::unix::{SignalKind, signal};
use tonic::{Request, Response, Status, transport::Server};

#[expect(unreachable_pub, clippy::allow_attributes, reason = "generated")]
mod reports {
    tonic::include_proto!("example.reports.v1");
}

struct Reports;

#[tonic::async_trait]
impl ReportService for Reports {
    async fn get_report(
        &self,
        request: Request<GetReportRequest>,
    ) -> Result<Response<GetReportResponse>, Status> {
        let id = request.into_inner().report_id;
        if id.is_empty() {
            return Err(Status::invalid_argument("report_id is required"));
        }
        Ok(Response::new(GetReportResponse { text: format!("report {id}") }))
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let address = env::var("NEXUS_USAGE_ADDR").context("NEXUS_USAGE_ADDR, e.g. http://localhost:50051")?;
    let token = env::var("NEXUS_TOKEN").context("NEXUS_TOKEN: a service token")?;

    let tracker = Tracker::builder(&address, Credentials::bearer(&token)).build().await?;
    let guard = Guard::new(nexus_client::channel(&address)?, Credentials::bearer(&token));
    let meter = MeterLayer::new(tracker.clone(), |parts| {
        Some(Caller::new(parts.headers.get("x-account")?.to_str().ok()?))
    })
    .limit(guard);

    let listen = env::var("LISTEN").unwrap_or("127.0.0.1:3001".to_owned()).parse()?;
    println!("listening on {listen}");
    Server::builder()
        .layer(meter)
        .add_service(ReportServiceServer::new(Reports))
        .serve_with_shutdown(listen, stopped()?)
        .await?;
    println!("{}", tracker.shutdown(Duration::from_secs(10)).await.stats);
    Ok(())
}

/// Returns on SIGTERM and on Ctrl-C: what the tracker holds is to be delivered then.
fn stopped() -> Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    })
}
