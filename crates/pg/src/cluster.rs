//! A running private cluster: start to stop, and its URL.

use crate::account::ServerAccount;
use crate::binaries::{self, Binaries};
use crate::folder::Folder;
use crate::server::{self, Server};
use crate::{Error, Options, Report, Storage, fetch, leftover};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::id as own_pid;

/// A running PostgreSQL of our own, in a folder that no other run may use meanwhile.
///
/// [`Cluster::stop`] ends it. Dropping it does the same, but blocks the thread until the server is down and can only
/// log what goes wrong. A run that is killed leaves the server; the next start on the folder (for a throw-away
/// cluster: the next throw-away start) stops it.
#[derive(Debug)]
pub struct Cluster {
    // In the order in which they are dropped: the server ends before its folder goes and the lock is let go.
    server: Server,
    folder: Folder,
    socket_dir: PathBuf,
    binaries: Binaries,
    account: ServerAccount,
    settings: Vec<(String, String)>,
    version: String,
    created: bool,
}

impl Cluster {
    /// Starts a cluster and waits until it takes connections; the data is made when there is none. May download the
    /// server programs, see [`Options::fetch`]. Dropping the future half-way leaves nothing running.
    ///
    /// # Errors
    /// Every variant of [`Error`]; each says what to do.
    pub async fn start(options: Options, report: Report<'_>) -> Result<Self, Error> {
        let folder = match &options.storage {
            Storage::Persistent(asked) => Folder::persistent(asked, &options.fallback_dir, report)?,
            Storage::Ephemeral => Folder::ephemeral(report).await?,
        };
        let data = folder.data();
        leftover::stop(&data, report).await?;
        let account = ServerAccount::for_data(&data)?;
        let written_by = data_version(&data)?;
        let wanted = written_by.map(|major| (major, data.as_path()));
        let binaries = programs(&options, &account, wanted, report).await?;
        tracing::debug!(run = own_pid(), dir = %binaries.dir.display(), version = %binaries.version, "PostgreSQL chosen");

        let created = written_by.is_none();
        if created {
            server::init(&folder, &binaries, &account, report).await?;
        }
        let socket_dir = folder.make_socket_dir(&account)?;
        let mut server = Server::spawn(&folder, &socket_dir, &binaries, &account, &options.settings)?;
        server.until_ready(&folder).await?;
        let version = binaries.version.to_string();
        Ok(Self {
            server,
            folder,
            socket_dir,
            binaries,
            account,
            settings: options.settings,
            version,
            created,
        })
    }

    /// Kills the server as a crash would: nothing is finished, rolled back or written. [`Cluster::restart`] brings it
    /// back.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn kill(&mut self) -> Result<(), Error> {
        self.server.kill()
    }

    /// Starts a server that was killed, or ended by itself, again on the same data and at the same URL, and waits
    /// until it takes connections: PostgreSQL has recovered by then. One that still runs is shut down first.
    ///
    /// # Errors
    /// [`Error::EndedEarly`], [`Error::NotReady`], [`Error::WillNotStop`], [`Error::Io`].
    pub async fn restart(&mut self) -> Result<(), Error> {
        // Its processes see for themselves that the postmaster is gone; not all of them at once.
        leftover::stop(&self.folder.data(), &|_| {}).await?;
        self.server =
            Server::spawn(&self.folder, &self.socket_dir, &self.binaries, &self.account, &self.settings)?;
        self.server.until_ready(&self.folder).await
    }

    /// The URL of `database` for the superuser `postgres`, as sqlx and libpq read it. The database need not exist.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        let host = self.socket_dir.to_string_lossy();
        // Port and TLS would else come from the environment (PGPORT, PGSSLMODE).
        format!(
            "postgres:///{}?host={}&port=5432&user=postgres&sslmode=disable",
            percent_encode(database),
            percent_encode(&host)
        )
    }

    /// Whether this start made the data: then nobody else's is in it.
    #[must_use]
    pub fn created(&self) -> bool {
        self.created
    }

    /// The folder it lives in. Not always the one asked for, see [`Options::fallback_dir`].
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.root()
    }

    /// The server's version, such as `15.8`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The server's process number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.server.pid()
    }

    /// Shuts the server down (open transactions are rolled back) and removes a throw-away cluster's folder. Bounded:
    /// 60 s for the fast shutdown, then 10 s for the immediate one.
    ///
    /// # Errors
    /// [`Error::WillNotStop`], [`Error::Io`].
    pub async fn stop(mut self) -> Result<(), Error> {
        let stopping = tokio::task::spawn_blocking(move || {
            self.server.shut_down()?;
            self.folder.clear()
        });
        match stopping.await {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}

/// The server programs: found, else fetched.
async fn programs(
    options: &Options,
    account: &ServerAccount,
    wanted: Option<(u32, &Path)>,
    report: Report<'_>,
) -> Result<Binaries, Error> {
    // A cache below /root is closed to the server's user.
    let cache = match &options.cache_dir {
        Some(dir) if account.blocked_at(dir)?.is_none() => dir.clone(),
        _ => options.fallback_dir.join("cache"),
    };
    let cache = cache.join("postgresql");
    if let Some(found) = binaries::find(options, &cache, account, wanted, report).await? {
        return Ok(found);
    }
    if options.fetch {
        let fetched = fetch::fetch(&cache, account, report).await?;
        if let Some(suitable) = binaries::suits(fetched, wanted)? {
            return Ok(suitable);
        }
    }
    Err(Error::NoBinaries { attempts: String::new() })
}

/// The major version that wrote the data; `None` when there is none yet.
fn data_version(data: &Path) -> Result<Option<u32>, Error> {
    let file = data.join("PG_VERSION");
    match fs::read_to_string(&file) {
        Ok(text) => {
            text.trim().parse().map(Some).map_err(|_| Error::NotPostgresData { data: data.to_owned() })
        }
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("read", &file)(error)),
        Err(_) if data.exists() => Err(Error::NotPostgresData { data: data.to_owned() }),
        Err(_) => Ok(None),
    }
}

/// Percent-encodes all but what RFC 3986 calls unreserved.
fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
