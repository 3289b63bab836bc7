//! One trace from the gateway's caller to the database, as a collector receives it.

use std::time::Duration;

use anyhow::{Context, Result};
use nexus_proto::common::v1::Plan;
use nexus_testkit::settings::ANY_PORT;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use super::suite::Suite;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

struct Collector(mpsc::UnboundedSender<Span>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|r| r.scope_spans);
        for span in scopes.flat_map(|s| s.spans) {
            self.0.send(span).map_err(|_| Status::unavailable("the test is over"))?;
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_reaches_from_the_gateways_caller_to_the_database() -> Result<()> {
    let (sender, mut spans) = mpsc::unbounded_channel();
    let listener = TcpListener::bind(ANY_PORT).await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let server = Server::builder().add_service(TraceServiceServer::new(Collector(sender)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

    let suite =
        Suite::start_with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), ("OTEL_BSP_SCHEDULE_DELAY", "100")])
            .await?;
    let key = suite.account("eco_a", Plan::Free).await?;
    let answer = suite
        .http
        .get(format!("{}/api/secure/ping", suite.gateway))
        .header("authorization", format!("ApiKey {key}"))
        .header("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01"))
        .send()
        .await?;
    assert_eq!(answer.status(), 200);

    // What must be in the trace: the gateway's span, an RPC of usage-svc, and a statement below it.
    let mut missing =
        vec!["/api/secure/ping", "rpc.UsageService.CheckQuota", "rpc.UsageService.BatchRecordUsage", "db."];
    let mut seen = Vec::new();
    while !missing.is_empty() {
        let span = tokio::time::timeout(Duration::from_secs(20), spans.recv()).await;
        let span = span
            .with_context(|| format!("missing {missing:?} among {seen:?}"))?
            .context("the collector is there")?;
        let trace: String = span.trace_id.iter().map(|byte| format!("{byte:02x}")).collect();
        if trace == TRACE {
            missing.retain(|name| !span.name.contains(name));
            seen.push(span.name);
        }
    }
    Ok(())
}
