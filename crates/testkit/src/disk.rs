//! A disk that fails: it stops at any write, refuses to grow, and after a crash has any part of what was not synced.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rand::{Rng, rngs::StdRng};
use redb::StorageBackend;

/// What is written whole or not at all.
pub const SECTOR: usize = 512;

/// What one file has.
#[derive(Debug, Default)]
pub struct File {
    synced: Vec<u8>,
    /// As the process sees it.
    pub current: Vec<u8>,
    unsynced: Vec<Change>,
    /// Changes and syncs until it fails for good, as in a crash; `None`: never.
    pub lives: Option<u32>,
    /// Bytes it may have; a write beyond is cut short and refused.
    pub room: Option<usize>,
}

#[derive(Debug, Clone)]
enum Change {
    Length(usize),
    Write(usize, Vec<u8>),
}

impl Change {
    fn apply(&self, file: &mut Vec<u8>) {
        match self {
            Change::Length(length) => file.resize(*length, 0),
            Change::Write(offset, data) => {
                let end = offset + data.len();
                if file.len() < end {
                    file.resize(end, 0);
                }
                file[*offset..end].copy_from_slice(data);
            }
        }
    }

    /// What a crash may leave of it: any of its sectors.
    fn torn(&self, rng: &mut StdRng) -> Vec<Change> {
        match self {
            Change::Length(_) => rng.random::<bool>().then(|| self.clone()).into_iter().collect(),
            Change::Write(offset, data) => {
                let sectors = data.chunks(SECTOR).enumerate().filter(|_| rng.random());
                sectors.map(|(i, sector)| Change::Write(offset + i * SECTOR, sector.to_vec())).collect()
            }
        }
    }
}

impl File {
    fn change(&mut self, change: Change) -> io::Result<()> {
        self.live()?;
        let (end, data) = match &change {
            Change::Length(length) => (*length, &[][..]),
            Change::Write(offset, data) => (offset + data.len(), data.as_slice()),
        };
        if let Some(room) = self.room.filter(|room| end > *room) {
            let fits = (room + data.len()).saturating_sub(end).min(data.len());
            if let Change::Write(offset, data) = &change {
                self.make(Change::Write(*offset, data[..fits].to_vec()));
            }
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.make(change);
        Ok(())
    }

    fn make(&mut self, change: Change) {
        change.apply(&mut self.current);
        self.unsynced.push(change);
    }

    fn live(&mut self) -> io::Result<()> {
        if let Some(lives) = &mut self.lives {
            *lives = lives.checked_sub(1).ok_or_else(|| io::Error::other("the machine is gone"))?;
        }
        Ok(())
    }

    /// The bytes after a crash: of what was not synced, any part.
    pub fn after_crash(&self, rng: &mut StdRng) -> Vec<u8> {
        let mut file = self.synced.clone();
        for change in self.unsynced.iter().flat_map(|change| change.torn(rng)) {
            change.apply(&mut file);
        }
        file
    }
}

/// The file as the store has it. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Disk(Arc<Mutex<File>>);

impl Disk {
    /// With these bytes, synced.
    pub fn of(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(File { synced: bytes.clone(), current: bytes, ..File::default() })))
    }

    /// The file.
    pub fn file(&self) -> MutexGuard<'_, File> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file().current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = offset as usize;
        let file = self.file();
        let data = file.current.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(data);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file().change(Change::Length(len as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut file = self.file();
        file.live()?;
        file.synced = file.current.clone();
        file.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file().change(Change::Write(offset as usize, data.to_vec()))
    }
}
