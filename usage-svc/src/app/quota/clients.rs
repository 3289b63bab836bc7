//! Clients that hold units over a stream: how many there may be, and that they are told to give back.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use dashmap::DashMap;
use futures::FutureExt;
use nexus_core::id::EcoId;
use nexus_kit::share::{Share, Shares};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Streams that may be open at once; an account has a quarter of them at most.
const MAX_CLIENTS: u16 = 4096;

/// The clients of all accounts.
#[derive(Debug)]
pub(super) struct Clients {
    lines: DashMap<EcoId, Vec<Arc<Line>>, foldhash::fast::RandomState>,
    places: Arc<Semaphore>,
    shares: Shares,
}

/// The line to a client.
#[derive(Debug)]
pub(super) struct Line {
    key_id: Option<String>,
    /// The API key it came with may have changed.
    key_changed: AtomicBool,
    told: Notify,
}

/// A client's place, until this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    clients: Arc<Clients>,
    eco_id: EcoId,
    line: Arc<Line>,
    _place: OwnedSemaphorePermit,
    _share: Share,
}

impl Default for Clients {
    fn default() -> Self {
        Self {
            lines: DashMap::default(),
            places: Arc::new(Semaphore::new(MAX_CLIENTS.into())),
            shares: Shares::of(MAX_CLIENTS.into()),
        }
    }
}

impl Clients {
    /// A place for a client of the account, who came with this API key; unless too many are here.
    pub(super) fn enter(self: &Arc<Self>, eco_id: &EcoId, key_id: Option<String>) -> Option<Place> {
        let place = self.places.clone().try_acquire_owned().ok()?;
        let share = self.shares.enter(eco_id)?;
        let key_changed = AtomicBool::new(false);
        let line = Arc::new(Line { key_id, key_changed, told: Notify::new() });
        self.lines.entry(eco_id.clone()).or_default().push(line.clone());
        Some(Place { clients: self.clone(), eco_id: eco_id.clone(), line, _place: place, _share: share })
    }

    /// Clients of the account.
    pub(super) fn count(&self, eco_id: &EcoId) -> usize {
        self.lines.get(eco_id).map_or(0, |lines| lines.len())
    }

    /// Tells the account's clients to give back.
    pub(super) fn tell(&self, eco_id: &EcoId) {
        if let Some(lines) = self.lines.get(eco_id) {
            lines.iter().for_each(|line| line.told.notify_one());
        }
    }

    /// Tells all clients to give back: anything may have changed, their keys too.
    pub(super) fn tell_all(&self) {
        for lines in &self.lines {
            for line in lines.iter() {
                line.key_changed.store(true, Ordering::Release);
                line.told.notify_one();
            }
        }
    }

    /// Tells the clients that came with this API key: it may be revoked.
    pub(super) fn tell_key(&self, key_id: &str) {
        for lines in &self.lines {
            for line in lines.iter().filter(|line| line.key_id.as_deref() == Some(key_id)) {
                line.key_changed.store(true, Ordering::Release);
                line.told.notify_one();
            }
        }
    }
}

impl Line {
    /// Returns once the client was told since this last returned.
    pub(super) async fn told(&self) {
        self.told.notified().await;
    }

    /// Forgets that it was told, but for a change of its API key.
    pub(super) fn forget_told(&self) {
        if self.told.notified().now_or_never().is_some() && self.key_changed.load(Ordering::Acquire) {
            self.told.notify_one();
        }
    }

    /// Whether the API key may have changed since this was last asked.
    pub(super) fn take_key_changed(&self) -> bool {
        self.key_changed.swap(false, Ordering::AcqRel)
    }
}

impl Place {
    pub(super) fn line(&self) -> &Arc<Line> {
        &self.line
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(mut lines) = self.clients.lines.get_mut(&self.eco_id) {
            lines.retain(|line| !Arc::ptr_eq(line, &self.line));
        }
        self.clients.lines.remove_if(&self.eco_id, |_, lines| lines.is_empty());
    }
}
