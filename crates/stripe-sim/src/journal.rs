//! The file that keeps the state over restarts: one JSON line per transaction, replayed at start.
//!
//! A line holds all changes of one request, its stored answer included, so a request is in the
//! file wholly or not at all. A torn last line (the process was killed while writing) is dropped.
//! The file is not synced to disk on every line: it survives the process, not a power cut.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use crate::error::Error;
use crate::state::{Change, State};

pub(crate) struct Journal {
    file: File,
    length: u64,
}

impl Journal {
    /// Opens or creates the file and applies what it holds to `state`.
    pub(crate) fn open(path: &Path, state: &mut State) -> Result<Self, Error> {
        let failed = |source| Error::Journal { path: path.to_owned(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Error::JournalInUse { path: path.to_owned() },
            TryLockError::Error(source) => failed(source),
        })?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(failed)?;

        let mut length = 0;
        for (index, line) in content.split_inclusive(|byte| *byte == b'\n').enumerate() {
            if !line.ends_with(b"\n") {
                tracing::warn!(line = index + 1, "the journal's torn last line is dropped");
                break;
            }
            let changes: Vec<Change> = serde_json::from_slice(line)
                .map_err(|source| Error::JournalCorrupt { path: path.to_owned(), line: index + 1, source })?;
            for change in changes {
                state.apply(change);
            }
            length += line.len() as u64;
        }
        let mut journal = Self { file, length };
        journal.rewind().map_err(failed)?;
        Ok(journal)
    }

    /// Writes one transaction. After an error the file holds what it held before.
    pub(crate) fn append(&mut self, changes: &[Change]) -> io::Result<()> {
        let mut line = serde_json::to_vec(changes)?;
        line.push(b'\n');
        if let Err(error) = self.file.write_all(&line) {
            self.rewind()?;
            return Err(error);
        }
        self.length += line.len() as u64;
        Ok(())
    }

    fn rewind(&mut self) -> io::Result<()> {
        self.file.set_len(self.length)?;
        self.file.seek(SeekFrom::Start(self.length))?;
        Ok(())
    }
}
