//! LeaseQuota: wishes up, answers down, and a word in between when units are asked back.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use nexus_core::id::ApiKeyText;
use nexus_kit::{
    auth::{Caller, Scope, VerifiedKey},
    convert::timestamp,
    serve::CONNECTION_AGE,
    status::{self, RETRY_SOON},
};
use nexus_proto::usage::v1::{LeaseQuotaRequest, LeaseQuotaResponse};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, Streaming};
use tracing::Instrument;

use super::{
    answer, caller,
    parse::{self, Lessee},
};
use crate::{
    app::{
        known::Known,
        lease_quota::{Session, Wish},
        quota::Quota,
        verify_api_key::Keys,
    },
    error::Error,
};

/// How long a stream may be open before the client says who it is.
const FIRST_WITHIN: Duration = Duration::from_secs(5);
/// How long a client has to settle before its stream ends.
const LAST_SETTLEMENTS: Duration = Duration::from_secs(3);
/// How long an answer may wait to be taken.
const TAKEN_WITHIN: Duration = Duration::from_secs(10);
/// Answers that are not taken yet.
const ANSWERS: usize = 4;

/// The answers.
pub(super) type Answers = ReceiverStream<Result<LeaseQuotaResponse, Status>>;

/// Serves a client, in a task of its own: what it began is finished also when the client went away.
pub(super) fn lend(
    request: Request<Streaming<LeaseQuotaRequest>>,
    quota: Quota,
    keys: Keys,
    known: Arc<Known>,
    stop: CancellationToken,
) -> Result<Answers, Status> {
    let verified = caller::metering(&request, Scope::UsageCheck)?;
    if verified.as_ref().is_some_and(|key| key.test_mode) {
        let message = "a key in test mode is never limited and needs no units";
        return Err(status::with_reason(Code::FailedPrecondition, "TEST_MODE_KEY", message));
    }
    let key = match Caller::of(&request)? {
        Caller::ApiKey(text) => Some(text.clone()),
        _ => None,
    };
    let (answers, taken) = mpsc::channel(ANSWERS);
    let stream = Stream { wishes: request.into_inner(), answers, verified, known, stop };
    tokio::spawn(stream.serve(quota, keys, key).in_current_span());
    Ok(ReceiverStream::new(taken))
}

/// The two directions.
struct Stream {
    wishes: Streaming<LeaseQuotaRequest>,
    answers: mpsc::Sender<Result<LeaseQuotaResponse, Status>>,
    verified: Option<VerifiedKey>,
    /// Has the database's clock.
    known: Arc<Known>,
    stop: CancellationToken,
}

/// How a stream ends: with a status, or because the client ended it or went away.
type End = ControlFlow<Option<Status>>;

impl Stream {
    async fn serve(mut self, quota: Quota, keys: Keys, key: Option<ApiKeyText>) {
        if let Some(status) = self.run(quota, keys, key).await {
            // The client may have gone.
            let _ = self.answers.send(Err(status)).await;
        }
    }

    /// Answers until the end; with the status that it ends with.
    async fn run(&mut self, quota: Quota, keys: Keys, key: Option<ApiKeyText>) -> Option<Status> {
        let stopped = self.stop.clone();
        let first = tokio::select! {
            () = stopped.cancelled() => return Some(stopping()),
            first = timeout(FIRST_WITHIN, self.next(None)) => match first {
                Ok(first) => first,
                Err(_elapsed) => {
                    let message = format!("the first message did not come within {FIRST_WITHIN:?}");
                    return Some(status::with_reason(Code::DeadlineExceeded, "NO_REQUEST", message));
                }
            },
        };
        let (lessee, wish) = match first {
            ControlFlow::Continue(first) => first,
            ControlFlow::Break(end) => return end,
        };
        let mut session = match Session::open(&quota, keys, key, (&lessee.0, lessee.1)).await {
            Ok(session) => session,
            Err(error) => return Some(error.into()),
        };
        let ended = match self.answer(&mut session, wish).await {
            ControlFlow::Continue(()) => self.follow(&mut session, &lessee).await,
            ControlFlow::Break(end) => end,
        };
        let last = ended?;
        if session.holds() && last.code() != Code::InvalidArgument {
            // What it is after that time, it is without.
            let settled = timeout(LAST_SETTLEMENTS, self.take_back(&mut session, &lessee)).await;
            if !matches!(settled, Ok(ControlFlow::Continue(()))) {
                tracing::info!(eco_id = lessee.0.as_str(), "a client did not settle what it holds");
            }
        }
        Some(last)
    }

    /// Answers wishes, and asks units back, until the stream is to end.
    async fn follow(&mut self, session: &mut Session, lessee: &Lessee) -> Option<Status> {
        let oldest = Instant::now() + CONNECTION_AGE;
        let stop = self.stop.clone();
        loop {
            let done = tokio::select! {
                () = stop.cancelled() => return Some(stopping()),
                () = sleep_until(oldest) => {
                    let message = "the stream is old; open another one";
                    return Some(status::unavailable("STREAM_TOO_OLD", message, RETRY_SOON));
                }
                key_changed = session.told() => {
                    if key_changed && let Err(error) = session.verify_again().await {
                        return Some(error.into());
                    }
                    self.recall().await
                }
                next = self.next(Some(lessee)) => match next {
                    ControlFlow::Continue((_, wish)) => self.answer(session, wish).await,
                    ControlFlow::Break(end) => return end,
                },
            };
            if let ControlFlow::Break(end) = done {
                return end;
            }
        }
    }

    /// Asks everything back and answers until it is.
    async fn take_back(&mut self, session: &mut Session, lessee: &Lessee) -> End {
        self.recall().await?;
        while session.holds() {
            let (_, wish) = self.next(Some(lessee)).await?;
            settle(session, &wish).await?;
            let nothing = session.nothing(RETRY_SOON);
            self.send(answer::leased(nothing, self.known.now().map(timestamp))).await?;
        }
        ControlFlow::Continue(())
    }

    /// The next wish. It may be dropped while it waits: nothing is lost.
    async fn next(&mut self, open: Option<&Lessee>) -> ControlFlow<Option<Status>, (Lessee, Wish)> {
        match self.wishes.message().await {
            Ok(Some(message)) => match parse::lease(message, self.verified.as_ref(), open) {
                Ok(wish) => ControlFlow::Continue(wish),
                Err(status) => ControlFlow::Break(Some(status)),
            },
            Ok(None) => ControlFlow::Break(None),
            // It broke; who should be told of it?
            Err(broken) if matches!(broken.code(), Code::Cancelled | Code::Unknown | Code::Unavailable) => {
                ControlFlow::Break(None)
            }
            Err(malformed) => ControlFlow::Break(Some(status::from_transport(&malformed))),
        }
    }

    async fn answer(&mut self, session: &mut Session, wish: Wish) -> End {
        settle(session, &wish).await?;
        let answer = match session.grant(&wish, || self.answers.closed()).await {
            Ok(answer) => answer,
            Err(error) => return ControlFlow::Break(Some(error.into())),
        };
        // What it waited for may have taken long.
        if answer.granted.is_some()
            && let Err(error) = session.verify().await
        {
            session.withdraw(answer.granted);
            return ControlFlow::Break(Some(error.into()));
        }
        let sent = self.send(answer::leased(answer, self.known.now().map(timestamp))).await;
        if sent.is_break() {
            session.withdraw(answer.granted);
        }
        sent?;
        if wish.release { ControlFlow::Break(None) } else { ControlFlow::Continue(()) }
    }

    async fn recall(&mut self) -> End {
        self.send(LeaseQuotaResponse { recall: true, ..LeaseQuotaResponse::default() }).await
    }

    async fn send(&mut self, answer: LeaseQuotaResponse) -> End {
        match timeout(TAKEN_WITHIN, self.answers.send(Ok(answer))).await {
            Ok(Ok(())) => ControlFlow::Continue(()),
            Ok(Err(_)) => ControlFlow::Break(None),
            Err(_) => {
                let message = "answers are not taken";
                ControlFlow::Break(Some(status::unavailable("SLOW_CLIENT", message, RETRY_SOON)))
            }
        }
    }
}

async fn settle(session: &mut Session, wish: &Wish) -> End {
    session
        .settle(wish)
        .await
        .map_or_else(|error: Error| ControlFlow::Break(Some(error.into())), ControlFlow::Continue)
}

fn stopping() -> Status {
    status::unavailable("STOPPING", "the server is stopping; open another stream", RETRY_SOON)
}
