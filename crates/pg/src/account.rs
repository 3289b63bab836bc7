//! Which operating-system user runs the server. PostgreSQL refuses root, so root steps down.

use crate::Error;
use nix::unistd::{Uid, User, getegid, geteuid};
use std::env;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The user that runs `initdb` and the server.
#[derive(Debug, Clone)]
pub(crate) struct ServerAccount {
    pub(crate) name: String,
    pub(crate) uid: u32,
    gid: u32,
    /// Whether this process is root and becomes that user for the server.
    pub(crate) steps_down: bool,
}

impl ServerAccount {
    /// The user for a cluster whose data is, or will be, in `data`: this process's own; as root the owner of the
    /// data, or for new data `postgres`, else `nobody`.
    pub(crate) fn for_data(data: &Path) -> Result<Self, Error> {
        let owner = match fs::metadata(data) {
            Ok(metadata) => Some((metadata.uid(), metadata.gid())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io("look at", data)(error)),
        };
        let own_uid = geteuid();
        match owner {
            Some((0, _)) if own_uid.is_root() => Err(Error::ForeignData {
                data: data.to_owned(),
                owner: "root".to_owned(),
                remedy: "PostgreSQL refuses to run as root: give the folder to another user, or choose another",
            }),
            Some((uid, gid)) if own_uid.is_root() => {
                Ok(Self { name: user_name(uid), uid, gid, steps_down: true })
            }
            None if own_uid.is_root() => Self::unprivileged(),
            Some((uid, _)) if uid != own_uid.as_raw() => Err(Error::ForeignData {
                data: data.to_owned(),
                owner: user_name(uid),
                remedy: "run as that user, or choose another data folder",
            }),
            _ => Ok(Self {
                name: user_name(own_uid.as_raw()),
                uid: own_uid.as_raw(),
                gid: getegid().as_raw(),
                steps_down: false,
            }),
        }
    }

    /// The user for new data.
    pub(crate) fn for_new_data() -> Result<Self, Error> {
        Self::for_data(Path::new("/nonexistent/data"))
    }

    fn unprivileged() -> Result<Self, Error> {
        ["postgres", "nobody"]
            .into_iter()
            .find_map(|name| User::from_name(name).ok().flatten())
            .map(|user| Self {
                name: user.name,
                uid: user.uid.as_raw(),
                gid: user.gid.as_raw(),
                steps_down: true,
            })
            .ok_or(Error::NoServerUser)
    }

    /// A command that runs as this user, in a process group of its own, so that a terminal's Ctrl-C reaches only us
    /// and we decide when the server stops. Of the environment, libpq's `PG…` variables would change what it does.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        // Our own working folder may be closed to that user.
        command.current_dir("/").stdin(Stdio::null()).process_group(0);
        if self.steps_down {
            // The standard library drops the supplementary groups along with root.
            command.uid(self.uid).gid(self.gid);
        }
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command
    }

    /// Gives `path`, which root made, to this user.
    pub(crate) fn give(&self, path: &Path) -> Result<(), Error> {
        if self.steps_down {
            chown(path, Some(self.uid), Some(self.gid)).map_err(Error::io("give away", path))?;
        }
        Ok(())
    }

    /// The first folder on the way to (and including) `path` that this user cannot enter. What does not exist yet is
    /// not in the way. Only asked of a user that is not ourselves; access lists beyond the mode are not seen.
    pub(crate) fn blocked_at(&self, path: &Path) -> Result<Option<PathBuf>, Error> {
        if !self.steps_down {
            return Ok(None);
        }
        let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
        let existing = fs::canonicalize(existing).map_err(Error::io("resolve", existing))?;
        let mut from_root: Vec<_> = existing.ancestors().collect();
        from_root.reverse();
        for folder in from_root {
            let metadata = fs::metadata(folder).map_err(Error::io("look at", folder))?;
            if !may_enter(metadata.mode(), metadata.uid(), metadata.gid(), self.uid, self.gid) {
                return Ok(Some(folder.to_owned()));
            }
        }
        Ok(None)
    }
}

/// Whether a user with one group may enter a folder, by the folder's mode and owner.
fn may_enter(mode: u32, owner: u32, group: u32, uid: u32, gid: u32) -> bool {
    let bit = match () {
        () if owner == uid => 0o100,
        () if group == gid => 0o010,
        () => 0o001,
    };
    mode & bit != 0
}

fn user_name(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => format!("user {uid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::may_enter;

    #[test]
    fn only_the_bit_of_ones_own_class_counts() {
        assert!(may_enter(0o700, 5, 6, 5, 9));
        assert!(!may_enter(0o077, 5, 6, 5, 6), "the owner is not let in by the group's or others' bit");
        assert!(may_enter(0o710, 5, 6, 7, 6));
        assert!(!may_enter(0o701, 5, 6, 7, 6));
        assert!(may_enter(0o711, 5, 6, 7, 8));
        assert!(!may_enter(0o700, 0, 0, 7, 8));
    }
}
