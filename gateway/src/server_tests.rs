use axum::{
    body::{Body, Bytes},
    routing::get,
};
use futures::stream;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::TokioExecutor;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::*;
use crate::taken::PATIENCE as TAKEN_WITHIN;

const LENGTH: usize = 100_000;
const TICKS: &[u8] = b"ticktick";

/// `/large` has a place for as long as there is something of its answer, `/seldom` says something now and then.
fn app(places: &Arc<Semaphore>) -> Router {
    let places = places.clone();
    let large = async move || {
        let place: OwnedSemaphorePermit = places.try_acquire_owned().expect("a place");
        Body::new(Body::from(vec![7; LENGTH]).map_frame(move |frame| {
            let _place = &place;
            frame
        }))
    };
    let seldom = async || {
        Body::from_stream(stream::unfold(0, async |n| {
            sleep(4 * TAKEN_WITHIN).await;
            (n < 2).then(|| (Ok::<_, io::Error>(Bytes::from("tick")), n + 1))
        }))
    };
    Router::new().route("/large", get(large)).route("/seldom", get(seldom))
}

/// A connection to a server of these, over which so much may be under way.
fn connected(places: &Arc<Semaphore>, bytes: usize) -> (DuplexStream, JoinSet<Result<(), AnyError>>) {
    let (ours, theirs) = duplex(bytes);
    let peer = Peer([192, 0, 2, 1].into());
    let connection = Connection { app: app(places), builder: connection_builder(), peer };
    let mut served = JoinSet::new();
    served.spawn(connection.serve(theirs, CancellationToken::new()));
    (ours, served)
}

/// A client that has room for so much of each answer before it takes it.
async fn client(stream: DuplexStream, window: u32) -> anyhow::Result<http2::SendRequest<Empty<Bytes>>> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(window);
    let (client, connection) = builder.handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(client)
}

fn of(path: &str) -> anyhow::Result<Request<Empty<Bytes>>> {
    Ok(Request::get(format!("http://x{path}")).body(Empty::new())?)
}

/// Seconds until the place is free again.
async fn held(places: &Semaphore) -> anyhow::Result<u64> {
    let begun = Instant::now();
    drop(places.acquire().await?);
    Ok(begun.elapsed().as_secs())
}

#[tokio::test(start_paused = true)]
async fn an_answer_has_its_place_until_it_is_taken_or_given_up() -> anyhow::Result<()> {
    // But for the last byte it is given up whatever room there is for it.
    for (window, held_for) in [(0, 30), (1, 30), (50_000, 30), (LENGTH as u32 - 2, 30), (LENGTH as u32, 0)] {
        let places = Arc::new(Semaphore::new(1));
        let (stream, _served) = connected(&places, 1 << 20);
        let mut client = client(stream, window).await?;
        let untaken = client.send_request(of("/large")?).await?;
        assert_eq!(held(&places).await?, held_for, "{window}");
        assert_eq!(untaken.into_body().collect().await.is_err(), held_for > 0, "{window}");
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn who_takes_little_and_who_waits_for_us_is_served_beside_who_takes_nothing() -> anyhow::Result<()> {
    let places = Arc::new(Semaphore::new(2));
    let (stream, _served) = connected(&places, 1 << 20);
    let mut client = client(stream, 20_000).await?;
    let untaken = client.send_request(of("/large")?).await?;
    let mut slow = client.send_request(of("/large")?).await?.into_body();
    let seldom = tokio::spawn(client.send_request(of("/seldom")?).await?.into_body().collect());
    let mut taken = 0;
    while let Some(frame) = slow.frame().await {
        taken += frame?.data_ref().map_or(0, Bytes::len);
        sleep(Duration::from_secs(5)).await;
    }
    assert_eq!(taken, LENGTH);
    assert!(untaken.into_body().collect().await.is_err());
    assert_eq!(seldom.await??.to_bytes(), TICKS);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn over_http_1_the_connection_ends_that_takes_nothing_and_no_other() -> anyhow::Result<()> {
    let places = Arc::new(Semaphore::new(1));
    let (mut stream, mut served) = connected(&places, 1024);
    stream.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    let begun = Instant::now();
    assert!(served.join_next().await.is_some_and(|ended| ended.is_ok_and(|served| served.is_err())));
    assert_eq!((begun.elapsed().as_secs(), places.available_permits()), (30, 1));

    let (mut stream, _served) = connected(&places, 1024);
    stream.write_all(b"GET /seldom HTTP/1.0\r\nhost: x\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    assert!(answer.ends_with(TICKS), "{}", String::from_utf8_lossy(&answer));
    Ok(())
}
