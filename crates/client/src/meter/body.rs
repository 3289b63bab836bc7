//! The body of an answer.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::Code;

use super::call::{Serving, grpc_code};

pin_project! {
    /// The service's body, watched to its end where it is gRPC; or that of a refusal.
    pub struct MeteredBody<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProjection]
    enum Kind<B> {
        Passed { #[pin] body: B, call: Serving },
        Made { text: Option<Bytes> },
    }
}

impl<B: Body> MeteredBody<B> {
    /// The body of a call that has been recorded, or is not.
    pub(super) fn passed(body: B) -> Self {
        Self { kind: Kind::Passed { body, call: Serving::nothing() } }
    }

    /// The body of a gRPC call that is recorded when it ends.
    pub(super) fn watched(body: B, mut call: Serving) -> Self {
        if body.is_end_stream() {
            // Nobody will ask for trailers: there are none, and so no status.
            call.end_grpc(Code::Unknown);
        }
        Self { kind: Kind::Passed { body, call } }
    }

    /// The body of a refusal.
    pub(super) fn made(text: String) -> Self {
        Self { kind: Kind::Made { text: Some(Bytes::from(text)).filter(|text| !text.is_empty()) } }
    }
}

impl<B: Body<Data = Bytes>> Body for MeteredBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().kind.project() {
            KindProjection::Made { text } => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            KindProjection::Passed { body, call } => {
                let frame = ready!(body.poll_frame(cx));
                match &frame {
                    None => call.end_grpc(Code::Unknown),
                    Some(Err(_)) => call.end_grpc(Code::Internal),
                    Some(Ok(frame)) => {
                        if let Some(code) = frame.trailers_ref().and_then(grpc_code) {
                            call.end_grpc(code);
                        }
                    }
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Passed { body, .. } => body.is_end_stream(),
            Kind::Made { text } => text.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Passed { body, .. } => body.size_hint(),
            Kind::Made { text } => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
        }
    }
}

/// A refusal without a body; tonic makes its answers so.
impl<B: Body> Default for MeteredBody<B> {
    fn default() -> Self {
        Self::made(String::new())
    }
}
