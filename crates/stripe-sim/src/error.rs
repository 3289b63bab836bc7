//! Why the stand-in could not start or had to stop. Errors of the API itself are
//! `http::error::ApiError`.

use std::io;
use std::path::PathBuf;

/// Why [`serve`](crate::serve) failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The journal file could not be opened, read or repaired.
    #[error("journal {}: {source}", path.display())]
    Journal {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has the journal open.
    #[error("journal {} is in use by another process", path.display())]
    JournalInUse {
        /// The file.
        path: PathBuf,
    },
    /// A line of the journal other than a torn last one cannot be read.
    #[error("journal {}, line {line}: {source}", path.display())]
    JournalCorrupt {
        /// The file.
        path: PathBuf,
        /// The line's number, from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The journal could not be written.
    #[error("writing the journal: {0}")]
    Write(io::Error),
    /// The task that sends webhooks panicked.
    #[error("webhooks: {0}")]
    Panicked(tokio::task::JoinError),
    /// The listener failed.
    #[error("serving: {0}")]
    Serve(io::Error),
}
