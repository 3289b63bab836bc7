//! The cluster's own folder: where it is, who holds it, where the server's socket goes.
//!
//! ```text
//! <folder>/lock         held (flock) for as long as a run uses the cluster
//!          server.log   what the server says, anew with each start
//!          data/        PGDATA, of the server's user
//!          socket/      0700, of the server's user; elsewhere when its path is too long for a socket
//! ```

use crate::account::ServerAccount;
use crate::{Error, Report, leftover};
use nix::unistd::{geteuid, mkdtemp};
use sha2::{Digest, Sha256};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Names of throw-away clusters start so; the template's dotted form is one whose lock is not yet held.
const EPHEMERAL: &str = "nexus-pg-";
/// A socket's address has 108 bytes, the last of which is a zero.
const LONGEST_SOCKET_PATH: usize = 107;
const SOCKET_NAME: &str = "/.s.PGSQL.5432";

/// A cluster's folder, locked. Dropping it removes a throw-away one.
#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
    ephemeral: bool,
    // Last, so that the lock is let go after everything else.
    _lock: File,
}

impl Folder {
    /// Makes (if need be) and locks the persistent folder at `asked`.
    pub(crate) fn persistent(asked: &Path, fallback: &Path, report: Report<'_>) -> Result<Self, Error> {
        let asked = std::path::absolute(asked).map_err(Error::io("resolve", asked))?;
        let root = settle(&asked, fallback, report)?;
        let lock = lock(&root)?;
        Ok(Self { root, ephemeral: false, _lock: lock })
    }

    /// Makes and locks a throw-away folder, after clearing those that killed runs left.
    pub(crate) async fn ephemeral(report: Report<'_>) -> Result<Self, Error> {
        let account = ServerAccount::for_new_data()?;
        let base = temporary_base(&account)?;
        sweep(&base, report).await?;
        let made = make_unique(&base, &format!(".{EPHEMERAL}"))?;
        let lock = lock(&made)?;
        open_to(&made, &account)?;
        // Only now may a sweep of another run see it: the lock says that it is in use.
        let name = made.file_name().expect("mkdtemp names a file in its folder").as_bytes();
        let root = base.join(std::ffi::OsStr::from_bytes(&name[1..]));
        fs::rename(&made, &root).map_err(Error::io("rename", &made))?;
        Ok(Self { root, ephemeral: true, _lock: lock })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn is_ephemeral(&self) -> bool {
        self.ephemeral
    }

    /// PGDATA.
    pub(crate) fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.root.join("server.log")
    }

    /// Makes the folder of the server's socket, which only its user may enter.
    pub(crate) fn make_socket_dir(&self, account: &ServerAccount) -> Result<PathBuf, Error> {
        let path = socket_dir(&self.root);
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => account.give(&path)?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                // Below /tmp anybody could have made it.
                let metadata = fs::symlink_metadata(&path).map_err(Error::io("look at", &path))?;
                let private =
                    metadata.is_dir() && metadata.uid() == account.uid && metadata.mode() & 0o077 == 0;
                if !private {
                    return Err(Error::SocketFolderTaken { folder: path, user: account.name.clone() });
                }
            }
            Err(error) => return Err(Error::io("make", &path)(error)),
        }
        Ok(path)
    }

    /// Removes what needs no keeping: the socket's folder, and everything of a throw-away cluster. The server is down.
    pub(crate) fn clear(&self) -> Result<(), Error> {
        remove_tree(&socket_dir(&self.root))?;
        if self.ephemeral {
            remove_tree(&self.root)?;
        }
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            tracing::warn!(folder = %self.root.display(), %error, "cannot clear the private PostgreSQL's folder");
        }
    }
}

/// Finds or makes the folder itself. Where the server's user could not reach it, the folder goes below `fallback` and
/// a symbolic link takes its place, so that the next run finds it again and removing the link starts from nothing.
fn settle(asked: &Path, fallback: &Path, report: Report<'_>) -> Result<PathBuf, Error> {
    // A link whose target is gone stands for a cluster that is gone.
    if fs::symlink_metadata(asked).is_ok_and(|it| it.is_symlink()) && !asked.exists() {
        fs::remove_file(asked).map_err(Error::io("remove the dangling link", asked))?;
    }
    let account = ServerAccount::for_data(&asked.join("data"))?;
    let Some(blocked) = account.blocked_at(asked)? else {
        let new = !asked.exists();
        make_dirs(asked)?;
        if new && !account.steps_down {
            fs::set_permissions(asked, Permissions::from_mode(0o700)).map_err(Error::io("close", asked))?;
        }
        return fs::canonicalize(asked).map_err(Error::io("resolve", asked));
    };

    let unreachable =
        Error::Unreachable { path: asked.to_owned(), blocked: blocked.clone(), user: account.name.clone() };
    if account.blocked_at(fallback)?.is_some() {
        return Err(unreachable);
    }
    match fs::remove_dir(asked) {
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => return Err(unreachable),
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(Error::io("replace", asked)(error));
        }
        _ => {}
    }
    if let Some(parent) = asked.parent() {
        make_dirs(parent)?;
    }
    make_dirs(fallback)?;
    let elsewhere = make_unique(fallback, "pg-")?;
    open_to(&elsewhere, &account)?;
    match symlink(&elsewhere, asked) {
        Ok(()) => report(&format!(
            "{} is closed to the user {}, who runs PostgreSQL for root: the data goes to {} ({} links there)",
            blocked.display(),
            account.name,
            elsewhere.display(),
            asked.display()
        )),
        // Another run was faster: the lock decides between the two.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => remove_tree(&elsewhere)?,
        Err(error) => return Err(Error::io("link", asked)(error)),
    }
    fs::canonicalize(asked).map_err(Error::io("resolve", asked))
}

/// Takes the lock, which the operating system lets go when this process ends, however it ends.
fn lock(root: &Path) -> Result<File, Error> {
    let path = root.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(Error::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder).map_err(Error::io("read", &path))?;
            let holder = match holder.trim() {
                "" => String::new(),
                pid => format!(" (process {pid})"),
            };
            return Err(Error::InUse { folder: root.to_owned(), holder });
        }
        Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(Error::io("write", &path))?;
    Ok(file)
}

/// The first usual place for temporary files that the server's user can reach.
fn temporary_base(account: &ServerAccount) -> Result<PathBuf, Error> {
    let asked = std::env::temp_dir();
    let mut blocked = None;
    for base in [asked.clone(), PathBuf::from("/tmp"), PathBuf::from("/var/tmp")] {
        match account.blocked_at(&base)? {
            None if base.is_dir() => {
                return fs::canonicalize(&base).map_err(Error::io("resolve", &base));
            }
            None => {}
            Some(folder) => {
                blocked.get_or_insert(folder);
            }
        }
    }
    Err(Error::Unreachable {
        blocked: blocked.unwrap_or_else(|| asked.clone()),
        path: asked,
        user: account.name.clone(),
    })
}

/// Stops and removes throw-away clusters whose runs were killed: ours, and locked by nobody.
async fn sweep(base: &Path, report: Report<'_>) -> Result<(), Error> {
    for entry in fs::read_dir(base).map_err(Error::io("list", base))? {
        let entry = entry.map_err(Error::io("list", base))?;
        let root = entry.path();
        let ours = entry.file_name().to_string_lossy().starts_with(EPHEMERAL)
            && fs::symlink_metadata(&root).is_ok_and(|it| it.is_dir() && it.uid() == geteuid().as_raw());
        if !ours {
            continue;
        }
        // What cannot be cleared is in nobody's way but takes room: say so, and start.
        if let Err(error) = clear_abandoned(&root, report).await {
            report(&format!("cannot clear {}, which a killed run left: {error}", root.display()));
        }
    }
    Ok(())
}

/// Clears one of them, unless its run is alive.
async fn clear_abandoned(root: &Path, report: Report<'_>) -> Result<(), Error> {
    let path = root.join("lock");
    let lock = match File::open(&path) {
        // Its own run is just removing it.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.map_err(Error::io("open", &path))?,
    };
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(()),
        Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
    }
    leftover::stop(&root.join("data"), report).await?;
    Folder { root: root.to_owned(), ephemeral: true, _lock: lock }.clear()?;
    report(&format!("removed {}, which a killed run left", root.display()));
    Ok(())
}

/// Lets the server's user through to what lies in `root`, and nobody else list it.
fn open_to(root: &Path, account: &ServerAccount) -> Result<(), Error> {
    let mode = if account.steps_down { 0o711 } else { 0o700 };
    fs::set_permissions(root, Permissions::from_mode(mode)).map_err(Error::io("open", root))
}

/// The socket's folder for the cluster in `root`: inside it, or in `/tmp` under a name made from it when the path
/// would be too long for a socket or has characters that PostgreSQL's list of folders gives a meaning.
fn socket_dir(root: &Path) -> PathBuf {
    let inside = root.join("socket");
    let bytes = inside.as_os_str().as_bytes();
    let plain = bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+@=~".contains(byte));
    if plain && bytes.len() + SOCKET_NAME.len() <= LONGEST_SOCKET_PATH {
        return inside;
    }
    let digest = Sha256::digest(root.as_os_str().as_bytes());
    Path::new("/tmp").join(format!("nexus-{}", hex::encode(&digest[..8])))
}

fn make_unique(base: &Path, prefix: &str) -> Result<PathBuf, Error> {
    let template = base.join(format!("{prefix}XXXXXX"));
    mkdtemp(&template).map_err(|error| Error::io("make", &template)(error.into()))
}

/// Makes the missing folders of `path`, passable for everybody whatever the umask.
pub(crate) fn make_dirs(path: &Path) -> Result<(), Error> {
    let missing: Vec<_> = path.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    for folder in missing.into_iter().rev() {
        match fs::create_dir(folder) {
            Ok(()) => fs::set_permissions(folder, Permissions::from_mode(0o755))
                .map_err(Error::io("open", folder))?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io("make", folder)(error)),
        }
    }
    Ok(())
}

pub(crate) fn remove_tree(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{LONGEST_SOCKET_PATH, SOCKET_NAME, socket_dir};
    use std::os::unix::ffi::OsStrExt;
    use std::path::{Path, PathBuf};

    #[test]
    fn the_socket_stays_inside_up_to_the_last_byte_that_fits() {
        let room = LONGEST_SOCKET_PATH - SOCKET_NAME.len() - "/socket".len();
        let fits = PathBuf::from(format!("/{}", "d".repeat(room - 1)));
        assert_eq!(socket_dir(&fits), fits.join("socket"));
        let too_long = PathBuf::from(format!("/{}", "d".repeat(room)));
        let short = socket_dir(&too_long);
        assert!(short.starts_with("/tmp"), "{short:?}");
        assert!(short.as_os_str().as_bytes().len() + SOCKET_NAME.len() <= LONGEST_SOCKET_PATH);
        assert_ne!(short, socket_dir(&too_long.join("other")), "one folder per cluster");
    }

    #[test]
    fn a_path_that_postgres_would_split_is_not_used() {
        assert!(socket_dir(Path::new("/data/a,b")).starts_with("/tmp"));
        assert!(socket_dir(Path::new("/data/a b")).starts_with("/tmp"));
    }
}
