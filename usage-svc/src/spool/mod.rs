//! The spool: events that are acknowledged while the database is away, durable on a volume of this replica.
//!
//! A folder of journals, each a redb file with an id of its own. Events go to the active one, numbered from 0 and
//! synced before they are acknowledged; a journal that is large enough, that failed, or that is to be drained takes
//! nothing more and is never written again. So what is drained is told by a journal's id and a number
//! (`eco_spool_cursors`), on whichever replica its file lies, and room comes back by deleting whole files,
//! which needs no room.
//!
//! redb, because one file is one store that survives a crash at any write, verifies itself, and takes its disk as
//! an argument: the tests lose, tear and refuse each single write.
//!
//! | module | what it does |
//! |---|---|
//! | `frame` | an event as bytes that are found again in a damaged file |
//! | `journal` | one file: adding to it, and reading all that it still gives |

mod frame;
mod journal;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use redb::backends::FileBackend;
use uuid::Uuid;

use self::journal::{Contents, Journal};
use crate::domain::event::Event;

const EXTENSION: &str = "redb";
/// Of a journal that is being made: nothing in it is acknowledged.
const NEW: &str = "new";
/// Of a journal that was drained as far as it could be read.
const DAMAGED: &str = "damaged";
const LOCK: &str = "lock";

/// With so many bytes of events a journal is large enough: it is read into memory as a whole.
const JOURNAL_BYTES: u64 = 8 * 1024 * 1024;
/// Events of a transaction at most.
const TRANSACTION: usize = 10_000;
/// An event takes less than this beside its texts.
const EVENT_BYTES: u64 = 256;
/// What a journal takes for itself, and a transaction for the pages it replaces.
const JOURNAL_OVERHEAD: u64 = 256 * 1024;
/// What a file system counts files in.
const BLOCK_BYTES: u64 = 512;

/// Why the spool did not do what it was to.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Another process, or another server of this one, has the folder.
    #[error("the spool in {0} is in use by another server")]
    InUse(PathBuf),
    /// The bound is reached.
    #[error("the spool is full")]
    Full,
    /// The folder or a file in it cannot be used.
    #[error("the spool in {0}: {1}")]
    Io(PathBuf, io::Error),
    /// The store failed; the disk is full, perhaps.
    #[error("the spool's store failed: {0}")]
    Store(Box<redb::Error>),
    /// The store stopped at a fault of its own.
    #[error("the spool's store stopped")]
    Stopped,
}

/// How much is in a spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// Events that are not drained.
    pub events: u64,
    /// Bytes on the disk, without files set aside.
    pub bytes: u64,
    /// Journals that were found damaged since the spool was opened.
    pub damaged: u64,
}

/// A journal that is to be drained, as read.
#[derive(Debug)]
pub struct Drainable {
    /// Its id.
    pub id: Uuid,
    /// Its events by their numbers, also those that were drained before.
    pub events: BTreeMap<u64, Event>,
}

/// The spool. Its functions block on the disk.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    max_bytes: u64,
    state: Mutex<State>,
    /// Locked, for as long as the spool is used.
    _lock: File,
}

#[derive(Debug, Default)]
struct State {
    active: Option<Active>,
    /// The oldest first.
    sealed: VecDeque<Sealed>,
    damaged: u64,
}

#[derive(Debug)]
struct Active {
    journal: Journal,
    path: PathBuf,
}

#[derive(Debug)]
struct Sealed {
    id: Uuid,
    path: PathBuf,
    /// Events that are not drained.
    left: u64,
    /// Bytes on the disk.
    bytes: u64,
    damaged: bool,
}

impl Spool {
    /// Opens the spool in a folder, or makes it. Reads what is in it.
    pub fn open(folder: &Path, max_bytes: u64) -> Result<Self, SpoolError> {
        let failed = |error| SpoolError::Io(folder.to_owned(), error);
        fs::create_dir_all(folder).map_err(failed)?;
        if let Some(parent) = folder.canonicalize().map_err(failed)?.parent() {
            sync_folder(parent).map_err(failed)?;
        }
        let lock = options().open(folder.join(LOCK)).map_err(failed)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => SpoolError::InUse(folder.to_owned()),
            TryLockError::Error(error) => failed(error),
        })?;
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let extension = path.extension().and_then(|e| e.to_str());
            match (extension, id_of(&path)) {
                (Some(EXTENSION), Some(id)) => found.push((id, path)),
                (Some(NEW), Some(_)) => fs::remove_file(&path).map_err(failed)?,
                (Some(DAMAGED), Some(_)) => {
                    tracing::warn!(file = %path.display(), "a damaged journal is kept")
                }
                _ => {}
            }
        }
        found.sort_unstable();
        let spool = Self { folder: folder.to_owned(), max_bytes, state: Mutex::default(), _lock: lock };
        for (id, path) in found {
            let bytes = disk_bytes(&path).map_err(failed)?;
            spool.state().sealed.push_back(Sealed { id, path, left: 0, bytes, damaged: false });
            spool.read(id)?;
        }
        Ok(spool)
    }

    /// Adds events; all are synced when it returns. Beyond the bound none is added; after another failure some may
    /// be there, and none is to be acknowledged.
    pub fn append(&self, events: &[&Event]) -> Result<(), SpoolError> {
        let mut state = self.state();
        let used = state.bytes();
        let added: u64 = events.iter().map(|event| event_bytes(event)).sum();
        if used + added + JOURNAL_OVERHEAD > self.max_bytes {
            return Err(SpoolError::Full);
        }
        // Several transactions, so that no journal grows beyond what is read into memory at once.
        events.chunks(TRANSACTION).try_for_each(|some| self.append_to(&mut state, some))
    }

    fn append_to(&self, state: &mut State, events: &[&Event]) -> Result<(), SpoolError> {
        let Active { mut journal, path } = match state.active.take() {
            Some(active) => active,
            None => self.create()?,
        };
        let appended = catch_unwind(AssertUnwindSafe(|| journal.append(events.iter().copied())));
        let active = Active { journal, path };
        match appended {
            Ok(Ok(())) if active.journal.bytes < JOURNAL_BYTES => state.active = Some(active),
            _ => state.seal(active),
        }
        match appended {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(SpoolError::Store(Box::new(error))),
            Err(_panic) => Err(SpoolError::Stopped),
        }
    }

    /// Whether a spool that took nothing has room again, and some to spare, so that it is not full at the next event.
    /// Asks the disk, too, where a journal is to be made.
    pub fn has_room(&self) -> Result<(), SpoolError> {
        let mut state = self.state();
        if state.bytes() + 2 * JOURNAL_OVERHEAD > self.max_bytes {
            return Err(SpoolError::Full);
        }
        if state.active.is_none() {
            state.active = Some(self.create()?);
        }
        Ok(())
    }

    /// Reads the oldest journal. Where there is none but the active one, that takes no more events from now on.
    pub fn oldest(&self) -> Result<Option<Drainable>, SpoolError> {
        let oldest = {
            let mut state = self.state();
            if state.sealed.is_empty()
                && let Some(active) = state.active.take_if(|active| active.journal.next > 0)
            {
                state.seal(active);
            }
            state.sealed.front().map(|sealed| sealed.id)
        };
        oldest.map(|id| self.read(id)).transpose()
    }

    /// Notes how many of a journal's events are left.
    pub fn note_left(&self, id: Uuid, left: u64) {
        if let Some(sealed) = self.state().sealed.iter_mut().find(|sealed| sealed.id == id) {
            sealed.left = left;
        }
    }

    /// Removes a journal that is drained. A damaged one is set aside.
    pub fn discard(&self, id: Uuid) -> Result<(), SpoolError> {
        let sealed = {
            let mut state = self.state();
            let position = state.sealed.iter().position(|sealed| sealed.id == id);
            position.and_then(|position| state.sealed.remove(position))
        };
        let Some(sealed) = sealed else { return Ok(()) };
        let failed = |error| SpoolError::Io(self.folder.clone(), error);
        if sealed.damaged {
            let aside = sealed.path.with_extension(DAMAGED);
            fs::rename(&sealed.path, &aside).map_err(failed)?;
            tracing::error!(file = %aside.display(), "a damaged journal is drained as far as it can be read and set aside");
        } else {
            fs::remove_file(&sealed.path).map_err(failed)?;
        }
        sync_folder(&self.folder).map_err(failed)
    }

    /// How much is in it.
    pub fn level(&self) -> Level {
        let state = self.state();
        let active = state.active.as_ref().map_or(0, |active| active.journal.next);
        let events = active + state.sealed.iter().map(|sealed| sealed.left).sum::<u64>();
        Level { events, bytes: state.bytes(), damaged: state.damaged }
    }

    fn create(&self) -> Result<Active, SpoolError> {
        let id = Uuid::now_v7();
        let path = self.folder.join(id.to_string()).with_extension(EXTENSION);
        let new = path.with_extension(NEW);
        let failed = |error| SpoolError::Io(self.folder.clone(), error);
        let made = || {
            let file = options().open(&new).map_err(failed)?;
            let backend = FileBackend::new(file).map_err(|e| SpoolError::Store(Box::new(e.into())))?;
            let journal = Journal::create(id, backend).map_err(|e| SpoolError::Store(Box::new(e)))?;
            fs::rename(&new, &path).map_err(failed)?;
            sync_folder(&self.folder).map_err(failed)?;
            Ok(journal)
        };
        match made() {
            Ok(journal) => Ok(Active { journal, path }),
            Err(error) => {
                // What is left of it holds nothing, and room may be what is missing.
                for file in [&new, &path] {
                    if let Err(error) = fs::remove_file(file)
                        && error.kind() != io::ErrorKind::NotFound
                    {
                        tracing::warn!(%error, "an empty journal stays behind");
                    }
                }
                Err(error)
            }
        }
    }

    /// Reads a journal that takes no more events.
    fn read(&self, id: Uuid) -> Result<Drainable, SpoolError> {
        let path = self.folder.join(id.to_string()).with_extension(EXTENSION);
        let Contents { events, damage, missing, unfinished } =
            read_file(id, &path).map_err(|error| SpoolError::Io(self.folder.clone(), error))?;
        if unfinished > 0 {
            tracing::warn!(%id, events = unfinished, "a write to the spool did not come to its end; what is whole of it is kept");
        }
        let mut state = self.state();
        let mut newly_damaged = false;
        if let Some(sealed) = state.sealed.iter_mut().find(|sealed| sealed.id == id) {
            sealed.left = events.len() as u64;
            newly_damaged = !damage.is_empty() && !sealed.damaged;
            sealed.damaged |= newly_damaged;
        }
        state.damaged += u64::from(newly_damaged);
        if newly_damaged {
            let damage = damage.join("; ");
            tracing::error!(file = %path.display(), damage, missing, events = events.len(), "a journal of the spool is damaged: what it still gives is drained");
        }
        Ok(Drainable { id, events })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn bytes(&self) -> u64 {
        let active = self.active.as_ref().map(|active| {
            // As much as it must have, where the disk does not say.
            disk_bytes(&active.path).unwrap_or_default().max(active.journal.bytes)
        });
        active.unwrap_or_default() + self.sealed.iter().map(|sealed| sealed.bytes).sum::<u64>()
    }

    fn seal(&mut self, active: Active) {
        let Active { journal, path } = active;
        let (id, left, at_least) = (journal.id, journal.next, journal.bytes);
        // Closed first: that writes, too.
        drop(journal);
        let bytes = disk_bytes(&path).unwrap_or_default().max(at_least);
        self.sealed.push_back(Sealed { id, path, left, bytes, damaged: false });
    }
}

fn read_file(id: Uuid, path: &Path) -> io::Result<Contents> {
    let file = File::open(path)?;
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let (bytes, unreadable) = journal::read_blocks(length, |at, block| file.read_exact_at(block, at));
    let mut contents = journal::contents(id, &bytes);
    if unreadable > 0 {
        contents.damage.push(format!("{unreadable} blocks cannot be read"));
    }
    Ok(contents)
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options
}

/// The journal that a file is of, by its name.
fn id_of(path: &Path) -> Option<Uuid> {
    path.file_stem()?.to_str()?.parse().ok()
}

/// What a file takes on the disk: it may have holes.
fn disk_bytes(path: &Path) -> io::Result<u64> {
    Ok(fs::metadata(path)?.blocks() * BLOCK_BYTES)
}

fn event_bytes(event: &Event) -> u64 {
    EVENT_BYTES + event.payload.endpoint.len() as u64
}

/// Files that were made, renamed and removed are so after a crash, too.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
