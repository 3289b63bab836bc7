//! Figures that a page keeps up to date, by server-sent events: each event is the texts that have changed, by the names
//! that the page has for them. The page works without; with it, a small script puts the texts in place.

use std::{collections::BTreeMap, convert::Infallible, future::Future, sync::Arc, time::Duration};

use axum::response::{
    IntoResponse, Response,
    sse::{Event, KeepAlive, Sse},
};
use chrono::Utc;
use futures::{Stream, stream};
use http::header::CACHE_CONTROL;
use serde::Serialize;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout_at};

use super::session::Session;
use crate::{
    App,
    error::Error,
    places::{Few, OneOfFew},
};

/// Streams that may be open at once, and those of one account.
const AT_ONCE: u32 = 1_024;
const OF_AN_ACCOUNT: u32 = 8;
/// How often the figures are looked at.
const EVERY: Duration = Duration::from_secs(2);
/// A stream ends after so long, and the browser opens another: so the load moves to servers that were started since.
const LIFETIME: Duration = Duration::from_secs(300);
/// When a browser tries again.
const RETRY: Duration = Duration::from_secs(5);

/// Texts by their names, and how full the meter is.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub struct Figures {
    texts: BTreeMap<&'static str, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    meter: Option<Meter>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Meter {
    percent: f64,
    text: String,
    alarming: bool,
}

impl Figures {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the text of a figure.
    pub fn set(&mut self, name: &'static str, text: String) {
        self.texts.insert(name, text);
    }

    /// Sets the meter.
    pub fn set_meter(&mut self, percent: f64, text: String, alarming: bool) {
        self.meter = Some(Meter { percent, text, alarming });
    }
}

struct Live<F> {
    app: App,
    session: Arc<Session>,
    look: F,
    ticks: Interval,
    end: Instant,
    last: Option<Figures>,
    /// Given back when the browser leaves.
    _place: OneOfFew,
}

/// Places of streams.
pub fn places() -> Few {
    Few::new(AT_ONCE, OF_AN_ACCOUNT, "streams of figures")
}

/// Streams what `look` finds, whenever it is something else, until the session ends.
pub fn stream<F, E>(app: App, session: Session, look: F) -> Result<Response, Error>
where
    F: Fn(App, Arc<Session>) -> E + Send + 'static,
    E: Future<Output = Result<Figures, Error>> + Send + 'static,
{
    let place = app.pages.streams.enter(session.user.eco_id())?;
    let left = (session.expires - Utc::now()).to_std().unwrap_or_default();
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let live = Live {
        session: Arc::new(session),
        look,
        ticks,
        end: Instant::now() + left.min(LIFETIME),
        last: None,
        _place: place,
        app,
    };
    let events = Sse::new(events(live)).keep_alive(KeepAlive::new().interval(Duration::from_secs(20)));
    Ok(([(CACHE_CONTROL, "private, no-store")], events).into_response())
}

fn events<F, E>(live: Live<F>) -> impl Stream<Item = Result<Event, Infallible>> + Send
where
    F: Fn(App, Arc<Session>) -> E + Send + 'static,
    E: Future<Output = Result<Figures, Error>> + Send + 'static,
{
    stream::unfold(live, |mut live| async move {
        let event = live.next().await?;
        Some((Ok(event), live))
    })
}

impl<F, E> Live<F>
where
    F: Fn(App, Arc<Session>) -> E,
    E: Future<Output = Result<Figures, Error>>,
{
    /// The next event; none: the stream is over.
    async fn next(&mut self) -> Option<Event> {
        loop {
            let stopping = self.app.pages.stopping.clone();
            tokio::select! {
                tick = timeout_at(self.end, self.ticks.tick()) => tick.ok()?,
                () = stopping.cancelled() => return None,
            };
            let figures = match (self.look)(self.app.clone(), self.session.clone()).await {
                Ok(figures) => figures,
                Err(error) => {
                    tracing::debug!(%error, "a stream of figures ends");
                    return None;
                }
            };
            if self.last.as_ref() != Some(&figures) {
                let event = Event::default().retry(RETRY).json_data(&figures).ok()?;
                self.last = Some(figures);
                return Some(event);
            }
        }
    }
}
