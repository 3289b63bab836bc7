//! A connection whose other end still says something.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, sleep_until},
};
use tonic::transport::server::Connected;

/// Longest until a client says its first word.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// Longest that a client says nothing. One that is there answers the server's pings, every 30 seconds; one whose
/// handshake never ended is not pinged, nor does it ever grow too old.
const SILENCE: Duration = Duration::from_secs(60);

/// Fails to read once the other end has been silent for too long. Has a place among the server's connections.
pub(crate) struct Heard<S> {
    stream: S,
    _place: OwnedSemaphorePermit,
    until: Instant,
    alarm: Pin<Box<Sleep>>,
}

impl<S> Heard<S> {
    pub(crate) fn new(stream: S, place: OwnedSemaphorePermit) -> Self {
        let until = Instant::now() + FIRST_WORD;
        Self { stream, _place: place, until, alarm: Box::pin(sleep_until(until)) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, buffer) {
            self.until = Instant::now() + SILENCE;
            return Poll::Ready(read);
        }
        loop {
            ready!(self.alarm.as_mut().poll(cx));
            // What was heard since the alarm was set only moves it on now: a busy connection sets none.
            let until = self.until;
            if until <= Instant::now() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.alarm.as_mut().reset(until);
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl<S: Connected> Connected for Heard<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        sync::Semaphore,
    };

    use super::*;

    /// How long the other end, which says a word each at these times, is listened to.
    async fn listened(words: &[u64]) -> u64 {
        let (ours, mut theirs) = duplex(64);
        let begun = Instant::now();
        let speak = async {
            for at in words {
                sleep_until(begun + Duration::from_secs(*at)).await;
                theirs.write_all(b"w").await.expect("it is listened to");
            }
            std::future::pending::<()>().await;
        };
        let places = Arc::new(Semaphore::new(1));
        let mut heard = Heard::new(ours, places.try_acquire_owned().expect("a place"));
        let listen = async {
            let mut word = [0; 1];
            while heard.read(&mut word).await.is_ok() {}
            begun.elapsed().as_secs()
        };
        tokio::select! {
            took = listen => took,
            () = speak => unreachable!("it never ends"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_connection() {
        assert_eq!(listened(&[]).await, 10);
        assert_eq!(listened(&[9]).await, 69);
        assert_eq!(listened(&[1, 30, 60, 90, 119]).await, 179);
    }
}
