//! Where a replica is reached: one address for all processes that follow each other as that replica, so that
//! callers, which know it from the start, go on with the next one.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use tokio::{
    io::{AsyncWriteExt, copy},
    net::{TcpListener, TcpStream, tcp},
    sync::watch,
    task::AbortHandle,
};

use crate::proxy::accept;

/// Passes connections on to the process that is the replica now; ends when dropped, with its connections.
pub(crate) struct Front {
    url: String,
    process: watch::Sender<Option<SocketAddr>>,
    task: AbortHandle,
}

impl Front {
    /// Leads nowhere yet.
    pub(crate) async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let (process, current) = watch::channel(None);
        let task = tokio::spawn(accept(listener, move |caller| connect(caller, *current.borrow())));
        Ok(Self { url, process, task: task.abort_handle() })
    }

    /// What callers are told.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Leads new connections to this process; `None`: closes them.
    pub(crate) fn lead_to(&self, process: Option<SocketAddr>) {
        self.process.send_replace(process);
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connect(caller: TcpStream, process: Option<SocketAddr>) -> io::Result<()> {
    let Some(process) = process else { return Ok(()) };
    let (from_caller, to_caller) = caller.into_split();
    let (from_process, to_process) = TcpStream::connect(process).await?.into_split();
    // Each way to its end, whatever became of the other: a process that ended may have answered before.
    let (requests, answers) = tokio::join!(pass(from_caller, to_process), pass(from_process, to_caller));
    requests.and(answers)
}

async fn pass(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf) -> io::Result<()> {
    let passed = copy(&mut from, &mut to).await;
    to.shutdown().await.and(passed.map(|_| ()))
}
