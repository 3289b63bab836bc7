//! A journal: one redb file of frames. While it is active it grows by transactions, each synced before it is
//! acknowledged. Afterwards it is read from its bytes alone and never written again: once by the store, which
//! verifies every page, and once by looking for frames, which also finds what the store would not give.

use std::{
    collections::BTreeMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
};

use redb::{
    Builder, Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, TableError,
    backends::InMemoryBackend,
};
use uuid::Uuid;

use super::frame;
use crate::domain::event::Event;

/// Runs of frames by the number of the first.
const FRAMES: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("frames");

/// A run of frames is no longer than this, unless one frame is: it fills pages of the store well.
const RUN_BYTES: usize = 60 * 1024;
/// Memory for pages: a journal is written front to back.
const CACHE_BYTES: usize = 4 * 1024 * 1024;
/// What is read at once: where the disk cannot read one, the others are read all the same.
const BLOCK_BYTES: usize = 4096;

/// The journal that takes events. Its functions block on the disk.
#[derive(Debug)]
pub(super) struct Journal {
    pub(super) id: Uuid,
    /// The number of the next event.
    pub(super) next: u64,
    /// Bytes of its frames.
    pub(super) bytes: u64,
    database: Database,
}

impl Journal {
    /// Makes an empty one, synced.
    pub(super) fn create(id: Uuid, backend: impl StorageBackend) -> Result<Self, redb::Error> {
        let database = builder().create_with_backend(backend)?;
        let transaction = database.begin_write()?;
        transaction.open_table(FRAMES)?;
        transaction.commit()?;
        Ok(Self { id, next: 0, bytes: 0, database })
    }

    /// Adds events, all or none; synced when it returns. After a failure, of which nobody knows how far it went,
    /// nothing more is to be added.
    pub(super) fn append<'a>(
        &mut self,
        events: impl IntoIterator<Item = &'a Event>,
    ) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        // Synced twice. With once, a file that was not closed and then rotted where it was last written would be
        // taken for one whose last write did not come to its end, and give less without a word.
        transaction.set_two_phase_commit(true);
        {
            let mut table = transaction.open_table(FRAMES)?;
            let (mut run, mut run_begins) = (Vec::with_capacity(RUN_BYTES), self.next);
            for event in events {
                frame::put(&mut run, self.id, self.next, event);
                self.next += 1;
                if run.len() >= RUN_BYTES {
                    self.bytes += run.len() as u64;
                    table.insert(run_begins, run.as_slice())?;
                    run.clear();
                    run_begins = self.next;
                }
            }
            if !run.is_empty() {
                self.bytes += run.len() as u64;
                table.insert(run_begins, run.as_slice())?;
            }
        }
        Ok(transaction.commit()?)
    }
}

/// What a journal's file gives.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// The events by their numbers.
    pub(super) events: BTreeMap<u64, Event>,
    /// What is wrong with the file, if anything.
    pub(super) damage: Vec<String>,
    /// Events that are known to be lost.
    pub(super) missing: u64,
    /// Events that a write left which did not come to its end. Nobody was told that they are kept.
    pub(super) unfinished: usize,
}

/// Reads a journal from its file's bytes.
pub(super) fn contents(id: Uuid, bytes: &[u8]) -> Contents {
    let mut contents = Contents::default();
    let mut found: BTreeMap<u64, &[u8]> = frame::all(bytes, id).map(|f| (f.number, f.content)).collect();
    let runs = stored(bytes).unwrap_or_else(|reason| {
        contents.damage.push(reason);
        Vec::new()
    });
    let mut committed = 0;
    for (first, run) in &runs {
        let (frames, whole) = frames_of(run, id);
        committed = frames.last().map_or(*first, |last| last.number) + 1;
        found.extend(frames.into_iter().map(|frame| (frame.number, frame.content)));
        if !whole {
            contents.damage.push(format!("the record of the events from number {first} on is broken"));
        }
    }
    if !contents.damage.is_empty() {
        // Then the store's word for where the committed ones end is not to be taken.
        committed = committed.max(found.last_key_value().map_or(0, |(number, _)| number + 1));
    }
    contents.missing = committed - found.range(..committed).count() as u64;
    if contents.missing > 0 && contents.damage.is_empty() {
        contents.damage.push("numbers are missing".to_owned());
    }
    contents.unfinished = found.range(committed..).count();
    for (number, content) in found {
        match frame::event(content) {
            Some(event) => drop(contents.events.insert(number, event)),
            None => contents.damage.push(format!("event {number} is of another version")),
        }
    }
    contents
}

/// The frames of a run, and whether there is nothing else in it.
fn frames_of(run: &[u8], id: Uuid) -> (Vec<frame::Frame<'_>>, bool) {
    let (mut frames, mut rest) = (Vec::new(), run);
    while let Some((found, length)) = frame::first(rest, id) {
        frames.push(found);
        rest = &rest[length..];
    }
    (frames, rest.is_empty())
}

/// The runs of frames that the store gives, after it has verified every page. It works on a copy in memory: what it
/// repairs after a crash is not written to the file, which may hold more than it knows.
fn stored(bytes: &[u8]) -> Result<Vec<(u64, Vec<u8>)>, String> {
    let read = || -> Result<_, redb::Error> {
        let copy = InMemoryBackend::new();
        copy.set_len(bytes.len() as u64)?;
        copy.write(0, bytes)?;
        let database = builder().create_with_backend(copy)?;
        let table = match database.begin_read()?.open_table(FRAMES) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            table => table?,
        };
        let runs = table.iter()?.map(|run| run.map(|(first, run)| (first.value(), run.value().to_vec())));
        Ok(Some(runs.collect::<Result<Vec<_>, _>>()?))
    };
    // Of pages that are not what they were, the store may make anything, a panic among them.
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(Some(runs))) => Ok(runs),
        Ok(Ok(None)) => Err("the store has no events in it".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_panic) => Err("the store stopped at what it found".to_owned()),
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

/// Reads `length` bytes block by block; blocks that cannot be read are zeros. Returns how many those are, too.
pub(super) fn read_blocks(
    length: usize,
    read: impl Fn(u64, &mut [u8]) -> io::Result<()>,
) -> (Vec<u8>, usize) {
    let mut bytes = vec![0; length];
    let mut unreadable = 0;
    for (i, block) in bytes.chunks_mut(BLOCK_BYTES).enumerate() {
        if read((i * BLOCK_BYTES) as u64, block).is_err() {
            block.fill(0);
            unreadable += 1;
        }
    }
    (bytes, unreadable)
}
