//! Verifies API keys: from memory while changes of keys are heard of, so that a call costs no statement and a
//! revocation holds at every replica within a second. Unknown keys are not remembered.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use moka::sync::Cache;
use nexus_core::id::ApiKeyText;
use nexus_kit::db;
use sqlx::PgPool;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    feed::{Change, Changes, Feed},
    key_reads::{self, ReadError, Reads, Waiting},
    outage::Outage,
};
use crate::{
    clock::BootTime,
    domain::api_key::{ApiKey, StoredKey},
    error::Error,
    store,
};

/// Keys that are remembered at most.
const MAX_KEYS: u64 = 100_000;
/// A key's use is noted that often: a busy key costs no write per call.
const NOTED_FOR: Duration = Duration::from_secs(60);
/// Keys whose use waits to be noted at most, and those that one statement notes.
const MAX_USES: usize = 10_000;
const USES_AT_ONCE: usize = 1_000;
/// Longest that a statement takes: longer than a lock is waited for.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// What was read so long ago, and may have changed since, is read again: a revocation holds within a second.
const HOLDS_FOR: Duration = Duration::from_secs(1);
/// But not more often.
const READS: usize = 3;
/// Calls that wait to be read, of those whose texts were not seen to open a key: whoever makes keys up has not all the
/// places of calls in flight.
const MAX_STRANGERS: usize = 2048;
/// Of the others: as many as there are, since calls are bounded.
const MAX_KNOWN: usize = 1 << 20;
/// What an unknown key is compared with, so that it takes as long: the hash of no text.
const NO_SECRET: [u8; 32] = [0; 32];

/// Read, and not yet known whether a change has overtaken the reading.
const NEW: u8 = 0;
/// As the database has it, as far as was heard.
const CURRENT: u8 = 1;
/// It has changed since. That who has its secret is no stranger stays true.
const STALE: u8 = 2;

/// The API keys, as this replica knows them. Clones are the same.
#[derive(Clone)]
pub struct Keys(Arc<Inner>);

struct Inner {
    pool: PgPool,
    /// For texts that were not seen to open their key: strangers have these alone.
    reads: Reads<Arc<Known>>,
    /// For those that did when it was last read.
    rereads: Reads<Arc<Known>>,
    /// Keys whose use is to be noted.
    uses: mpsc::Sender<String>,
    feed: Arc<Feed>,
    stale_max: Duration,
    known: Cache<String, Arc<Known>>,
    /// Counts the changes heard: what was read before one of them is not remembered after it.
    changes: AtomicU64,
    /// Counts those that may have been of any key: what was read before the last one is stale.
    epoch: AtomicU64,
    outage: Arc<Outage>,
}

struct Known {
    stored: StoredKey,
    /// When it was asked for.
    since: BootTime,
    /// What was said to have changed by then.
    epoch: u64,
    /// [`NEW`], [`CURRENT`] or [`STALE`].
    state: AtomicU8,
    /// When its use was last noted, in nanoseconds of [`BootTime`].
    noted: AtomicU64,
}

/// Starts to follow the changes of keys, until `stop`. With the feed unheard and the database away, remembered
/// keys are accepted for `stale_max`.
pub fn start(
    pool: PgPool,
    outage: Arc<Outage>,
    stale_max: Duration,
    stop: CancellationToken,
) -> (Keys, JoinHandle<()>) {
    let feed = outage.feed().clone();
    let changes = feed.subscribe();
    let (reads, strangers) = Reads::new(MAX_STRANGERS);
    let (rereads, acquainted) = Reads::new(MAX_KNOWN);
    let (uses, used) = mpsc::channel(MAX_USES);
    let keys = Keys(Arc::new(Inner {
        reads,
        rereads,
        uses,
        pool,
        outage,
        feed,
        stale_max,
        known: Cache::new(MAX_KEYS),
        changes: AtomicU64::new(0),
        epoch: AtomicU64::new(0),
    }));
    let of_task = keys.clone();
    let task = tokio::spawn(async move {
        tokio::join!(
            follow(&of_task, changes, &stop),
            of_task.serve(strangers, stop.clone()),
            of_task.serve(acquainted, stop.clone()),
            of_task.note_uses(used, &stop),
        );
    });
    (keys, task)
}

async fn follow(keys: &Keys, mut changes: Changes, stop: &CancellationToken) {
    // The keys hold the feed, so that it has no end of its own while they are followed.
    while let Some(Some(change)) = stop.run_until_cancelled(changes.next()).await {
        match change {
            Change::Key(key_id) => keys.forget(&key_id),
            Change::Everything => keys.forget_all(),
            Change::Account(_) | Change::Plans | Change::Recall(_) | Change::Returned(_) => {}
        }
    }
}

impl Keys {
    /// The key that the text opens.
    pub async fn verify(&self, text: &ApiKeyText) -> Result<ApiKey, Error> {
        let inner = &self.0;
        let remembered = if inner.feed.is_heard() { self.remembered(text) } else { None };
        if let Some(key) = remembered {
            return Ok(key);
        }
        match self.ask(text).await {
            // While the database is away, as it is remembered, for a while.
            Err(error) if error.is_unanswered() && inner.feed.heard_within(inner.stale_max) => {
                self.remembered(text).ok_or(error)
            }
            answer => answer,
        }
    }

    /// The key by the database.
    async fn ask(&self, text: &ApiKeyText) -> Result<ApiKey, Error> {
        let inner = &self.0;
        if inner.outage.is_on() {
            return Err(ReadError::Unavailable.into());
        }
        let reads = if inner.knew(text) { &inner.rereads } else { &inner.reads };
        for _ in 0..READS {
            let Some(known) = reads.read(text.key_id()).await? else {
                text.matches(&NO_SECRET);
                return Err(Error::InvalidApiKey);
            };
            if inner.holds(&known) || BootTime::now().since(known.since) <= HOLDS_FOR {
                return self.open(&known, text).ok_or(Error::InvalidApiKey);
            }
        }
        tracing::warn!("API keys change while they are read, which takes long");
        Err(ReadError::Unavailable.into())
    }

    /// The key, where it is remembered and the text opens it. That it does not proves nothing: it may have a
    /// new secret since.
    fn remembered(&self, text: &ApiKeyText) -> Option<ApiKey> {
        let known = self.0.known.get(text.key_id())?;
        if self.0.is_current(&known) { self.open(&known, text) } else { None }
    }

    /// Asks the database from now on: what it says of the key has changed.
    pub fn forget(&self, key_id: &str) {
        self.0.changes.fetch_add(1, Ordering::SeqCst);
        self.0.outdate(key_id);
    }

    fn forget_all(&self) {
        self.0.changes.fetch_add(1, Ordering::SeqCst);
        self.0.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// Reads keys for those who wait, until `stop`.
    async fn serve(&self, waiting: mpsc::Receiver<Waiting<Arc<Known>>>, stop: CancellationToken) {
        let read = |ids| self.read_or_say(ids);
        key_reads::serve(waiting, read, stop).await;
    }

    async fn read_or_say(&self, ids: Vec<String>) -> Result<HashMap<String, Arc<Known>>, ReadError> {
        self.read(&ids).await.map_err(|error| {
            if error.is_unanswered() {
                tracing::warn!(%error, keys = ids.len(), "API keys could not be read");
                ReadError::Unavailable
            } else {
                tracing::error!(%error, keys = ids.len(), "API keys could not be read");
                ReadError::Failed
            }
        })
    }

    /// Reads keys, and remembers them.
    async fn read(&self, ids: &[String]) -> Result<HashMap<String, Arc<Known>>, Error> {
        let inner = &self.0;
        let (changes, epoch) = (inner.changes.load(Ordering::Acquire), inner.epoch.load(Ordering::Acquire));
        let since = BootTime::now();
        let stored = inner.stored(ids).await;
        inner.outage.note(stored.as_ref().is_err_and(Error::is_outage));
        let mut read = HashMap::new();
        for stored in stored? {
            let key_id = stored.key.key_id.clone();
            let noted = if stored.use_is_stale { 0 } else { since.nanos() };
            let (noted, state) = (AtomicU64::new(noted), AtomicU8::new(NEW));
            let known = Arc::new(Known { stored, since, epoch, state, noted });
            inner.known.insert(key_id.clone(), known.clone());
            // A change counts itself before it outdates what is remembered: it is seen here, or it finds this. Only then
            // does it serve: a key that was revoked while it was read is used by nobody else.
            if inner.changes.load(Ordering::SeqCst) == changes {
                // Unless it is stale by now.
                let _ = known.state.compare_exchange(NEW, CURRENT, Ordering::AcqRel, Ordering::Relaxed);
            }
            read.insert(key_id, known);
        }
        for gone in ids.iter().filter(|id| !read.contains_key(*id)) {
            inner.known.invalidate(gone);
        }
        Ok(read)
    }

    /// Notes which keys are used, until `stop`: those that gather while the last ones are written, in one statement. Nobody
    /// waits for it, and what goes unnoted in an outage is noted by a later use.
    async fn note_uses(&self, mut used: mpsc::Receiver<String>, stop: &CancellationToken) {
        let mut ids = Vec::new();
        while let Some(1..) = stop.run_until_cancelled(used.recv_many(&mut ids, USES_AT_ONCE)).await {
            let noted = async {
                let mut connection = db::acquire(&self.0.pool).await?;
                let noted = timeout(READ_WITHIN, store::api_keys::note_uses(&mut connection, &ids)).await;
                db::in_time(noted, connection)
            };
            if let Err(error) = noted.await {
                tracing::warn!(%error, keys = ids.len(), "the use of API keys was not noted");
            }
            ids.clear();
        }
    }

    fn open(&self, known: &Known, text: &ApiKeyText) -> Option<ApiKey> {
        let now = BootTime::now();
        if !known.stored.opens_to(text, now.since(known.since)) {
            return None;
        }
        let noted = known.noted.load(Ordering::Relaxed);
        let due = noted == 0 || now.since(BootTime::at_nanos(noted)) >= NOTED_FOR;
        if due
            && known.noted.compare_exchange(noted, now.nanos(), Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            // Where as many wait as may, a later use notes it.
            let _waits = self.0.uses.try_send(known.stored.key.key_id.clone());
        }
        Some(known.stored.key.clone())
    }
}

impl Inner {
    /// Whether the text opened its key when that was last read.
    fn knew(&self, text: &ApiKeyText) -> bool {
        let known = self.known.get(text.key_id());
        known.is_some_and(|known| known.stored.opens_to(text, BootTime::now().since(known.since)))
    }

    /// Whether the database had it so when changes were last heard.
    fn is_current(&self, known: &Known) -> bool {
        known.state.load(Ordering::Acquire) == CURRENT && known.epoch == self.epoch.load(Ordering::Acquire)
    }

    /// Whether the database has it so now, as far as changes are heard.
    fn holds(&self, known: &Known) -> bool {
        self.feed.is_heard() && self.is_current(known)
    }

    fn outdate(&self, key_id: &str) {
        if let Some(known) = self.known.get(key_id) {
            known.state.store(STALE, Ordering::Release);
        }
    }

    async fn stored(&self, ids: &[String]) -> Result<Vec<StoredKey>, Error> {
        let mut connection = db::acquire(&self.pool).await?;
        // Nobody else gives it up: a database may go away without a word.
        let read = timeout(READ_WITHIN, store::api_keys::for_verification(&mut connection, ids)).await;
        Ok(db::in_time(read, connection)?)
    }
}
