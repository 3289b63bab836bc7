//! Something between us and Stripe that gives answers of its own.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use anyhow::Result;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

use crate::support::Sim;

/// An HTTP server that answers every request with one answer of its own, but for those that it passes on.
pub(crate) struct Proxy {
    pub(crate) base: String,
    answered: Arc<AtomicUsize>,
    server: JoinHandle<Result<()>>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Proxy {
    /// The same answer to all. `head`: the status and the headers; a length is added.
    pub(crate) async fn with_answer(head: &str, body: &str) -> Result<Self> {
        Self::start(head, body, None).await
    }

    /// A Stripe whose listing of invoice items never ends: all that there are now, again and again.
    pub(crate) async fn with_endless_listing(sim: &Sim) -> Result<Self> {
        let items = sim.items().await?;
        let page = json!({ "object": "list", "url": "/v1/invoiceitems", "has_more": true, "data": items });
        let upstream = sim.base.trim_start_matches("http://").to_owned();
        Self::start("200 OK\r\ncontent-type: application/json", &page.to_string(), Some(upstream)).await
    }

    /// Requests that had an answer of its own.
    pub(crate) fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// `upstream`: gets everything but listings of invoice items.
    async fn start(head: &str, body: &str, upstream: Option<String>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let base = format!("http://{}", listener.local_addr()?);
        let answer =
            format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
        let answered = Arc::new(AtomicUsize::new(0));
        let side = Arc::new(Side { answer, upstream, answered: answered.clone() });
        let server = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let stream = listener.accept().await?.0;
                connections.spawn(side.clone().serve(BufReader::new(stream)));
            }
        });
        Ok(Self { base, answered, server })
    }
}

/// What the connections share.
struct Side {
    answer: String,
    upstream: Option<String>,
    answered: Arc<AtomicUsize>,
}

impl Side {
    async fn serve(self: Arc<Self>, mut stream: BufReader<TcpStream>) -> Result<()> {
        let request = read_request(&mut stream).await?;
        match &self.upstream {
            Some(upstream) if !request.starts_with("GET /v1/invoiceitems?") => {
                pass_on(&request, upstream, &mut stream).await?;
            }
            _ => {
                self.answered.fetch_add(1, Ordering::Relaxed);
                stream.write_all(self.answer.as_bytes()).await?;
            }
        }
        Ok(stream.shutdown().await?)
    }
}

/// Head and body of a request, to be the last of its connection.
async fn read_request(stream: &mut BufReader<TcpStream>) -> Result<String> {
    let (mut head, mut length) = (String::new(), 0);
    stream.read_line(&mut head).await?;
    head.push_str("connection: close\r\n");
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 2 {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
        head.push_str(&line);
        line.clear();
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(format!("{head}\r\n{}", String::from_utf8(body)?))
}

async fn pass_on(request: &str, upstream: &str, stream: &mut BufReader<TcpStream>) -> Result<()> {
    let mut upstream = TcpStream::connect(upstream).await?;
    upstream.write_all(request.as_bytes()).await?;
    tokio::io::copy(&mut upstream, stream).await?;
    Ok(())
}
