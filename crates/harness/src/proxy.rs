//! The line between a replica and PostgreSQL. It passes bytes on, tells the script of every point, and can lose
//! an answer, or the request to commit, with its connection, or keep everything back for a while, as a network does.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream, tcp, unix},
    sync::watch,
    task::{AbortHandle, JoinSet},
};

use crate::{
    script::{Point, Script, Verdict},
    wire,
};

/// A proxy before PostgreSQL's socket; ends when dropped, with its connections.
pub(crate) struct Proxy {
    address: SocketAddr,
    passes: watch::Sender<bool>,
    task: AbortHandle,
}

impl Proxy {
    /// Starts the line of a replica.
    pub(crate) async fn start(socket: PathBuf, script: Arc<Script>, replica: usize) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (passes, passing) = watch::channel(true);
        let line = Line { socket, script, replica, passing };
        let task = tokio::spawn(accept(listener, move |caller| line.clone().connect(caller)));
        Ok(Self { address, passes, task: task.abort_handle() })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Keeps everything back, on new connections too.
    pub(crate) fn partition(&self) {
        self.passes.send_replace(false);
    }

    /// Passes on what was kept back, and what comes.
    pub(crate) fn heal(&self) {
        self.passes.send_replace(true);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Line {
    socket: PathBuf,
    script: Arc<Script>,
    replica: usize,
    passing: watch::Receiver<bool>,
}

/// Accepts connections, and breaks them when it is dropped.
pub(crate) async fn accept<C>(listener: TcpListener, connect: impl Fn(TcpStream) -> C)
where
    C: Future<Output = io::Result<()>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // An accept fails where the caller is gone again: the next one may be there.
            accepted = listener.accept() => if let Ok((caller, _)) = accepted {
                connections.spawn(connect(caller));
            },
            // A broken connection is seen at both its ends.
            Some(_broken) = connections.join_next() => {}
        }
    }
}

impl Line {
    /// One connection, until either end closes it or an answer is lost with it.
    async fn connect(mut self, client: TcpStream) -> io::Result<()> {
        self.open().await;
        let server = UnixStream::connect(&self.socket).await?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::select! {
            done = self.clone().requests(from_client, to_server) => done,
            done = self.answers(from_server, to_client) => done,
        }
    }

    async fn requests(
        mut self,
        mut client: tcp::OwnedReadHalf,
        mut server: unix::OwnedWriteHalf,
    ) -> io::Result<()> {
        let mut buffer = BytesMut::with_capacity(16 * 1024);
        while client.read_buf(&mut buffer).await? > 0 {
            if wire::asks_to_commit(&buffer)
                && self.script.pass(Point::Committing, self.replica).await == Verdict::Sever
            {
                return Ok(());
            }
            self.open().await;
            server.write_all_buf(&mut buffer).await?;
        }
        Ok(())
    }

    async fn answers(
        mut self,
        mut server: unix::OwnedReadHalf,
        mut client: tcp::OwnedWriteHalf,
    ) -> io::Result<()> {
        let mut received = BytesMut::with_capacity(16 * 1024);
        let mut passed = BytesMut::new();
        while server.read_buf(&mut received).await? > 0 {
            while let Some(message) = wire::next(&mut received) {
                if let Some(point) = wire::point(&message)
                    && self.script.pass(point, self.replica).await == Verdict::Sever
                {
                    return Ok(());
                }
                passed.extend_from_slice(&message);
            }
            self.open().await;
            client.write_all_buf(&mut passed).await?;
        }
        Ok(())
    }

    async fn open(&mut self) {
        wait_for(&mut self.passing).await;
    }
}

/// Returns once the line passes things on. Its proxy is there for as long as its connections are.
async fn wait_for(passing: &mut watch::Receiver<bool>) {
    if passing.wait_for(|passes| *passes).await.is_err() {
        std::future::pending().await
    }
}
