//! Files of the spool's folder.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use uuid::Uuid;

use super::journal::{self, Contents};

/// What a file system counts files in.
const BLOCK_BYTES: u64 = 512;

/// Which file it is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    number: u64,
}

impl FileId {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), number: metadata.ino() }
    }

    /// Of the file that has this name now.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        fs::metadata(path).map(|metadata| Self::of(&metadata))
    }
}

/// Reads a journal that takes no more events.
pub(super) fn read_file(id: Uuid, path: &Path) -> io::Result<Contents> {
    let file = File::open(path)?;
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let (bytes, unreadable) = journal::read_blocks(length, |at, block| file.read_exact_at(block, at));
    let mut contents = journal::contents(id, &bytes);
    if unreadable > 0 {
        contents.damage.push(format!("{unreadable} blocks cannot be read"));
    }
    Ok(contents)
}

/// How a file is opened that may have to be made.
pub(super) fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options
}

/// The journal that a file is of, by its name.
pub(super) fn id_of(path: &Path) -> Option<Uuid> {
    path.file_stem()?.to_str()?.parse().ok()
}

/// What a file takes on the disk: it may have holes.
pub(super) fn disk_bytes(path: &Path) -> io::Result<u64> {
    Ok(fs::metadata(path)?.blocks() * BLOCK_BYTES)
}

/// Removes a file, unless it is gone already.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })
}

/// Files that were made, renamed and removed are so after a crash, too.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
