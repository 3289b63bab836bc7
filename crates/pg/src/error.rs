//! What can go wrong, said so that a person knows what to do.

use std::io;
use std::path::{Path, PathBuf};

/// Why a private cluster could not be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No server programs on this machine, and every way of fetching them failed.
    #[error(
        "no PostgreSQL server programs were found{attempts}\n\
         Install them (Debian and Ubuntu: apt-get install postgresql), or name the folder that has `postgres` and \
         `initdb` in PG_BIN"
    )]
    NoBinaries {
        /// What was tried, one indented line each; empty when nothing was.
        attempts: String,
    },

    /// The folder that the caller or `PG_BIN` names has no usable server programs.
    #[error("the PostgreSQL server programs named by PG_BIN cannot be used: {reason}")]
    UnusableBinaries {
        /// What is wrong with them.
        reason: String,
    },

    /// The data was written by a major version that is not installed.
    #[error(
        "the data in {data} was written by PostgreSQL {wanted}, but this machine has {found}; install \
         PostgreSQL {wanted}, or choose another data folder"
    )]
    MajorMismatch {
        /// The data folder.
        data: PathBuf,
        /// The major version that wrote it.
        wanted: u32,
        /// The versions that were found, newest first.
        found: String,
    },

    /// Another process holds the cluster's lock.
    #[error(
        "the data folder {folder} is in use by another run{holder}; stop that one, or choose another data folder"
    )]
    InUse {
        /// The cluster's folder.
        folder: PathBuf,
        /// ` (process N)` when the holder left its number.
        holder: String,
    },

    /// `data` exists in the cluster's folder, but is no PostgreSQL data.
    #[error(
        "{data} exists but holds no PostgreSQL data (no PG_VERSION); remove it, or choose another data folder"
    )]
    NotPostgresData {
        /// The folder in question.
        data: PathBuf,
    },

    /// The data belongs to a user as whom this process cannot run the server.
    #[error("{data} belongs to {owner}, as whom this process cannot run a server; {remedy}")]
    ForeignData {
        /// The data folder.
        data: PathBuf,
        /// Its owner.
        owner: String,
        /// What to do.
        remedy: &'static str,
    },

    /// Run as root, and no unprivileged user exists to run the server.
    #[error("PostgreSQL refuses to run as root, and this machine has neither a user `postgres` nor `nobody`")]
    NoServerUser,

    /// The server's user cannot pass a folder on the way to what it needs.
    #[error(
        "the user {user} cannot enter {blocked}, so no server can run on {path}; choose another data folder"
    )]
    Unreachable {
        /// What the server needs.
        path: PathBuf,
        /// The first folder on the way that is closed.
        blocked: PathBuf,
        /// The server's user.
        user: String,
    },

    /// The short folder for the socket is somebody else's, or open to others.
    #[error(
        "{folder} cannot hold the server's socket: it is not a folder of the user {user} alone; remove it"
    )]
    SocketFolderTaken {
        /// The folder.
        folder: PathBuf,
        /// The server's user.
        user: String,
    },

    /// `initdb` failed.
    #[error("initdb failed:\n{output}")]
    InitFailed {
        /// What it said.
        output: String,
    },

    /// The server ended before it was ready.
    #[error("the PostgreSQL server ended while starting ({status}); its log ends with:\n{log}")]
    EndedEarly {
        /// How it ended.
        status: String,
        /// The last lines of its log.
        log: String,
    },

    /// The server was not ready in time.
    #[error("the PostgreSQL server was not ready after {seconds} s; its log ends with:\n{log}")]
    NotReady {
        /// How long it was waited for.
        seconds: u64,
        /// The last lines of its log.
        log: String,
    },

    /// A server does not end, neither by a fast nor by an immediate shutdown.
    #[error("the PostgreSQL server (process {pid}) does not stop")]
    WillNotStop {
        /// Its process number.
        pid: i32,
    },

    /// The operating system refused something.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: names what was tried on which path.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
