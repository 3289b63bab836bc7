//! A proxy before a server that can be cut: what a caller sees when its database, or a service, goes away.

use std::{net::SocketAddr, path::PathBuf};

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

/// Forwards to a server until it is cut.
pub struct Proxy {
    address: SocketAddr,
    up: watch::Sender<bool>,
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
        let (up, state) = watch::channel(true);
        tokio::spawn(forward(listener, server, state));
        Ok(Self { address, up })
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

    /// Cuts every connection, and closes new ones at once.
    pub fn cut(&self) {
        self.up.send_replace(false);
    }

    /// Forwards again.
    pub fn mend(&self) {
        self.up.send_replace(true);
    }
}

async fn forward(listener: TcpListener, server: Server, mut state: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            changed = state.changed() => {
                if changed.is_err() {
                    return;
                }
                if !*state.borrow() {
                    connections.shutdown().await;
                }
            }
            Ok((client, _)) = listener.accept() => {
                if *state.borrow() {
                    connections.spawn(connect(client, server.clone()));
                }
            }
        }
    }
}

async fn connect(client: TcpStream, server: Server) {
    let done = match server {
        Server::Socket(path) => match UnixStream::connect(&path).await {
            Ok(server) => both_ways(client, server).await,
            Err(error) => Err(error),
        },
        Server::Tcp(host, port) => match TcpStream::connect((host.as_str(), port)).await {
            Ok(server) => both_ways(client, server).await,
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
) -> std::io::Result<()> {
    copy_bidirectional(&mut client, &mut server).await.map(|_| ())
}
