//! Verifies API keys: from memory while changes of keys are heard of, so that a call costs no statement and a
//! revocation holds at every replica within a second. Unknown keys are not remembered.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use moka::sync::Cache;
use nexus_core::id::ApiKeyText;
use nexus_kit::{db, turn::Turns};
use sqlx::PgPool;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    feed::{Change, Changes, Feed},
    outage::Outage,
    strangers::Strangers,
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
/// Longest that a key is read: longer than a lock is waited for.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// Calls with the same text that wait while it is read, where it is not known whether it opens anything.
const MAX_WAITING: usize = 256;
/// Where it is: as many as there are, since calls are bounded.
const MAX_KNOWN_WAITING: usize = 1 << 20;
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
    strangers: Strangers,
    /// A text is read once for all who come with it meanwhile: by the key's id and the hash of the secret.
    reads: Turns<(String, [u8; 32])>,
    /// The same for texts that opened their key when it was last read.
    rereads: Turns<(String, [u8; 32])>,
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
    let keys = Keys(Arc::new(Inner {
        strangers: Strangers::of(&pool),
        reads: Turns::new(1, MAX_WAITING),
        rereads: Turns::new(1, MAX_KNOWN_WAITING),
        pool,
        outage,
        feed,
        stale_max,
        known: Cache::new(MAX_KEYS),
        changes: AtomicU64::new(0),
        epoch: AtomicU64::new(0),
    }));
    let task = tokio::spawn(follow(keys.clone(), changes, stop));
    (keys, task)
}

async fn follow(keys: Keys, mut changes: Changes, stop: CancellationToken) {
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
        if let Some(key) = self.heard_of(text) {
            return Ok(key);
        }
        let mut read = None;
        if inner.feed.is_heard() {
            let name = (text.key_id().to_owned(), text.secret_sha256());
            let reads = if inner.knew(text) { &inner.rereads } else { &inner.reads };
            read = Some(reads.take(&name).await.ok_or(Error::TooManyReads)?);
            // By somebody else meanwhile.
            if let Some(key) = self.heard_of(text) {
                return Ok(key);
            }
        }
        if inner.knew(text) {
            return self.ask(text).await;
        }
        let turn = inner.strangers.turn().await?;
        let (keys, text) = (self.clone(), text.clone());
        // Also when the caller goes away: what it has sent goes on in its connection.
        let asked = async move {
            let _turns = (read, turn);
            keys.ask(&text).await
        };
        tokio::spawn(asked.in_current_span()).await.map_err(|_| Error::Stopping)?
    }

    /// The key, where it is remembered and whatever changes would be heard.
    fn heard_of(&self, text: &ApiKeyText) -> Option<ApiKey> {
        if self.0.feed.is_heard() { self.remembered(text) } else { None }
    }

    /// The key by the database; while that is away, as it is remembered, for a while.
    async fn ask(&self, text: &ApiKeyText) -> Result<ApiKey, Error> {
        let inner = &self.0;
        let read =
            if inner.outage.is_on() { Err(sqlx::Error::PoolTimedOut.into()) } else { self.read(text).await };
        match read {
            Err(error) if error.is_unanswered() && inner.feed.heard_within(inner.stale_max) => {
                self.remembered(text).ok_or(error)
            }
            read => read,
        }
    }

    /// The key, where it is remembered and the text opens it. That it does not proves nothing: it may have a
    /// new secret since.
    fn remembered(&self, text: &ApiKeyText) -> Option<ApiKey> {
        let known = self.0.known.get(text.key_id())?;
        let current = known.state.load(Ordering::Acquire) == CURRENT
            && known.epoch == self.0.epoch.load(Ordering::Acquire);
        if current { self.open(&known, text) } else { None }
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

    /// The key that the text opens, by the database.
    async fn read(&self, text: &ApiKeyText) -> Result<ApiKey, Error> {
        let inner = &self.0;
        let (changes, epoch) = (inner.changes.load(Ordering::Acquire), inner.epoch.load(Ordering::Acquire));
        let since = BootTime::now();
        let stored = inner.stored(text.key_id()).await;
        inner.outage.note(stored.as_ref().is_err_and(Error::is_outage));
        let Some(stored) = stored? else {
            text.matches(&NO_SECRET);
            inner.known.invalidate(text.key_id());
            return Err(Error::InvalidApiKey);
        };
        let noted = if stored.use_is_stale { 0 } else { since.nanos() };
        let (noted, state) = (AtomicU64::new(noted), AtomicU8::new(NEW));
        let known = Arc::new(Known { stored, since, epoch, state, noted });
        inner.known.insert(text.key_id().to_owned(), known.clone());
        // A change counts itself before it outdates what is remembered: it is seen here, or it finds this. Only then
        // does it serve: a key that was revoked while it was read is used by nobody else.
        if inner.changes.load(Ordering::SeqCst) == changes {
            // Unless it is stale by now.
            let _ = known.state.compare_exchange(NEW, CURRENT, Ordering::AcqRel, Ordering::Relaxed);
        }
        self.open(&known, text).ok_or(Error::InvalidApiKey)
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
            let (inner, key_id) = (self.0.clone(), known.stored.key.key_id.clone());
            tokio::spawn(async move { inner.note_use(&key_id).await }.in_current_span());
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

    fn outdate(&self, key_id: &str) {
        if let Some(known) = self.known.get(key_id) {
            known.state.store(STALE, Ordering::Release);
        }
    }

    async fn stored(&self, key_id: &str) -> Result<Option<StoredKey>, Error> {
        let mut connection = db::acquire(&self.pool).await?;
        // Nobody else gives a read up that a stranger has left: a database may go away without a word.
        let read = timeout(READ_WITHIN, store::api_keys::for_verification(&mut connection, key_id)).await;
        Ok(db::in_time(read, connection)?)
    }

    /// Nobody waits for it, and a use that goes unnoted in an outage is noted by a later one.
    async fn note_use(&self, key_id: &str) {
        let noted = async {
            let mut connection = db::acquire(&self.pool).await?;
            store::api_keys::note_use(&mut connection, key_id).await
        };
        if let Err(error) = noted.await {
            tracing::warn!(%error, key_id, "the use of an API key was not noted");
        }
    }
}
