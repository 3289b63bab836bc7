//! Which journals there are, and what is known of each.

use std::{
    collections::{HashSet, VecDeque},
    io,
    path::PathBuf,
};

use uuid::Uuid;

use super::{
    Drainable,
    accounts::Accounts,
    folder::{FileId, disk_bytes},
    journal::{Contents, Journal},
};

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) active: Option<Active>,
    /// The oldest first.
    pub(super) sealed: VecDeque<Sealed>,
    /// Journals that were found damaged, lost, or not to be opened.
    pub(super) damaged: u64,
    /// Of all journals together.
    pub(super) accounts: Accounts,
}

#[derive(Debug)]
pub(super) struct Active {
    pub(super) journal: Journal,
    pub(super) path: PathBuf,
    /// The file at that path when it was made.
    pub(super) file: FileId,
    pub(super) accounts: Accounts,
}

#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) id: Uuid,
    pub(super) path: PathBuf,
    /// Events that are not drained.
    pub(super) left: u64,
    /// Bytes on the disk.
    pub(super) bytes: u64,
    pub(super) damaged: bool,
    /// It could not be opened once.
    unopened: bool,
    accounts: Accounts,
}

impl Active {
    /// Whether its file still has its name: what is written to another is gone when it is closed.
    fn is_there(&self) -> bool {
        FileId::at(&self.path).is_ok_and(|file| file == self.file)
    }
}

impl State {
    /// Bytes of all journals on the disk.
    pub(super) fn bytes(&self) -> u64 {
        let active = self.active.as_ref().map(|active| {
            // As much as it must have, where the disk does not say.
            disk_bytes(&active.path).unwrap_or_default().max(active.journal.bytes)
        });
        active.unwrap_or_default() + self.sealed.iter().map(|sealed| sealed.bytes).sum::<u64>()
    }

    /// Closes the active journal if its file is gone: another takes its place.
    pub(super) fn leave_gone(&mut self) {
        if let Some(active) = self.active.take_if(|active| !active.is_there()) {
            let (file, events) = (active.path.display(), active.journal.next);
            tracing::error!(%file, events, "the file of the active journal is gone: it takes no more events");
            // It may come back, as where its folder was away.
            if active.journal.next > 0 {
                self.seal(active);
            }
        }
    }

    /// A journal that takes no more events.
    pub(super) fn seal(&mut self, active: Active) {
        let Active { journal, path, accounts, .. } = active;
        let (id, left, at_least) = (journal.id, journal.next, journal.bytes);
        // Closed first: that writes, too.
        drop(journal);
        let bytes = disk_bytes(&path).unwrap_or_default().max(at_least);
        let sealed = Sealed { id, path, left, bytes, damaged: false, unopened: false, accounts };
        self.sealed.push_back(sealed);
    }

    /// A journal that was found in the folder.
    pub(super) fn add_found(&mut self, id: Uuid, path: PathBuf) {
        // Where the disk does not say, it is not read either, which is said.
        let bytes = disk_bytes(&path).unwrap_or_default();
        let accounts = Accounts::default();
        self.sealed.push_back(Sealed { id, path, left: 0, bytes, damaged: false, unopened: false, accounts });
    }

    /// Takes what is in a journal that was found for sent by its accounts' keys, where it names one: who sent it, the
    /// file does not tell.
    pub(super) fn charge(&mut self, journal: &Drainable) {
        let Some(sealed) = self.sealed.iter_mut().find(|sealed| sealed.id == journal.id) else { return };
        for event in journal.events.values().filter(|event| event.payload.api_key_id.is_some()) {
            sealed.accounts.add(event);
            self.accounts.add(event);
        }
    }

    /// The oldest journal but these. Where there is none but the active one, that takes no more events from now on.
    pub(super) fn oldest_but(&mut self, tried: &HashSet<Uuid>) -> Option<Uuid> {
        let oldest = self.sealed.iter().map(|sealed| sealed.id).find(|id| !tried.contains(id));
        if oldest.is_some() {
            return oldest;
        }
        let active = self.active.take_if(|active| active.journal.next > 0)?;
        let id = active.journal.id;
        self.seal(active);
        Some(id)
    }

    /// Notes what was read of a journal; whether it is damaged, and was not known to be.
    pub(super) fn note_read(&mut self, id: Uuid, contents: &Contents) -> bool {
        let Some(sealed) = self.sealed.iter_mut().find(|sealed| sealed.id == id) else { return false };
        sealed.left = contents.events.len() as u64;
        let newly_damaged = !contents.damage.is_empty() && !sealed.damaged;
        self.damaged += u64::from(newly_damaged && !sealed.unopened);
        sealed.damaged |= newly_damaged;
        newly_damaged
    }

    /// Notes that a journal cannot be opened. It may be later: it is tried again.
    pub(super) fn note_unopened(&mut self, id: Uuid, error: &io::Error) {
        if let Some(sealed) = self.sealed.iter_mut().find(|sealed| sealed.id == id && !sealed.unopened) {
            self.damaged += u64::from(!sealed.damaged);
            sealed.unopened = true;
            let (file, events) = (sealed.path.display(), sealed.left);
            tracing::error!(%file, %error, events, "a journal of the spool cannot be opened and is passed over");
        }
    }

    /// Forgets a journal whose file is gone.
    pub(super) fn lose(&mut self, id: Uuid) {
        if let Some(sealed) = self.remove(id) {
            self.damaged += u64::from(!sealed.damaged && !sealed.unopened);
            let (file, events) = (sealed.path.display(), sealed.left);
            tracing::error!(%file, events, "a journal of the spool is lost, with what was not drained of its events");
        }
    }

    /// Forgets a journal.
    pub(super) fn remove(&mut self, id: Uuid) -> Option<Sealed> {
        let position = self.sealed.iter().position(|sealed| sealed.id == id)?;
        let sealed = self.sealed.remove(position)?;
        self.accounts.subtract(&sealed.accounts);
        Some(sealed)
    }
}
