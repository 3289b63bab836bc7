//! What a caller may choose.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

/// Where the cluster lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Storage {
    /// In this folder, which is made if need be and outlives the cluster.
    Persistent(PathBuf),
    /// In a temporary folder that goes when the cluster stops.
    Ephemeral,
}

/// How to start a cluster. [`Options::persistent`] and [`Options::ephemeral`] give the usual choices, taken from the
/// environment; every field can be set before [`Cluster::start`](crate::Cluster::start).
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the cluster lives.
    pub storage: Storage,
    /// The folder with `postgres` and `initdb`; nothing else is searched then. From `PG_BIN`.
    pub binaries: Option<PathBuf>,
    /// The folder with one folder per installed major version, as Debian has it.
    pub system_dir: PathBuf,
    /// The folders to search after it, in the form of `PATH`.
    pub search_path: Option<OsString>,
    /// Where fetched server programs are kept: `$XDG_CACHE_HOME/nexus`, else `~/.cache/nexus`.
    pub cache_dir: Option<PathBuf>,
    /// Whether server programs may be fetched from the network when none are found.
    pub fetch: bool,
    /// As root the server runs as another user. What that user cannot reach in the asked place (a data folder or a
    /// cache below `/root`, say) goes below this folder instead.
    pub fallback_dir: PathBuf,
    /// Server settings, as `postgres -c name=value` takes them. Where the server listens cannot be changed.
    pub settings: Vec<(String, String)>,
}

impl Options {
    /// A cluster in `folder` that survives restarts.
    pub fn persistent(folder: impl Into<PathBuf>) -> Self {
        Self::from_env(Storage::Persistent(folder.into()))
    }

    /// A throw-away cluster.
    pub fn ephemeral() -> Self {
        Self::from_env(Storage::Ephemeral)
    }

    /// Adds a server setting.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    fn from_env(storage: Storage) -> Self {
        let folder = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self {
            storage,
            binaries: folder("PG_BIN"),
            system_dir: PathBuf::from("/usr/lib/postgresql"),
            search_path: env::var_os("PATH"),
            cache_dir: folder("XDG_CACHE_HOME")
                .or_else(|| folder("HOME").map(|home| home.join(".cache")))
                .map(|cache| cache.join("nexus")),
            fetch: true,
            fallback_dir: PathBuf::from("/var/lib/nexus"),
            settings: Vec::new(),
        }
    }
}
