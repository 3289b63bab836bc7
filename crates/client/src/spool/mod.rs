//! The disk buffer: events that are not acknowledged yet, in the order they were tracked, in one redb file.
//! What [`Spool::append`] returned for is synced and is there until it is removed, whatever happens to the
//! process or the machine. Every record carries a checksum over its number and content, so that a file that
//! was damaged later gives fewer events, never others.

#[cfg(test)]
mod tests;

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use nexus_proto::usage::v1::UsageEvent;
use prost::Message;
use redb::{Builder, Database, ReadableDatabase, ReadableTable, TableDefinition, backends::FileBackend};

const EVENTS: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("events");

/// What a record takes beside its content: number, checksum and its share of the pages above it.
const RECORD_OVERHEAD: u64 = 64;
const CHECKSUM_BYTES: usize = 4;
/// Memory for pages: the buffer is read once, front to back.
const CACHE_BYTES: usize = 4 * 1024 * 1024;

/// Why the disk buffer does not work.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Another tracker, in this process or another, uses the file.
    #[error("another tracker uses it")]
    InUse,
    /// It is not a file of ours, or its pages do not match their checksums.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// The disk failed or is full.
    #[error("{0}")]
    Failed(Box<redb::Error>),
    /// The file or its folder cannot be used.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The store stopped at what it found in the file.
    #[error("the store stopped at what it found")]
    Stopped,
}

fn failed(error: impl Into<redb::Error>) -> SpoolError {
    match error.into() {
        redb::Error::DatabaseAlreadyOpen => SpoolError::InUse,
        redb::Error::Corrupted(what) => SpoolError::Damaged(what),
        redb::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            SpoolError::Damaged(error.to_string())
        }
        error => SpoolError::Failed(Box::new(error)),
    }
}

/// Whether events were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Appended {
    /// They are synced.
    Synced,
    /// They do not fit; none was written.
    Full,
}

/// Events read back.
#[derive(Debug, Default)]
pub(crate) struct Read {
    /// Numbers of the events, rising.
    pub(crate) numbers: Vec<u64>,
    /// The events.
    pub(crate) events: Vec<UsageEvent>,
    /// Numbers of records that are no events any more.
    pub(crate) damaged: Vec<u64>,
}

/// What an opened buffer holds from before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    /// Records.
    pub(crate) records: u64,
    /// The number after the last.
    pub(crate) next_number: u64,
}

type Opener = dyn Fn() -> Result<Database, SpoolError> + Send + Sync;

/// The buffer. Its functions block on the disk.
pub(crate) struct Spool {
    open: Box<Opener>,
    max_bytes: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// None after a failure: the store trusts its memory no more, and the file is opened again.
    database: Option<Database>,
    /// Content and overhead of all records.
    bytes: u64,
}

impl Spool {
    /// Opens the file, or makes it. What is in it may be longer than `max_bytes`; then nothing is added until
    /// it is shorter.
    pub(crate) fn open(path: &Path, max_bytes: u64) -> Result<(Self, Found), SpoolError> {
        let path = path.to_owned();
        Self::with_opener(Box::new(move || open_file(&path)), max_bytes)
    }

    fn with_opener(open: Box<Opener>, max_bytes: u64) -> Result<(Self, Found), SpoolError> {
        let spool = Self { open, max_bytes, state: Mutex::default() };
        let found = spool.with(|database, bytes| {
            let transaction = database.begin_write().map_err(failed)?;
            let mut found = Found { records: 0, next_number: 0 };
            {
                let table = transaction.open_table(EVENTS).map_err(failed)?;
                *bytes = 0;
                for record in table.iter().map_err(failed)? {
                    let (number, value) = record.map_err(failed)?;
                    found.records += 1;
                    found.next_number = number.value().saturating_add(1);
                    *bytes += size(value.value());
                }
            }
            transaction.commit().map_err(failed)?;
            Ok(found)
        })?;
        Ok((spool, found))
    }

    /// Adds events under the numbers from `first`, all or none; synced when it returns.
    pub(crate) fn append(&self, first: u64, events: &[UsageEvent]) -> Result<Appended, SpoolError> {
        let records: Vec<_> =
            (first..).zip(events).map(|(number, event)| (number, encode(number, event))).collect();
        let added: u64 = records.iter().map(|(_, record)| size(record)).sum();
        self.with(|database, bytes| {
            if *bytes + added > self.max_bytes {
                return Ok(Appended::Full);
            }
            let transaction = database.begin_write().map_err(failed)?;
            {
                let mut table = transaction.open_table(EVENTS).map_err(failed)?;
                for (number, record) in &records {
                    table.insert(number, record.as_slice()).map_err(failed)?;
                }
            }
            transaction.commit().map_err(failed)?;
            *bytes += added;
            Ok(Appended::Synced)
        })
    }

    /// The first events from a number on.
    pub(crate) fn read(&self, from: u64, at_most: usize) -> Result<Read, SpoolError> {
        self.with(|database, _| {
            let table = database.begin_read().map_err(failed)?.open_table(EVENTS).map_err(failed)?;
            let mut read = Read::default();
            for record in table.range(from..).map_err(failed)?.take(at_most) {
                let (number, value) = record.map_err(failed)?;
                match decode(number.value(), value.value()) {
                    Some(event) => {
                        read.numbers.push(number.value());
                        read.events.push(event);
                    }
                    None => read.damaged.push(number.value()),
                }
            }
            Ok(read)
        })
    }

    /// Removes events that need no sending any more; synced when it returns.
    pub(crate) fn remove(&self, numbers: &[u64]) -> Result<(), SpoolError> {
        self.with(|database, bytes| {
            let transaction = database.begin_write().map_err(failed)?;
            let mut removed = 0;
            {
                let mut table = transaction.open_table(EVENTS).map_err(failed)?;
                for number in numbers {
                    if let Some(record) = table.remove(number).map_err(failed)? {
                        removed += size(record.value());
                    }
                }
            }
            transaction.commit().map_err(failed)?;
            *bytes = bytes.saturating_sub(removed);
            Ok(())
        })
    }

    /// Does something with the database; opens it first where the last use failed.
    fn with<T>(
        &self,
        work: impl FnOnce(&Database, &mut u64) -> Result<T, SpoolError>,
    ) -> Result<T, SpoolError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken out, so that a failure of any kind closes it.
        let database = match state.database.take() {
            Some(database) => database,
            None => (self.open)()?,
        };
        let done = work(&database, &mut state.bytes)?;
        state.database = Some(database);
        Ok(done)
    }
}

fn open_file(path: &Path) -> Result<Database, SpoolError> {
    let folder: PathBuf =
        path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).into();
    fs::create_dir_all(&folder)?;
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let backend = FileBackend::new(file).map_err(failed)?;
    let database = builder().create_with_backend(backend).map_err(failed)?;
    // The file's name is synced too.
    File::open(folder)?.sync_all()?;
    Ok(database)
}

/// Every opening verifies all pages: a file that something else has changed is refused and not trusted.
fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

fn size(record: &[u8]) -> u64 {
    record.len() as u64 + RECORD_OVERHEAD
}

fn checksum(number: u64, content: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.update(content);
    hasher.finalize().to_le_bytes()
}

fn encode(number: u64, event: &UsageEvent) -> Vec<u8> {
    let content = event.encode_to_vec();
    let mut record = checksum(number, &content).to_vec();
    record.extend_from_slice(&content);
    record
}

fn decode(number: u64, record: &[u8]) -> Option<UsageEvent> {
    let (sum, content) = record.split_first_chunk::<CHECKSUM_BYTES>()?;
    if *sum != checksum(number, content) {
        return None;
    }
    UsageEvent::decode(content).ok()
}
