//! Answers that nobody takes. What was made for an answer is held until its client has taken it, and no client has to:
//! one whose client takes nothing of it for a while is given up. Over HTTP/1.1 that ends the connection, over HTTP/2 the
//! stream alone, as a proxy may have many clients' on one connection. Answers may last as long as they like: streams
//! whose client waits for us are never given up.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    response::Response,
};
use http_body::{Frame, SizeHint};
use hyper::rt::Executor;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep, sleep_until},
};

use crate::{places::Place, server::Open};

/// Longest that a client may take for the next piece of an answer.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The same of an answer that has no place among the requests in flight, so that there may be many: what is small, or tells
/// that something is wrong. Whoever takes answers has room for it at once.
const LITTLE: Duration = Duration::from_secs(2);
/// Whoever takes so much in that time is served, however slow it is.
const PIECE: usize = 16 * 1024;

tokio::task_local! {
    /// Of the stream that is served.
    static STREAM: Arc<Waiting>;
}

/// Until when a client may take what it has to take.
#[derive(Debug, Default)]
struct Waiting(Mutex<Option<Instant>>);

impl Waiting {
    fn set(&self, until: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    fn until(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once the client has taken nothing for too long.
    async fn too_long(&self) {
        loop {
            let until = self.until();
            sleep_until(until.unwrap_or_else(|| Instant::now() + LITTLE)).await;
            if until.is_some() && until == self.until() {
                return;
            }
        }
    }
}

/// A connection that fails to write once the other end has taken nothing for too long.
pub struct Taking<S> {
    stream: S,
    /// While there is something to take.
    late: Option<Pin<Box<Sleep>>>,
}

impl<S> Taking<S> {
    /// Over this.
    pub fn new(stream: S) -> Self {
        Self { stream, late: None }
    }

    fn in_time<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.late = None;
            return written;
        }
        let late = self.late.get_or_insert_with(|| Box::pin(sleep(PATIENCE)));
        ready!(late.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Taking<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Taking<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, data);
        self.in_time(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, data);
        self.in_time(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.in_time(flushed, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.in_time(shut, cx)
    }
}

/// Serves the streams of HTTP/2 connections, each until it ends or its answer is not taken.
#[derive(Debug, Clone, Copy)]
pub struct Streams;

impl<S: Future<Output = ()> + Send + 'static> Executor<S> for Streams {
    fn execute(&self, stream: S) {
        let waiting = Arc::<Waiting>::default();
        let served = STREAM.scope(waiting.clone(), stream);
        tokio::spawn(async move {
            tokio::select! {
                () = served => {}
                () = waiting.too_long() => tracing::debug!("an answer that nobody takes is given up"),
            }
        });
    }
}

/// The body of an answer, which says when its client has something to take. The transport asks for a piece once it has
/// room for a byte of the one before, and forgets the body with the last: so the last byte is a piece of its own, and the
/// body stays, with all that counts as its request's, until the client has room for it.
pub struct Answer {
    body: Body,
    rest: Bytes,
    /// Over HTTP/2.
    waiting: Option<Arc<Waiting>>,
    place: Option<Place>,
    _open: Open,
}

impl Answer {
    /// Of the stream that is served.
    pub fn of(mut response: Response, open: Open) -> http::Response<Self> {
        let place = response.extensions_mut().remove();
        let waiting = STREAM.try_with(Arc::clone).ok();
        response.map(|body| Self { body, rest: Bytes::new(), waiting, place, _open: open })
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let Some(waiting) = &this.waiting else { return Pin::new(&mut this.body).poll_frame(cx) };
        waiting.set(None);
        if this.rest.is_empty() {
            let Some(frame) = ready!(Pin::new(&mut this.body).poll_frame(cx)).transpose()? else {
                return Poll::Ready(None);
            };
            match frame.into_data() {
                Ok(data) if !data.is_empty() => this.rest = data,
                Ok(nothing) => return Poll::Ready(Some(Ok(Frame::data(nothing)))),
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let piece = this.rest.split_to(PIECE.min(this.rest.len().saturating_sub(1).max(1)));
        let patience = if this.place.is_some() { PATIENCE } else { LITTLE };
        waiting.set(Some(Instant::now() + patience));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut size, rest) = (self.body.size_hint(), self.rest.len() as u64);
        if let Some(upper) = size.upper() {
            size.set_upper(upper + rest);
        }
        size.set_lower(size.lower() + rest);
        size
    }
}
