//! A server that does not keep to the contract: a guard that holds units uses none on its word, and goes on asking.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Result;
use futures::{Stream, StreamExt, stream};
use nexus_client::{
    Credentials, Guard,
    guard::{Decision, GuardError},
};
use nexus_proto::usage::v1::{LeaseQuotaRequest, LeaseQuotaResponse};
use nexus_testkit::settings::ANY_PORT;
use prost_types::Timestamp;
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::{Service, http},
    server::{Grpc, NamedService, StreamingService},
    transport::Server,
};
use tonic_prost::ProstCodec;

type Answers = Pin<Box<dyn Stream<Item = Result<LeaseQuotaResponse, Status>> + Send>>;
type Script = fn(&LeaseQuotaRequest) -> Vec<LeaseQuotaResponse>;

/// Serves LeaseQuota by a script, and refuses every check.
#[derive(Clone)]
struct Hostile {
    script: Script,
    answered: Arc<AtomicU64>,
}

impl NamedService for Hostile {
    const NAME: &'static str = "nexus.usage.v1.UsageService";
}

impl StreamingService<LeaseQuotaRequest> for Hostile {
    type Response = LeaseQuotaResponse;
    type ResponseStream = Answers;
    type Future = std::future::Ready<Result<Response<Answers>, Status>>;

    fn call(&mut self, request: Request<Streaming<LeaseQuotaRequest>>) -> Self::Future {
        let Self { script, answered } = self.clone();
        let answers = request.into_inner().flat_map(move |message| {
            answered.fetch_add(1, Ordering::Relaxed);
            let answers = message.map_or_else(|_| Vec::new(), |message| script(&message));
            stream::iter(answers.into_iter().map(Ok))
        });
        std::future::ready(Ok(Response::new(Box::pin(answers))))
    }
}

impl Service<http::Request<Body>> for Hostile {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let hostile = self.clone();
        Box::pin(async move {
            if request.uri().path().ends_with("/LeaseQuota") {
                let codec = ProstCodec::<LeaseQuotaResponse, LeaseQuotaRequest>::default();
                return Ok(Grpc::new(codec).streaming(hostile, request).await);
            }
            Ok(Status::not_found("no such account").into_http())
        })
    }
}

/// An answer as it should be, with so many units.
fn granted(request: &LeaseQuotaRequest, granted_count: i64) -> LeaseQuotaResponse {
    LeaseQuotaResponse {
        lease_id: request.want_lease_id.clone(),
        granted_count,
        valid_ms: 60_000,
        period_left_ms: 60_000,
        limit_count: -1,
        period_start_time: Some(Timestamp { seconds: 0, nanos: 0 }),
        period_end_time: Some(Timestamp { seconds: 100, nanos: 0 }),
        ..LeaseQuotaResponse::default()
    }
}

/// A guard before a server with this script, and how many requests it answered.
async fn before(script: Script) -> Result<(Guard, Arc<AtomicU64>)> {
    let answered = Arc::new(AtomicU64::new(0));
    let listener = TcpListener::bind(ANY_PORT).await?;
    let url = format!("http://{}", listener.local_addr()?);
    let incoming = stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(connection, _)| connection);
        Some((accepted, listener))
    });
    let hostile = Hostile { script, answered: answered.clone() };
    tokio::spawn(Server::builder().add_service(hostile).serve_with_incoming(incoming));
    Ok((Guard::new(nexus_client::channel(&url)?, Credentials::bearer("x")).leased(8), answered))
}

/// Checks until the server has answered a request for units, and some more.
async fn insist(guard: &Guard, answered: &AtomicU64) -> Result<usize> {
    let mut admitted = 0;
    let mut later = 0;
    while later < 200 {
        later += usize::from(answered.load(Ordering::Relaxed) > 0);
        match guard.check("eco_a", 1).await {
            Ok(Decision::Admitted(_)) => admitted += 1,
            Ok(Decision::Refused(refused)) => anyhow::bail!("{refused:?}"),
            Err(GuardError::UnknownAccount(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(admitted)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_unit_is_used_on_the_word_of_a_server_that_breaks_the_contract() -> Result<()> {
    let scripts: [(&str, Script); 9] = [
        ("more than was wanted", |r| vec![granted(r, r.want_count + 1)]),
        ("negative units", |r| vec![granted(r, i64::MIN)]),
        ("another lease", |r| vec![LeaseQuotaResponse { lease_id: "x".to_owned(), ..granted(r, 1) }]),
        ("no period", |r| vec![LeaseQuotaResponse { period_end_time: None, ..granted(r, 1) }]),
        ("times that are none", |r| {
            let none = Some(Timestamp { seconds: i64::MAX, nanos: i32::MIN });
            vec![LeaseQuotaResponse { period_start_time: none, ..granted(r, 1) }]
        }),
        ("no time at all", |r| vec![LeaseQuotaResponse { valid_ms: 0, ..granted(r, r.want_count) }]),
        ("a period that is over", |r| {
            vec![LeaseQuotaResponse { period_left_ms: 0, ..granted(r, r.want_count) }]
        }),
        ("nothing but recalls", |_| vec![LeaseQuotaResponse { recall: true, ..Default::default() }; 1_000]),
        ("an end", |_| Vec::new()),
    ];
    for (what, script) in scripts {
        let (guard, answered) = before(script).await?;
        assert_eq!(insist(&guard, &answered).await?, 0, "{what}");
        guard.shutdown(std::time::Duration::from_millis(50)).await;
    }
    Ok(())
}

/// The same server by the contract: so that the test above would see units used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_granted_by_the_contract_is_used() -> Result<()> {
    let (guard, answered) = before(|request| vec![granted(request, request.want_count.min(10))]).await?;
    let admitted = insist(&guard, &answered).await?;
    let asked = usize::try_from(answered.load(Ordering::Relaxed))?;
    assert!((1..=10 * asked).contains(&admitted), "{admitted} units of {asked} grants");
    Ok(())
}
