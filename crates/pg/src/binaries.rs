//! Which server programs to use: those named, else the newest installed, else those in the cache.

use crate::account::ServerAccount;
use crate::{Error, Options, Report};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::timeout;

/// The oldest major version that is used; older ones are passed over.
const OLDEST_MAJOR: u32 = 15;
/// How long a program may take to print its version.
const VERSION_LIMIT: Duration = Duration::from_secs(20);

/// A folder with `postgres` and `initdb` that run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Binaries {
    pub(crate) dir: PathBuf,
    pub(crate) version: Version,
}

/// `15.8`; ordered as versions are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Version {
    /// From what `postgres --version` prints: `postgres (PostgreSQL) 15.8 (Debian 15.8-0)`. A development version
    /// (`19devel`) has minor 0.
    fn parse(printed: &str) -> Option<Self> {
        let word = printed.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
        let mut numbers = word.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        let major = numbers.next()?.ok()?;
        let minor = numbers.next().and_then(Result::ok).unwrap_or(0);
        Some(Self { major, minor })
    }
}

/// Finds the programs for data of major version `wanted`, or for new data. `None` when the machine has none at all;
/// `cache` is the folder that [`fetch`](crate::fetch) fills.
pub(crate) async fn find(
    options: &Options,
    cache: &Path,
    account: &ServerAccount,
    wanted: Option<(u32, &Path)>,
    report: Report<'_>,
) -> Result<Option<Binaries>, Error> {
    if let Some(dir) = &options.binaries {
        let named = probe(dir, account).await.map_err(|reason| Error::UnusableBinaries { reason })?;
        return choose(vec![named], Vec::new(), wanted);
    }
    let mut installed = Vec::new();
    for dir in installed_dirs(options) {
        match probe(&dir, account).await {
            Ok(binaries) => installed.push(binaries),
            Err(reason) => report(&format!("passing over a PostgreSQL: {reason}")),
        }
    }
    let cached = cached(cache, account).await?;
    choose(installed, cached, wanted)
}

/// The usable programs in the cache.
pub(crate) async fn cached(cache: &Path, account: &ServerAccount) -> Result<Vec<Binaries>, Error> {
    let mut found = Vec::new();
    for entry in subfolders(cache)? {
        // Dotted names are downloads under way, or broken off.
        let hidden = entry.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if hidden {
            continue;
        }
        if let Some(dir) = find_bin(&entry, 5)? {
            match probe(&dir, account).await {
                Ok(binaries) => found.push(binaries),
                Err(reason) => tracing::debug!(reason, "passing over a cached PostgreSQL"),
            }
        }
    }
    Ok(found)
}

/// The installed ones come before the cached ones, the newest first; but data wants its own major version.
fn choose(
    installed: Vec<Binaries>,
    cached: Vec<Binaries>,
    wanted: Option<(u32, &Path)>,
) -> Result<Option<Binaries>, Error> {
    let newest = |of: &[Binaries], wanted: Option<u32>| {
        of.iter()
            .filter(|it| wanted.is_none_or(|major| it.version.major == major))
            .max_by_key(|it| it.version)
            .cloned()
    };
    let major = wanted.map(|(major, _)| major);
    let chosen = newest(&installed, major).or_else(|| newest(&cached, major));
    match wanted {
        Some((wanted, data)) if chosen.is_none() && !(installed.is_empty() && cached.is_empty()) => {
            let mut versions: Vec<_> = installed.iter().chain(&cached).map(|it| it.version).collect();
            versions.sort_unstable_by(|a, b| b.cmp(a));
            versions.dedup();
            let found = versions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            Err(Error::MajorMismatch { data: data.to_owned(), wanted, found })
        }
        _ => Ok(chosen),
    }
}

/// Checks programs just fetched against the data.
pub(crate) fn suits(binaries: Binaries, wanted: Option<(u32, &Path)>) -> Result<Option<Binaries>, Error> {
    choose(Vec::new(), vec![binaries], wanted)
}

/// `<system>/*/bin`, then the folders of the search path in which both programs really are (links resolved).
fn installed_dirs(options: &Options) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = Vec::new();
    let system =
        subfolders(&options.system_dir).unwrap_or_default().into_iter().map(|version| version.join("bin"));
    let path = options.search_path.as_deref().map(std::env::split_paths).into_iter().flatten();
    for dir in system.chain(path) {
        // A link in /usr/local/bin does not tell where the programs' own files are; its target does.
        let Ok(postgres) = fs::canonicalize(dir.join("postgres")) else {
            continue;
        };
        let Some(real) = postgres.parent().map(Path::to_owned) else {
            continue;
        };
        if has_programs(&real) && !dirs.contains(&real) {
            dirs.push(real);
        }
    }
    dirs
}

/// Whether `dir` has both programs, as programs: a wrapper script may become another user or start another process,
/// and neither is what we would then wait for.
fn has_programs(dir: &Path) -> bool {
    ["postgres", "initdb"].iter().all(|name| {
        let mut start = [0; 2];
        File::open(dir.join(name)).and_then(|mut file| file.read_exact(&mut start)).is_ok() && &start != b"#!"
    })
}

/// The first folder named `bin` below `root`, at most `depth` levels down, that has both programs.
pub(crate) fn find_bin(root: &Path, depth: u32) -> Result<Option<PathBuf>, Error> {
    let bin = root.join("bin");
    if has_programs(&bin) {
        return Ok(Some(bin));
    }
    if depth > 0 {
        for folder in subfolders(root)? {
            if let Some(bin) = find_bin(&folder, depth - 1)? {
                return Ok(Some(bin));
            }
        }
    }
    Ok(None)
}

/// The folders in `root`, by name; none when it does not exist.
fn subfolders(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::io("list", root))?,
    };
    let mut folders = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("list", root))?;
        if entry.path().is_dir() {
            folders.push(entry.path());
        }
    }
    folders.sort();
    Ok(folders)
}

/// Runs both programs as the server's user; the reason why they cannot serve otherwise.
pub(crate) async fn probe(dir: &Path, account: &ServerAccount) -> Result<Binaries, String> {
    if !has_programs(dir) {
        return Err(format!("{} does not have both `postgres` and `initdb`", dir.display()));
    }
    if let Ok(Some(blocked)) = account.blocked_at(dir) {
        return Err(format!(
            "the user {} cannot enter {} to run {}",
            account.name,
            blocked.display(),
            dir.display()
        ));
    }
    print_version(&dir.join("initdb"), account).await?;
    let version = print_version(&dir.join("postgres"), account).await?;
    if version.major < OLDEST_MAJOR {
        return Err(format!("{} is version {version}, older than {OLDEST_MAJOR}", dir.display()));
    }
    Ok(Binaries { dir: dir.to_owned(), version })
}

async fn print_version(program: &Path, account: &ServerAccount) -> Result<Version, String> {
    let mut command = tokio::process::Command::from(account.command(program));
    command.arg("--version").kill_on_drop(true);
    let output = timeout(VERSION_LIMIT, command.output())
        .await
        .map_err(|_| format!("{} --version does not answer", program.display()))?
        .map_err(|error| format!("{} does not run: {error}", program.display()))?;
    let printed = String::from_utf8_lossy(&output.stdout);
    match Version::parse(&printed) {
        Some(version) if output.status.success() => Ok(version),
        _ => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("{} --version fails ({}): {}", program.display(), output.status, said.trim()))
        }
    }
}

#[cfg(test)]
#[path = "binaries_tests.rs"]
mod tests;
