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
//! | `folder` | the files of the folder |
//! | `state` | which journals there are, and what is known of each |
//! | `accounts` | the part that one account may fill by its keys |

mod accounts;
mod folder;
mod frame;
mod journal;
mod state;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File, TryLockError},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use redb::backends::FileBackend;
use uuid::Uuid;

pub use self::accounts::Call;
use self::{
    accounts::{Accounts, event_bytes},
    folder::{FileId, id_of, options, read_file, sync_folder},
    journal::Journal,
    state::{Active, State},
};
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
/// What a journal takes for itself, and a transaction for the pages it replaces.
const JOURNAL_OVERHEAD: u64 = 256 * 1024;

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
    /// Journals that were found damaged, lost, or not to be opened, since the spool was opened.
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
    lock: File,
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
        let spool = Self { folder: folder.to_owned(), max_bytes, state: Mutex::default(), lock };
        for (id, path) in found {
            spool.state().add_found(id, path);
            // What cannot be read is said, and keeps nobody from using the rest.
            if let Ok(Some(journal)) = spool.read(id) {
                spool.state().charge(&journal);
            }
        }
        Ok(spool)
    }

    /// Adds the events of calls, of each all or none; all are synced when it returns. Says for each whether it is kept:
    /// it is not where its account's keys have their part. Beyond the bound none is added; after another failure some
    /// may be there, and none is to be acknowledged.
    pub fn append(&self, calls: &[Call<'_>]) -> Result<Vec<bool>, SpoolError> {
        let mut state = self.state();
        let kept = state.accounts.admit(calls, self.max_bytes);
        let events: Vec<(&Event, bool)> = calls
            .iter()
            .zip(&kept)
            .filter(|(_, kept)| **kept)
            .flat_map(|(call, _)| call.events.iter().map(move |event| (*event, call.by_key)))
            .collect();
        if events.is_empty() {
            return Ok(kept);
        }
        state.leave_gone();
        let used = state.bytes();
        let added: u64 = events.iter().map(|(event, _)| event_bytes(event)).sum();
        if used + added + JOURNAL_OVERHEAD > self.max_bytes {
            return Err(SpoolError::Full);
        }
        // Several transactions, so that no journal grows beyond what is read into memory at once.
        events.chunks(TRANSACTION).try_for_each(|some| self.append_to(&mut state, some))?;
        Ok(kept)
    }

    /// Adds events, each with whether a key sent it.
    fn append_to(&self, state: &mut State, events: &[(&Event, bool)]) -> Result<(), SpoolError> {
        let mut active = match state.active.take() {
            Some(active) => active,
            None => self.create()?,
        };
        let journal = &mut active.journal;
        let appended =
            catch_unwind(AssertUnwindSafe(|| journal.append(events.iter().map(|(event, _)| *event))));
        // Where it failed, too: some may be there.
        for (event, _) in events.iter().filter(|(_, by_key)| *by_key) {
            active.accounts.add(event);
            state.accounts.add(event);
        }
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
        state.leave_gone();
        if state.bytes() + 2 * JOURNAL_OVERHEAD > self.max_bytes {
            return Err(SpoolError::Full);
        }
        if state.active.is_none() {
            state.active = Some(self.create()?);
        }
        Ok(())
    }

    /// Whether the folder is the one that was opened. Where its volume went away there is none, or another: what is
    /// written there nobody finds when it is back.
    pub fn is_there(&self) -> Result<(), SpoolError> {
        let failed = |error| SpoolError::Io(self.folder.clone(), error);
        let found = FileId::at(&self.folder.join(LOCK)).map_err(failed)?;
        let opened = FileId::of(&self.lock.metadata().map_err(failed)?);
        if found == opened { Ok(()) } else { Err(failed(io::Error::other("another folder is in its place"))) }
    }

    /// Reads the oldest journal that can be opened. Where there is none but the active one, that takes no more events
    /// from now on. Fails where journals are left and none can be opened.
    pub fn oldest(&self) -> Result<Option<Drainable>, SpoolError> {
        let (mut tried, mut failure) = (HashSet::new(), None);
        loop {
            // The lock is not kept while a file is read.
            let oldest = self.state().oldest_but(&tried);
            let Some(id) = oldest else { return failure.map_or(Ok(None), Err) };
            tried.insert(id);
            match self.read(id) {
                Ok(Some(journal)) => return Ok(Some(journal)),
                Ok(None) => {}
                Err(error) => failure = Some(error),
            }
        }
    }

    /// Notes how many of a journal's events are left.
    pub fn note_left(&self, id: Uuid, left: u64) {
        if let Some(sealed) = self.state().sealed.iter_mut().find(|sealed| sealed.id == id) {
            sealed.left = left;
        }
    }

    /// Removes a journal that is drained. A damaged one is set aside.
    pub fn discard(&self, id: Uuid) -> Result<(), SpoolError> {
        let discarded = self.state().remove(id);
        let Some(sealed) = discarded else { return Ok(()) };
        let failed = |error| SpoolError::Io(self.folder.clone(), error);
        if sealed.damaged {
            let aside = sealed.path.with_extension(DAMAGED);
            fs::rename(&sealed.path, &aside).map_err(failed)?;
            tracing::error!(file = %aside.display(), "a damaged journal is drained as far as it can be read and set aside");
        } else {
            folder::remove(&sealed.path).map_err(failed)?;
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
        self.is_there()?;
        let id = Uuid::now_v7();
        let path = self.path(id);
        let new = path.with_extension(NEW);
        let failed = |error| SpoolError::Io(self.folder.clone(), error);
        let made = || {
            let file = options().open(&new).map_err(failed)?;
            let file_id = FileId::of(&file.metadata().map_err(failed)?);
            let backend = FileBackend::new(file).map_err(|e| SpoolError::Store(Box::new(e.into())))?;
            let journal = Journal::create(id, backend).map_err(|e| SpoolError::Store(Box::new(e)))?;
            fs::rename(&new, &path).map_err(failed)?;
            sync_folder(&self.folder).map_err(failed)?;
            Ok((journal, file_id))
        };
        match made() {
            Ok((journal, file)) => Ok(Active { journal, path, file, accounts: Accounts::default() }),
            Err(error) => {
                // What is left of it holds nothing, and room may be what is missing.
                for file in [&new, &path] {
                    if let Err(error) = folder::remove(file) {
                        tracing::warn!(%error, "an empty journal stays behind");
                    }
                }
                Err(error)
            }
        }
    }

    /// Reads a journal that takes no more events; `None`: it is lost.
    fn read(&self, id: Uuid) -> Result<Option<Drainable>, SpoolError> {
        let path = self.path(id);
        let contents = match read_file(id, &path) {
            Ok(contents) => contents,
            // Where the folder is gone, it may come back with the file.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.is_there().is_ok() => {
                self.state().lose(id);
                return Ok(None);
            }
            Err(error) => {
                self.state().note_unopened(id, &error);
                return Err(SpoolError::Io(self.folder.clone(), error));
            }
        };
        if contents.unfinished > 0 {
            tracing::warn!(%id, events = contents.unfinished, "a write to the spool did not come to its end; what is whole of it is kept");
        }
        let newly_damaged = self.state().note_read(id, &contents);
        if newly_damaged {
            let (damage, missing, events) =
                (contents.damage.join("; "), contents.missing, contents.events.len());
            tracing::error!(file = %path.display(), damage, missing, events, "a journal of the spool is damaged: what it still gives is drained");
        }
        Ok(Some(Drainable { id, events: contents.events }))
    }

    fn path(&self, id: Uuid) -> PathBuf {
        self.folder.join(id.to_string()).with_extension(EXTENSION)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
