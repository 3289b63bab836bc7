//! Connections that a fault can cut: the request is read and done, and no byte of an answer is sent.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A handle on the connection a request came over.
#[derive(Clone, Default)]
pub(crate) struct Link {
    cut: Arc<AtomicBool>,
}

impl Link {
    /// From now on nothing is sent over the connection; the next attempt closes it.
    pub(crate) fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
    }

    fn check(&self) -> io::Result<()> {
        if self.cut.load(Ordering::SeqCst) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cut by a fault"));
        }
        Ok(())
    }
}

pub(crate) struct CuttableListener<L> {
    inner: L,
}

impl<L> CuttableListener<L> {
    pub(crate) fn new(inner: L) -> Self {
        Self { inner }
    }
}

impl<L: Listener<Addr = SocketAddr>> Listener for CuttableListener<L> {
    type Io = CuttableStream<L::Io>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (io, addr) = self.inner.accept().await;
        (CuttableStream { io, link: Link::default() }, addr)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.inner.local_addr()
    }
}

impl<L: Listener<Addr = SocketAddr>> Connected<IncomingStream<'_, CuttableListener<L>>> for Link {
    fn connect_info(stream: IncomingStream<'_, CuttableListener<L>>) -> Self {
        stream.io().link.clone()
    }
}

pub(crate) struct CuttableStream<I> {
    io: I,
    link: Link,
}

impl<I: AsyncRead + Unpin> AsyncRead for CuttableStream<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for CuttableStream<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.link.check()?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
