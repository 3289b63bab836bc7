//! The lines of a billing-svc to PostgreSQL and to Stripe. They pass on what comes, and tell of every point; what is
//! struck is lost with its connection, or arrives later.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream, tcp, unix},
    task::AbortHandle,
};

use super::{
    http,
    postgres::Conversation,
    strikes::{Place, Point, Side, Strikes, Verdict, lock},
};
use crate::{proxy::accept, wire};

/// A line; ends when dropped, with its connections.
pub(super) struct Line {
    address: SocketAddr,
    task: AbortHandle,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Line {
    /// The line of a replica to PostgreSQL.
    pub(super) async fn to_postgres(socket: PathBuf, watch: Watch) -> io::Result<Self> {
        Self::start(move |caller| postgres(caller, socket.clone(), watch.clone())).await
    }

    /// The line of a replica to Stripe.
    pub(super) async fn to_stripe(stripe: SocketAddr, watch: Watch) -> io::Result<Self> {
        Self::start(move |caller| stripe_of(caller, stripe, watch.clone())).await
    }

    async fn start<C>(connect: impl Fn(TcpStream) -> C + Send + 'static) -> io::Result<Self>
    where
        C: Future<Output = io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(accept(listener, connect)).abort_handle();
        Ok(Self { address, task })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Whom a line tells of the points that its replica passes.
#[derive(Debug, Clone)]
pub(super) struct Watch {
    pub(super) replica: usize,
    pub(super) strikes: Arc<Strikes>,
}

impl Watch {
    async fn pass(&self, place: Place, side: Side) -> Verdict {
        self.strikes.pass(self.replica, Point { place, side }).await
    }
}

/// One connection to PostgreSQL, until either end closes it or it is struck.
async fn postgres(client: TcpStream, socket: PathBuf, watch: Watch) -> io::Result<()> {
    client.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = UnixStream::connect(socket).await?.into_split();
    let conversation = Mutex::new(Conversation::default());
    tokio::select! {
        done = requests(from_client, to_server, &conversation, &watch) => done,
        done = answers(from_server, to_client, &conversation, &watch) => done,
    }
}

async fn requests(
    mut client: tcp::OwnedReadHalf,
    mut server: unix::OwnedWriteHalf,
    conversation: &Mutex<Conversation>,
    watch: &Watch,
) -> io::Result<()> {
    let mut received = BytesMut::with_capacity(16 * 1024);
    while client.read_buf(&mut received).await? > 0 {
        let requests = lock(conversation).sent(&mut received);
        for request in requests {
            if let Some(place) = request.place
                && watch.pass(place, Side::Before).await != Verdict::Forward
            {
                return Ok(());
            }
            server.write_all(&request.bytes).await?;
        }
    }
    Ok(())
}

async fn answers(
    mut server: unix::OwnedReadHalf,
    mut client: tcp::OwnedWriteHalf,
    conversation: &Mutex<Conversation>,
    watch: &Watch,
) -> io::Result<()> {
    let mut received = BytesMut::with_capacity(16 * 1024);
    let mut passed = BytesMut::new();
    while server.read_buf(&mut received).await? > 0 {
        while let Some(message) = wire::next(&mut received) {
            let answered = lock(conversation).answered(&message);
            passed.extend_from_slice(&message);
            if let Some(place) = answered
                && watch.pass(place, Side::After).await != Verdict::Forward
            {
                return Ok(());
            }
        }
        client.write_all_buf(&mut passed).await?;
    }
    Ok(())
}

/// One connection to Stripe, likewise: one request after the other.
async fn stripe_of(mut client: TcpStream, stripe: SocketAddr, watch: Watch) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut server = TcpStream::connect(stripe).await?;
    server.set_nodelay(true)?;
    let (mut sent, mut received) = (BytesMut::new(), BytesMut::new());
    while let Some(request) = http::read(&mut client, &mut sent).await? {
        let place = Place::Stripe(http::asked(&request));
        match watch.pass(place.clone(), Side::Before).await {
            Verdict::Forward => {}
            Verdict::Lost => return Ok(()),
            Verdict::Late => {
                watch.strikes.keep(request);
                return Ok(());
            }
        }
        server.write_all(&request).await?;
        // An answer that is dropped is dropped here, too, and so is one for which nobody waits any more.
        let answer = tokio::select! {
            answer = http::read(&mut server, &mut received) => answer?,
            _gone = client.read_u8() => return Ok(()),
        };
        let Some(answer) = answer else { return Ok(()) };
        if watch.pass(place, Side::After).await != Verdict::Forward {
            return Ok(());
        }
        client.write_all(&answer).await?;
    }
    Ok(())
}
