use std::sync::atomic::{AtomicUsize, Ordering};

use axum::{
    Extension,
    body::{Body, Bytes},
    routing::{get, post},
};
use futures::stream;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::TokioExecutor;
use nexus_kit::metrics::Metrics;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::*;
use crate::{
    places::{Places, Sender},
    taken::PATIENCE as TAKEN_WITHIN,
};

const LENGTH: usize = 100_000;
const SMALL: usize = 100;
const TICKS: &[u8] = b"ticktick";

/// `/large` and `/small` hold something for as long as there is something of the answer, and the first has a place;
/// `/seldom` says something now and then, and `/unread` nothing before its request is given up.
fn app(places: &Arc<Semaphore>) -> Router {
    let held = |length: usize, place: OwnedSemaphorePermit| {
        Body::new(Body::from(vec![7; length]).map_frame(move |frame| {
            let _place = &place;
            frame
        }))
    };
    let (of_large, of_small) = (places.clone(), places.clone());
    let large = async move || {
        let place = Places::new(1, Metrics::new()).enter(&Sender::Service).expect("the first");
        (Extension(place), held(LENGTH, of_large.try_acquire_owned().expect("a place")))
    };
    let small = async move || held(SMALL, of_small.try_acquire_owned().expect("a place"));
    let unread = async |_: axum::extract::Request| std::future::pending::<()>().await;
    let seldom = async || {
        Body::from_stream(stream::unfold(0, async |n| {
            sleep(4 * TAKEN_WITHIN).await;
            (n < 2).then(|| (Ok::<_, io::Error>(Bytes::from("tick")), n + 1))
        }))
    };
    let router = Router::new().route("/large", get(large)).route("/small", get(small));
    router.route("/seldom", get(seldom)).route("/unread", post(unread))
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
async fn an_answer_without_a_place_is_given_up_soon() -> anyhow::Result<()> {
    for (window, held_for) in [(0, 2), (SMALL as u32, 0)] {
        let places = Arc::new(Semaphore::new(1));
        let (stream, _served) = connected(&places, 1 << 20);
        let mut client = client(stream, window).await?;
        let untaken = client.send_request(of("/small")?).await?;
        assert_eq!(held(&places).await?, held_for, "{window}");
        assert_eq!(untaken.into_body().collect().await.is_err(), held_for > 0, "{window}");
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn little_is_taken_of_a_body_that_is_not_read() -> anyhow::Result<()> {
    const PIECE: usize = 4 * 1024;
    let (ours, theirs) = duplex(1 << 20);
    let connection = Connection {
        app: app(&Arc::new(Semaphore::new(1))),
        builder: connection_builder(),
        peer: Peer([192, 0, 2, 1].into()),
    };
    let served = tokio::spawn(connection.serve(theirs, CancellationToken::new()));
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let endless = Body::from_stream(stream::repeat_with(move || {
        counted.fetch_add(PIECE, Ordering::Relaxed);
        Ok::<_, io::Error>(Bytes::from(vec![7; PIECE]))
    }));
    let (mut client, connection) =
        http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(ours)).await?;
    tokio::spawn(connection);
    let asked = tokio::spawn(client.send_request(Request::post("http://x/unread").body(endless)?));
    sleep(Duration::from_secs(5)).await;
    let sent = sent.load(Ordering::Relaxed);
    assert!((WINDOW as usize..2 * WINDOW as usize).contains(&sent), "{sent}");
    asked.abort();
    served.abort();
    Ok(())
}

/// Seconds until a connection over which this is asked and nothing more is closed.
async fn open_for(ask: impl AsyncFn(DuplexStream) -> anyhow::Result<()>) -> anyhow::Result<u64> {
    let begun = Instant::now();
    let (stream, mut served) = connected(&Arc::new(Semaphore::new(1)), 1 << 20);
    ask(stream).await?;
    served.join_next().await;
    Ok(begun.elapsed().as_secs())
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_requests_is_closed_and_one_that_waits_for_an_answer_is_not()
-> anyhow::Result<()> {
    const ANSWERED: u64 = 8 * TAKEN_WITHIN.as_secs();
    let over_2 = async |path: &str, stream| {
        let mut client = client(stream, LENGTH as u32).await?;
        let answer = client.send_request(of(path)?).await?;
        // Kept, as by whoever means to come back.
        tokio::spawn(async move {
            (answer.into_body().collect().await, std::future::pending::<()>().await, client)
        });
        anyhow::Ok(())
    };
    let over_1 = async |path: &str, mut stream: DuplexStream| {
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await?;
        tokio::spawn(async move { stream.read_to_end(&mut Vec::new()).await });
        anyhow::Ok(())
    };
    assert_eq!(open_for(async |stream| over_2("/large", stream).await).await?, 75);
    assert!(open_for(async |stream| over_2("/seldom", stream).await).await? >= ANSWERED + 75);
    assert_eq!(open_for(async |stream| over_1("/large", stream).await).await?, 75);
    assert!(open_for(async |stream| over_1("/seldom", stream).await).await? >= ANSWERED + 75);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_first_request_that_does_not_come_is_waited_for_shortly() -> anyhow::Result<()> {
    for begun in ["", "PRI", "GET / HT", "GET / HTTP/1.1\r\nhost: x\r\nx-long: "] {
        let begin = async |mut stream: DuplexStream| {
            stream.write_all(begun.as_bytes()).await?;
            tokio::spawn(async move { stream.read_to_end(&mut Vec::new()).await });
            anyhow::Ok(())
        };
        assert_eq!(open_for(begin).await?, 10, "{begun}");
    }
    Ok(())
}

#[tokio::test]
async fn an_address_has_its_share_of_connections_and_the_last_are_for_proxies() -> anyhow::Result<()> {
    const MOST: u32 = 48;
    const PROXY: u8 = 100;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let proxies = format!("127.0.0.{PROXY}/32").parse().map_err(anyhow::Error::msg)?;
    let places = Connections::of(MOST, Arc::new(Semaphore::new(1_000)), proxies);
    let app = app(&Arc::new(Semaphore::new(1)));
    let served = tokio::spawn(serve(listener, app, None, CancellationToken::new(), places));
    let from = async |host: u8| {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(([127, 0, 0, host], 0).into())?;
        let mut stream = socket.connect(address).await?;
        let mut head = [0; 12];
        let is_served = stream.write_all(b"GET /none HTTP/1.1\r\nhost: x\r\n\r\n").await.is_ok()
            && stream.read_exact(&mut head).await.is_ok();
        anyhow::Ok(is_served.then_some(stream))
    };
    let mut held = Vec::new();
    for host in (1..=18).flat_map(|host| [host, host]).chain([PROXY; 12]) {
        held.push(from(host).await?.ok_or_else(|| anyhow::anyhow!("a place for {host}"))?);
        assert!(host != 1 || held.len() < 2 || from(1).await?.is_none(), "one too many");
        assert!(held.len() < 36 || from(19).await?.is_none(), "one address too many");
    }
    assert!(from(PROXY).await?.is_none(), "all are taken");
    held.pop();
    while from(PROXY).await?.is_none() {}
    served.abort();
    Ok(())
}

#[tokio::test]
async fn there_are_no_more_places_than_files() -> anyhow::Result<()> {
    let places = Connections::of(48, Arc::new(Semaphore::new(4)), Proxies::default());
    let from = |host: u8| places.enter([192, 0, 2, host].into());
    let held = [from(1)?, from(2)?, from(3)?];
    assert!(from(1).is_err() && from(4).is_err());
    drop(held);
    assert!(from(1).is_ok());
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
