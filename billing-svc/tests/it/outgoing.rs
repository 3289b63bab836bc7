//! Requests to URLs of others: the address that was checked is the one that is connected to.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use nexus_billing::{
    domain::webhook::{address::Reachable, delivery::Failure, url::Policy},
    outgoing::{Client, Resolver, public_roots, system_resolver},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};

use crate::receiver::Receiver;

const LONG: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(200);
const ALLOWED: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const FORBIDDEN: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

fn client(allowed: &str, resolver: Resolver, timeout: Duration) -> Result<Client> {
    let policy = Policy { reachable: Reachable::with(vec![allowed.parse()?]), allow_http: true };
    Ok(Client::new(policy, resolver, public_roots()?, timeout))
}

/// A name server that answers each question with the next of these, and counts the questions.
fn answers(answers: Vec<Vec<IpAddr>>) -> (Resolver, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let answers = Arc::new(Mutex::new(answers.into_iter()));
    let resolver: Resolver = Arc::new(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        let answer = answers.lock().unwrap_or_else(PoisonError::into_inner).next();
        Box::pin(async move { answer.ok_or_else(|| std::io::Error::other("no such name")) })
    });
    (resolver, asked)
}

/// The name leads to a good address while it is checked, and to another one afterwards.
#[tokio::test]
async fn a_name_that_changes_its_address_leads_nowhere_else() -> Result<()> {
    let mut allowed = Receiver::start_at(SocketAddr::new(ALLOWED.into(), 0)).await?;
    let port = allowed.address.port();
    let mut forbidden = Receiver::start_at(SocketAddr::new(FORBIDDEN.into(), port)).await?;
    let (good, bad): (IpAddr, IpAddr) = (ALLOWED.into(), FORBIDDEN.into());
    let (resolver, asked) = answers(vec![vec![good], vec![bad], vec![bad, good], vec![]]);
    let client = client("127.0.0.2/32", resolver, LONG)?;
    let url = format!("http://rebinding.example:{port}/");
    let post = || client.post(&url, &[], "{}".to_owned());

    assert_eq!(post().await, Ok(204));
    assert_eq!(asked.load(Ordering::SeqCst), 1, "there is no second question to answer otherwise");
    assert_eq!(allowed.next().await?.header("host")?, format!("rebinding.example:{port}"));
    assert_eq!(post().await, Err(Failure::Address));
    assert_eq!(post().await, Ok(204), "of several addresses one that may be reached");
    allowed.next().await?;
    assert_eq!(post().await, Err(Failure::Name));
    assert_eq!(post().await, Err(Failure::Name), "the name is unknown");
    assert!(forbidden.rest().is_empty() && allowed.rest().is_empty());
    Ok(())
}

/// However an address is written, the system's resolver reads it, and what it read is checked.
#[tokio::test]
async fn an_address_in_disguise_is_seen_through() -> Result<()> {
    let mut receiver = Receiver::start().await?;
    let port = receiver.address.port();
    let client = client("127.0.0.2/32", system_resolver(), LONG)?;
    for host in ["localhost", "127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1", "0"] {
        let sent = client.post(&format!("http://{host}:{port}/"), &[], String::new()).await;
        assert!(matches!(sent, Err(Failure::Address | Failure::Name)), "{host}: {sent:?}");
    }
    for host in ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "10.0.0.1", "169.254.169.254"] {
        let sent = client.post(&format!("http://{host}:{port}/"), &[], String::new()).await;
        assert_eq!(sent, Err(Failure::Url), "{host}");
    }
    assert!(receiver.rest().is_empty());
    Ok(())
}

#[tokio::test]
async fn plain_http_needs_to_be_allowed_and_tls_a_certificate() -> Result<()> {
    let receiver = Receiver::start().await?;
    let policy = Policy { reachable: Reachable::anything(), allow_http: false };
    let client = Client::new(policy, system_resolver(), public_roots()?, LONG);
    assert_eq!(client.post(&receiver.url, &[], String::new()).await, Err(Failure::Url));
    let tls = receiver.url.replace("http://", "https://");
    assert_eq!(client.post(&tls, &[], String::new()).await, Err(Failure::Tls), "it speaks no TLS");
    Ok(())
}

/// A server that answers with the first of these bytes, and then with the others again and again. It never closes.
async fn says(head: &'static [u8], endless: &'static [u8]) -> Result<(String, tokio::task::JoinHandle<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    let server = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let mut goes_on = stream.read(&mut request).await.is_ok() && stream.write_all(head).await.is_ok();
            if endless.is_empty() {
                std::future::pending::<()>().await;
            }
            while goes_on {
                goes_on = stream.write_all(endless).await.is_ok();
            }
        }
    });
    Ok((url, server))
}

#[tokio::test]
async fn of_an_answer_that_never_ends_the_beginning_is_read() -> Result<()> {
    let client = client("127.0.0.0/8", system_resolver(), LONG)?;
    let (url, server) =
        says(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"5\r\nagain\r\n").await?;
    assert_eq!(client.post(&url, &[], String::new()).await, Ok(200));
    server.abort();
    let (url, server) = says(b"HTTP/1.1 200 OK\r\nx-long: ", b"0123456789").await?;
    assert_eq!(client.post(&url, &[], String::new()).await, Err(Failure::NoAnswer), "nor are headers");
    server.abort();
    let (url, server) = says(b"SSH-2.0-OpenSSH_9.2\r\n", b"").await?;
    assert_eq!(client.post(&url, &[], String::new()).await, Err(Failure::NoAnswer));
    server.abort();
    Ok(())
}

#[tokio::test]
async fn the_timeout_is_for_everything_up_to_the_answers_head() -> Result<()> {
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", silent.local_addr()?);
    let hurried = client("127.0.0.0/8", system_resolver(), SHORT)?;
    assert_eq!(hurried.post(&url, &[], String::new()).await, Err(Failure::Timeout), "no answer");
    let never: Resolver = Arc::new(|_| Box::pin(std::future::pending()));
    let asks = client("127.0.0.0/8", never, SHORT)?;
    let asked = asks.post("http://slow.example/", &[], String::new()).await;
    assert_eq!(asked, Err(Failure::Timeout), "no address");
    // The head comes, the rest of the body does not: the receiver has said that it has it.
    let (url, server) = says(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", b"").await?;
    let patient = client("127.0.0.0/8", system_resolver(), LONG)?;
    assert_eq!(patient.post(&url, &[], String::new()).await, Ok(200), "the head decides");
    server.abort();
    Ok(())
}

/// The first address takes no more connections and says nothing.
#[tokio::test]
async fn an_address_that_does_not_answer_leaves_time_for_the_next() -> Result<()> {
    let full = TcpSocket::new_v4()?;
    full.bind(SocketAddr::new(ALLOWED.into(), 0))?;
    let address = full.local_addr()?;
    let _full = full.listen(0)?;
    let _first = TcpStream::connect(address).await?;
    let mut good = Receiver::start_at(SocketAddr::new(FORBIDDEN.into(), address.port())).await?;
    let (resolver, _) = answers(vec![vec![ALLOWED.into(), FORBIDDEN.into()], vec![ALLOWED.into()]]);
    let client = client("127.0.0.0/8", resolver, Duration::from_secs(5))?;
    let url = format!("http://two.example:{}/", address.port());
    assert_eq!(client.post(&url, &[], "{}".to_owned()).await, Ok(204));
    good.next().await?;
    assert_eq!(client.post(&url, &[], "{}".to_owned()).await, Err(Failure::Timeout), "that one alone");
    Ok(())
}

#[tokio::test]
async fn nobody_listens() -> Result<()> {
    // Bound and never listening, so that nobody else gets the port.
    let deaf = TcpSocket::new_v4()?;
    deaf.bind(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0))?;
    let url = format!("http://{}/", deaf.local_addr()?);
    let client = client("127.0.0.0/8", system_resolver(), LONG)?;
    assert_eq!(client.post(&url, &[], String::new()).await, Err(Failure::Connect));
    Ok(())
}
