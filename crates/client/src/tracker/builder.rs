//! Settings of a tracker.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};

use super::{
    Shared, Tracker,
    stats::{Counters, add},
    worker::{Settings, Worker},
};
use crate::{
    ClientError,
    backoff::Backoff,
    clock::ServerClock,
    credentials::Credentials,
    spool::{Found, Spool, SpoolError},
    trusting_channel, usage,
};

/// Largest batch that usage-svc takes.
const LARGEST_BATCH: usize = 10_000;

/// Why a tracker could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// An address or the certificates to trust.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Out of its range.
    #[error("{name} must be {range}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// What it may be.
        range: &'static str,
    },
    /// The disk buffer.
    #[error("the disk buffer {path}: {error}")]
    Disk {
        /// The file.
        path: PathBuf,
        /// Reason.
        error: SpoolError,
    },
    /// A tracker works on a tokio runtime.
    #[error("there is no tokio runtime here")]
    NoRuntime,
}

/// Settings; see each for its default.
#[must_use]
#[derive(Debug, Clone)]
pub struct Builder {
    addresses: Vec<String>,
    ca: Option<PathBuf>,
    credentials: Credentials,
    flush_records: usize,
    flush_interval: Duration,
    queue_capacity: usize,
    in_flight: usize,
    call_timeout: Duration,
    backoff: Backoff,
    clock: ServerClock,
    disk: Option<(PathBuf, u64)>,
}

impl Builder {
    pub(super) fn new(address: &str, credentials: Credentials) -> Self {
        Self {
            addresses: vec![address.to_owned()],
            ca: None,
            credentials,
            flush_records: 100,
            flush_interval: Duration::from_secs(5),
            queue_capacity: 10_000,
            in_flight: 4,
            call_timeout: Duration::from_secs(10),
            backoff: Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(5) },
            clock: ServerClock::default(),
            disk: None,
        }
    }

    /// Another replica: where one fails, the next is tried. A name with several addresses, or a load balancer,
    /// needs no more than itself.
    pub fn replica(mut self, address: &str) -> Self {
        self.addresses.push(address.to_owned());
        self
    }

    /// Certificates (PEM) to trust, for `https` addresses.
    pub fn trust(mut self, ca: impl AsRef<Path>) -> Self {
        self.ca = Some(ca.as_ref().to_owned());
        self
    }

    /// Events that are sent as soon as they are so many. Default 100, at most 10,000. Where more wait because
    /// usage-svc was away or slow, up to ten times as many go out together.
    pub fn flush_records(mut self, records: usize) -> Self {
        self.flush_records = records;
        self
    }

    /// How long an event waits for others. Default 5 s; 0: not at all.
    pub fn flush_interval(mut self, interval: Duration) -> Self {
        self.flush_interval = interval;
        self
    }

    /// Events that wait in memory at most; more are [`super::Dropped`]. Default 10,000. Beside them the batches
    /// on their way are in memory.
    pub fn queue_capacity(mut self, events: usize) -> Self {
        self.queue_capacity = events;
        self
    }

    /// Batches on their way at once. Default 4.
    pub fn in_flight(mut self, batches: usize) -> Self {
        self.in_flight = batches;
        self
    }

    /// Longest time that one call may take; then its batch is sent again. Default 10 s.
    pub fn call_timeout(mut self, timeout: Duration) -> Self {
        self.call_timeout = timeout;
        self
    }

    /// Pauses after failures: the first, doubled for each failure in a row up to the longest. Default 100 ms and
    /// 5 s. A delay that the server tells is kept where it is longer.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.backoff = Backoff { first, longest };
        self
    }

    /// A clock that others hear of, too, as a [`crate::Guard`] does before a call is recorded
    /// ([`crate::Guard::clock`]). By it, events without a time are stamped. Default: one of its own, which shows what
    /// this machine's does until the first events are acknowledged.
    pub fn clock(mut self, clock: &ServerClock) -> Self {
        self.clock = clock.clone();
        self
    }

    /// Keeps events in this file until they are acknowledged, `max_bytes` of them at most (the file may be some
    /// times as large). They survive outages longer than the queue, and the end of the process: every batch
    /// is synced before it is sent, so only what was tracked since the last flush can be lost in a crash. Where
    /// the disk fails or the buffer is full, events stay in memory. One tracker at a time uses a file. Default:
    /// none.
    pub fn disk_buffer(mut self, path: impl AsRef<Path>, max_bytes: u64) -> Self {
        self.disk = Some((path.as_ref().to_owned(), max_bytes));
        self
    }

    /// Starts the tracker. Events that an earlier one left in the disk buffer are delivered first. It connects
    /// when it sends; a usage-svc that is away is no error.
    pub async fn build(self) -> Result<Tracker, BuildError> {
        let runtime = Handle::try_current().map_err(|_| BuildError::NoRuntime)?;
        self.check()?;
        let channels = self.addresses.iter().map(|address| trusting_channel(address, self.ca.as_deref()));
        let clients = channels.map(|c| c.map(usage)).collect::<Result<Vec<_>, _>>()?;
        let spool = match self.disk {
            Some((path, max_bytes)) => Some(open(path, max_bytes).await?),
            None => None,
        };
        let counters = Arc::new(Counters::default());
        if let Some((_, found)) = &spool {
            add(&counters.recovered, usize::try_from(found.records).unwrap_or(usize::MAX));
            add(&counters.on_disk, usize::try_from(found.records).unwrap_or(usize::MAX));
        }
        let (items, taken) = mpsc::channel(self.queue_capacity);
        let (stop, stopped) = watch::channel(None);
        let (ended, end) = watch::channel(None);
        let settings = Settings {
            clients,
            credentials: self.credentials,
            flush_records: self.flush_records,
            largest_batch: (self.flush_records * 10).min(LARGEST_BATCH),
            flush_interval: self.flush_interval,
            in_flight: self.in_flight,
            call_timeout: self.call_timeout,
            backoff: self.backoff,
            clock: self.clock.clone(),
        };
        let worker = Worker::new(settings, taken, stopped, counters.clone(), spool);
        runtime.spawn(async move {
            let report = worker.run().await;
            ended.send_replace(Some(report));
        });
        Ok(Tracker { shared: Arc::new(Shared { items, stop, end, counters, clock: self.clock }) })
    }

    fn check(&self) -> Result<(), BuildError> {
        let require = |holds, name, range| match holds {
            true => Ok(()),
            false => Err(BuildError::Setting { name, range }),
        };
        require((1..=LARGEST_BATCH).contains(&self.flush_records), "flush_records", "1 to 10,000")?;
        require((1..=10_000_000).contains(&self.queue_capacity), "queue_capacity", "1 to 10,000,000 events")?;
        require((1..=1_000).contains(&self.in_flight), "in_flight", "1 to 1,000 batches")?;
        require(!self.call_timeout.is_zero(), "call_timeout", "more than 0")?;
        let (first, longest) = (self.backoff.first, self.backoff.longest);
        require(
            !first.is_zero() && first <= longest,
            "backoff",
            "more than 0, and the longest not below the first",
        )
    }
}

async fn open(path: PathBuf, max_bytes: u64) -> Result<(Arc<Spool>, Found), BuildError> {
    let file = path.clone();
    let opened = tokio::task::spawn_blocking(move || Spool::open(&file, max_bytes)).await;
    match opened.unwrap_or(Err(SpoolError::Stopped)) {
        Ok((spool, found)) => Ok((Arc::new(spool), found)),
        Err(error) => Err(BuildError::Disk { path, error }),
    }
}
