//! A proxy before a server that can be cut or go silent: what a caller sees when its database, or a service,
//! goes away, with and without a word.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use nexus_kit::config::DbArgs;
use sqlx::postgres::PgConnectOptions;
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    task::JoinSet,
};

use crate::{db::TestDb, settings::ANY_PORT};

/// Forwards to a server until it is cut or goes silent.
pub struct Proxy {
    address: SocketAddr,
    connections: Connections,
    line: watch::Sender<Line>,
    /// How often it went silent: a connection stays so once it has.
    silences: watch::Sender<u32>,
}

/// The connections. While they are locked, none is added and the line stays as it is.
#[derive(Clone, Default)]
struct Connections(Arc<Mutex<JoinSet<()>>>);

impl Connections {
    fn lock(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Up,
    Cut,
    Silent,
}

#[derive(Clone)]
enum Server {
    Socket(PathBuf),
    Tcp(String, u16),
}

impl Proxy {
    /// A proxy before a test's database.
    pub async fn before(db: &TestDb) -> Result<Self> {
        let options: PgConnectOptions = db.url().parse()?;
        let server = match options.get_socket() {
            Some(folder) => Server::Socket(folder.join(format!(".s.PGSQL.{}", options.get_port()))),
            None => Server::Tcp(options.get_host().to_owned(), options.get_port()),
        };
        Self::start(server).await
    }

    /// A proxy before a server that listens here.
    pub async fn before_tcp(server: SocketAddr) -> Result<Self> {
        Self::start(Server::Tcp(server.ip().to_string(), server.port())).await
    }

    async fn start(server: Server) -> Result<Self> {
        let listener = TcpListener::bind(ANY_PORT).await?;
        let address = listener.local_addr()?;
        let (line, state) = watch::channel(Line::Up);
        let (silences, silence) = watch::channel(0);
        let connections = Connections::default();
        tokio::spawn(forward(listener, server, connections.clone(), state, silence));
        Ok(Self { address, connections, line, silences })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Settings of a service that reaches the database through this proxy.
    pub fn args(&self, db: &TestDb) -> Result<DbArgs> {
        let options: PgConnectOptions = db.url().parse()?;
        let name = options.get_database().context("the test database has a name")?;
        let url = format!("postgres://{}@{}/{name}", options.get_username(), self.address);
        Ok(DbArgs { database_url: url.into(), ..db.args() })
    }

    /// Cuts every connection, and closes new ones at once. It is done when this returns: what is asked from then on
    /// meets it, however busy the machine is, and one that is mended at once was a cut all the same.
    pub fn cut(&self) {
        let mut connections = self.connections.lock();
        self.line.send_replace(Line::Cut);
        connections.abort_all();
    }

    /// Forwards nothing more on any connection, new ones included, and keeps them open: a server that went
    /// away without a word. Those connections stay silent for good.
    pub fn silence(&self) {
        self.line.send_replace(Line::Silent);
        self.silences.send_modify(|times| *times += 1);
    }

    /// Forwards new connections again.
    pub fn mend(&self) {
        self.line.send_replace(Line::Up);
    }
}

async fn forward(
    listener: TcpListener,
    server: Server,
    connections: Connections,
    mut line: watch::Receiver<Line>,
    mut silence: watch::Receiver<u32>,
) {
    loop {
        tokio::select! {
            changed = line.changed() => {
                if changed.is_err() {
                    // The proxy is gone.
                    connections.lock().abort_all();
                    return;
                }
            }
            Ok((client, _)) = listener.accept() => {
                let mut connections = connections.lock();
                let now = *line.borrow();
                match now {
                    Line::Up => {
                        silence.mark_unchanged();
                        connections.spawn(connect(client, server.clone(), silence.clone()));
                    }
                    Line::Cut => {}
                    Line::Silent => {
                        connections.spawn(hold(client));
                    }
                }
            }
        }
    }
}

/// Keeps a connection open without a word.
async fn hold(client: TcpStream) {
    std::future::pending::<()>().await;
    drop(client);
}

async fn connect(client: TcpStream, server: Server, silence: watch::Receiver<u32>) {
    let done = match server {
        Server::Socket(path) => match UnixStream::connect(&path).await {
            Ok(server) => both_ways(client, server, silence).await,
            Err(error) => Err(error),
        },
        Server::Tcp(host, port) => match TcpStream::connect((host.as_str(), port)).await {
            Ok(server) => both_ways(client, server, silence).await,
            Err(error) => Err(error),
        },
    };
    if let Err(error) = done {
        eprintln!("proxy: {error}");
    }
}

async fn both_ways(
    mut client: TcpStream,
    mut server: impl AsyncRead + AsyncWrite + Unpin,
    mut silence: watch::Receiver<u32>,
) -> std::io::Result<()> {
    tokio::select! {
        biased;
        Ok(()) = silence.changed() => std::future::pending().await,
        copied = copy_bidirectional(&mut client, &mut server) => copied.map(|_| ()),
    }
}
