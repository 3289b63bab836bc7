//! Messages that arrive. What a caller sends is held until it is complete, and only then can be judged and given room
//! among what waits; until then this bounds it: the bytes of all calls together, those of one account, and the time
//! that a message may take.
//!
//! Small messages do not count: their number is bounded, as that of the calls is. Of others what they say they will be
//! counts from the beginning, since tonic's decoder makes room for all of it then: for the account all of it, among all
//! that arrives at most a huge page of the kernel's, which is what such room takes before anything is written there.
//!
//! Of a call with one message its end is passed on once the caller has ended the call: whoever waits for that has nothing
//! unpacked or decoded meanwhile.
//!
//! A stream keeps the room that its largest message took for as long as it lasts, as tonic's decoder does; of an account
//! this is bounded, too. Services have streams of large batches, and are trusted not to have too many.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, HeaderValue};
use http_body::{Body as _, Frame, SizeHint};
use nexus_core::id::EcoId;
use tokio::time::{Sleep, sleep};
use tonic::{Status, body::Body, codegen::Bytes};

use crate::{
    serve::MAX_BATCH_BYTES,
    share::{Share, Shares},
    status,
};

/// Bytes that may be held at once; of one account, a quarter: two of the largest messages.
const MAX_BYTES: u32 = 64 * 1024 * 1024;
/// So many times as much may be kept by streams.
const STREAMS: u32 = 4;
/// The first bytes of a message do not count.
const FREE_BYTES: usize = 16 * 1024;
/// What a message that is said to come takes of memory at most, before it comes.
const HUGE_PAGE: usize = 2 * 1024 * 1024;
/// Longest time from the first byte that counts to the last.
const MAX_TIME: Duration = Duration::from_secs(30);
/// Before each message of gRPC: whether it is compressed, and its length in four bytes.
const PREFIX: usize = 5;

/// What is held of all messages. Clones are the same.
#[derive(Debug, Clone)]
pub struct Arriving {
    incomplete: Room,
    /// The same of services: no number of accounts keeps them out.
    of_services: Room,
    /// By streams of accounts.
    kept: Room,
}

/// Room for bytes.
#[derive(Debug, Clone)]
struct Room {
    bytes: Arc<AtomicUsize>,
    max_bytes: usize,
    shares: Shares,
}

impl Default for Arriving {
    fn default() -> Self {
        Self::of(MAX_BYTES)
    }
}

impl Arriving {
    fn of(max_bytes: u32) -> Self {
        Self {
            incomplete: Room::of(max_bytes),
            of_services: Room::of(max_bytes),
            kept: Room::of(STREAMS * max_bytes),
        }
    }

    /// The body of a call with one message of at most so many bytes, of an account or of a service.
    pub fn bound(&self, body: Body, max_bytes: usize, eco_id: Option<&EcoId>) -> Body {
        let (message, held) = (Message::default(), self.nothing(eco_id));
        let one = Some(One::default());
        Body::new(Bounded { body, max_bytes, one, message, held, kept: None, late: None })
    }

    /// The body of a call with many.
    pub fn bound_stream(
        &self,
        body: Body,
        max_bytes: usize,
        eco_id: Option<&EcoId>,
        packing: Packing,
    ) -> Body {
        let message = Message { packing, ..Message::default() };
        let held = self.nothing(eco_id);
        let kept = eco_id.map(|_| self.kept.nothing(eco_id));
        Body::new(Bounded { body, max_bytes, one: None, message, held, kept, late: None })
    }

    fn nothing(&self, eco_id: Option<&EcoId>) -> Held {
        let room = if eco_id.is_some() { &self.incomplete } else { &self.of_services };
        room.nothing(eco_id)
    }
}

impl Room {
    fn of(max_bytes: u32) -> Self {
        Self { bytes: Arc::default(), max_bytes: max_bytes as usize, shares: Shares::of(max_bytes) }
    }

    fn nothing(&self, eco_id: Option<&EcoId>) -> Held {
        let share = eco_id.map(|eco_id| self.shares.nothing(eco_id));
        Held { of: self.clone(), bytes: 0, share }
    }
}

/// What a call holds.
#[derive(Debug)]
struct Held {
    of: Room,
    /// Of all there is.
    bytes: usize,
    /// Of what its account may have.
    share: Option<Share>,
}

impl Held {
    /// So many bytes, of which this many are not here yet.
    fn resize(&mut self, bytes: usize, missing: usize) -> Result<(), Status> {
        let size = u32::try_from(bytes).unwrap_or(u32::MAX);
        if self.share.as_mut().is_some_and(|share| !share.resize(size)) {
            return Err(status::overloaded("too much of this account is arriving at once"));
        }
        let bytes = bytes.min(bytes.saturating_sub(missing) + HUGE_PAGE);
        if let Some(more) = bytes.checked_sub(self.bytes) {
            let grown = |all: usize| all.checked_add(more).filter(|all| *all <= self.of.max_bytes);
            if self.of.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown).is_err() {
                return Err(status::overloaded("too much is arriving at once"));
            }
        } else {
            self.of.bytes.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// How many bytes one byte of a message may be unpacked to.
#[derive(Debug, Clone, Copy)]
pub struct Packing(usize);

impl Packing {
    /// As a request says it. Deflate makes at most 1032 of one (zlib's documentation), a block of zstd has at most 128 KiB
    /// and at least 4 bytes (RFC 8878).
    pub fn of(headers: &HeaderMap) -> Self {
        match headers.get("grpc-encoding").map(HeaderValue::as_bytes) {
            Some(b"gzip") => Self(1_032),
            Some(b"zstd") => Self(32_768),
            _ => Self::default(),
        }
    }

    fn unpacked(self, bytes: usize) -> usize {
        bytes.saturating_mul(self.0).min(MAX_BATCH_BYTES)
    }
}

impl Default for Packing {
    /// Not packed.
    fn default() -> Self {
        Self(1)
    }
}

/// How far a message has come.
#[derive(Debug, Default)]
struct Message {
    packing: Packing,
    prefix: [u8; PREFIX],
    /// Bytes of the prefix that are here.
    prefixed: usize,
    /// Bytes that are still to come.
    missing: usize,
    /// Bytes that have come.
    arrived: usize,
    /// Bytes of those that ended with what came last, their prefixes among them.
    ended: usize,
    /// Bytes of this one, unpacked.
    unpacked: usize,
    /// Bytes of the largest one that is complete, unpacked.
    largest: usize,
}

impl Message {
    fn is_complete(&self) -> bool {
        self.prefixed == PREFIX && self.missing == 0
    }

    /// Of the same call.
    fn another(&self) -> Self {
        let largest = self.largest.max(self.unpacked);
        Self { packing: self.packing, largest, ..Self::default() }
    }

    /// The next one is asked for.
    fn next(&mut self) {
        if self.is_complete() {
            *self = self.another();
        }
        self.ended = 0;
    }

    /// Takes what has come next; it may end one message and begin others.
    fn take(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.is_complete() {
                let ended = self.ended + PREFIX + self.arrived;
                *self = Self { ended, ..self.another() };
            }
            if self.prefixed < PREFIX {
                let (head, rest) = data.split_at(data.len().min(PREFIX - self.prefixed));
                self.prefix[self.prefixed..][..head.len()].copy_from_slice(head);
                self.prefixed += head.len();
                data = rest;
                if self.prefixed == PREFIX {
                    let [packed, length @ ..] = self.prefix;
                    self.missing = u32::from_be_bytes(length) as usize;
                    let packing = if packed == 0 { Packing::default() } else { self.packing };
                    self.unpacked = packing.unpacked(self.missing);
                }
            } else {
                let taken = data.len().min(self.missing);
                self.missing -= taken;
                self.arrived += taken;
                data = &data[taken..];
            }
        }
    }
}

/// A body whose messages count as long as they are incomplete, and, complete, until the next one is asked for: by then
/// they have room among what waits, or are done with.
struct Bounded {
    body: Body,
    /// Of a message, as it arrives.
    max_bytes: usize,
    /// Of a call with one message.
    one: Option<One>,
    message: Message,
    held: Held,
    /// Of a stream of an account: what its largest message took.
    kept: Option<Held>,
    /// While the message that arrives counts: when it is late.
    late: Option<Pin<Box<Sleep>>>,
}

/// The end of a call's one message.
#[derive(Default)]
struct One {
    /// It is here, but not that of the call.
    end: Option<Frame<Bytes>>,
    /// The call has ended.
    ended: bool,
}

impl Bounded {
    /// Whether the frame is to wait for the end of the call; fails where another message begins.
    fn waits(&mut self, frame: &Frame<Bytes>) -> Result<bool, Status> {
        let Some(one) = &self.one else { return Ok(false) };
        let is_more = one.end.is_some() && frame.data_ref().is_some_and(|data| !data.is_empty());
        if is_more || self.message.ended > 0 {
            return Err(status::malformed());
        }
        Ok(self.message.is_complete() && !self.body.is_end_stream())
    }

    /// The call has ended: what waited for that.
    fn end(&mut self) -> Option<Frame<Bytes>> {
        let one = self.one.as_mut()?;
        one.ended = true;
        one.end.take()
    }

    fn count(&mut self) -> Result<(), Status> {
        let bytes = self.message.arrived + self.message.missing;
        if bytes > self.max_bytes {
            return Err(status::message_too_large(self.max_bytes));
        }
        let bytes = (bytes + self.message.ended).saturating_sub(FREE_BYTES);
        let waits = self.one.as_ref().is_some_and(|one| one.end.is_some());
        // One that has begun where another ended has its time from when it is asked for: till then we hold it up.
        let is_small = bytes == 0 && (self.kept.is_none() || self.message.unpacked <= FREE_BYTES);
        if is_small || self.message.ended > 0 || (self.message.is_complete() && !waits) {
            self.late = None;
        } else if self.late.is_none() {
            self.late = Some(Box::pin(sleep(MAX_TIME)));
        }
        self.held.resize(bytes, self.message.missing)?;
        match &mut self.kept {
            Some(kept) => {
                let Message { unpacked, largest, .. } = self.message;
                let is_to_come =
                    if self.message.is_complete() { 0 } else { unpacked.saturating_sub(largest) };
                kept.resize(unpacked.max(largest).saturating_sub(FREE_BYTES), is_to_come)
            }
            None => Ok(()),
        }
    }
}

impl http_body::Body for Bounded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        match &this.one {
            Some(one) if one.ended => return Poll::Ready(None),
            Some(_) => {}
            None => this.message.next(),
        }
        this.count()?;
        loop {
            match Pin::new(&mut this.body).poll_frame(cx) {
                // Nobody reads trailers of a request.
                Poll::Ready(Some(Ok(frame))) if this.one.is_some() && !frame.is_data() => {
                    return Poll::Ready(this.end().map(Ok));
                }
                Poll::Ready(Some(Ok(frame))) => {
                    if let Some(data) = frame.data_ref() {
                        this.message.take(data);
                    }
                    if !this.waits(&frame)? {
                        this.count()?;
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    if let Some(one) = &mut this.one {
                        one.end.get_or_insert(frame);
                    }
                    this.count()?;
                }
                Poll::Ready(None) => return Poll::Ready(this.end().map(Ok)),
                Poll::Pending => {
                    return match this.late.as_mut().map(|late| late.as_mut().poll(cx)) {
                        Some(Poll::Ready(())) => Poll::Ready(Some(Err(status::deadline_exceeded()))),
                        _ => Poll::Pending,
                    };
                }
                broken => return broken,
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.one.as_ref().is_none_or(|one| one.end.is_none()) && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[path = "arriving_tests.rs"]
mod tests;
