//! What a client knows, on disk before it goes on, so that killing it loses nothing: a call before it is sent,
//! an acknowledgement as soon as it is there. The operating system has what was written once `write` returns,
//! whatever becomes of the process.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    sync::Mutex,
};

use anyhow::{Context, Result};
use nexus_proto::usage::v1::EventOutcome;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{requests::Way, workload::Call};

/// Of so many events and more a batch is large: usage-svc copies them into the log.
const LARGE: usize = 1_001;

/// A line of the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Entry {
    /// A process of the client begins; `recovered`: events that it found in its disk buffer.
    Begin { recovered: u64 },
    /// The call is about to be sent for the first time.
    Sent(Call),
    /// So many events were answered by one request.
    Heard { way: Way, events: usize },
    /// It is acknowledged; `new`: as counted by that request, not as a duplicate.
    Acknowledged { id: Uuid, new: bool },
    /// It is refused for good.
    Refused { id: Uuid, reason: String },
    /// The server did what it must not.
    Violation(String),
}

/// What a call was told.
pub(crate) fn answered(id: Uuid, outcome: EventOutcome, reason: &str) -> Entry {
    match outcome {
        EventOutcome::Accepted => Entry::Acknowledged { id, new: true },
        EventOutcome::Duplicate => Entry::Acknowledged { id, new: false },
        outcome => Entry::Refused { id, reason: format!("{} {reason}", outcome.as_str_name()) },
    }
}

/// The journal of a client, written to.
pub(crate) struct Journal(Mutex<File>);

impl Journal {
    /// Goes on where the last process was killed; a line that it did not finish is no entry.
    pub(crate) fn open(path: &Path) -> Result<(Self, History)> {
        let history = History::read(path)?;
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        file.set_len(history.whole_bytes)?;
        Ok((Self(Mutex::new(file)), history))
    }

    /// Writes entries, all in one.
    pub(crate) fn note(&self, entries: &[Entry]) -> Result<()> {
        let mut lines = Vec::new();
        for entry in entries {
            serde_json::to_writer(&mut lines, entry)?;
            lines.push(b'\n');
        }
        let mut file = self.0.lock().expect("nothing panics while it holds this");
        file.write_all(&lines).context("writing the journal")
    }
}

/// What became of a call.
#[derive(Debug, Clone)]
pub(crate) struct Fate {
    pub(crate) call: Call,
    pub(crate) acknowledged: bool,
    /// Acknowledgements as newly counted; more than one is a double count.
    pub(crate) counted: u32,
    pub(crate) refused: Option<String>,
}

impl Fate {
    /// Whether an answer is still to come.
    pub(crate) fn is_open(&self) -> bool {
        !self.acknowledged && self.refused.is_none()
    }
}

/// A journal, read.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) fates: BTreeMap<Uuid, Fate>,
    pub(crate) violations: Vec<String>,
    /// Processes that wrote it.
    pub(crate) processes: u32,
    /// Acknowledgements as counted before.
    pub(crate) duplicates: u32,
    /// Events found in disk buffers.
    pub(crate) recovered: u64,
    /// Events that were answered in large batches, which are copied into the log.
    pub(crate) large: usize,
    /// Events that were answered over streams.
    pub(crate) streamed: usize,
    whole_bytes: u64,
}

impl History {
    /// The journal's path of a client.
    pub(crate) fn path(folder: &Path, client: u32) -> PathBuf {
        folder.join(format!("client-{client}.journal"))
    }

    /// Reads a journal; there may be none yet.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        let mut history = Self::default();
        for line in bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
            history.whole_bytes += line.len() as u64;
            history.take(serde_json::from_slice(line).context("reading a journal")?)?;
        }
        Ok(history)
    }

    /// Calls that have no answer yet.
    pub(crate) fn open(&self) -> Vec<Call> {
        self.fates.values().filter(|fate| fate.is_open()).map(|fate| fate.call.clone()).collect()
    }

    fn take(&mut self, entry: Entry) -> Result<()> {
        match entry {
            Entry::Begin { recovered } => {
                self.processes += 1;
                self.recovered += recovered;
            }
            Entry::Sent(call) => {
                let fate = Fate { call, acknowledged: false, counted: 0, refused: None };
                self.fates.insert(fate.call.id, fate);
            }
            Entry::Heard { way: Way::Batch, events: events @ LARGE.. } => self.large += events,
            Entry::Heard { way: Way::Stream, events } => self.streamed += events,
            Entry::Heard { .. } => {}
            Entry::Acknowledged { id, new } => {
                let fate = self.fate(id)?;
                fate.acknowledged = true;
                fate.counted += u32::from(new);
                self.duplicates += u32::from(!new);
            }
            Entry::Refused { id, reason } => self.fate(id)?.refused = Some(reason),
            Entry::Violation(what) => self.violations.push(what),
        }
        Ok(())
    }

    fn fate(&mut self, id: Uuid) -> Result<&mut Fate> {
        self.fates.get_mut(&id).with_context(|| format!("the journal answers {id}, which was not sent"))
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn an_unfinished_line_is_no_entry_and_the_next_process_goes_on() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("journal");
        let mut rng = StdRng::seed_from_u64(1);
        let calls: Vec<Call> = (0..2).map(|_| Call::random(&mut rng)).collect();
        let (journal, history) = Journal::open(&path)?;
        assert!(history.fates.is_empty());
        journal.note(&[
            Entry::Begin { recovered: 0 },
            Entry::Sent(calls[0].clone()),
            Entry::Sent(calls[1].clone()),
        ])?;
        let acknowledged = |call: &Call| Entry::Acknowledged { id: call.id, new: true };
        journal.note(&[acknowledged(&calls[0])])?;
        let whole = std::fs::read(&path)?;
        let mut torn = whole.clone();
        torn.extend_from_slice(&serde_json::to_vec(&acknowledged(&calls[1]))?);
        std::fs::write(&path, &torn)?;

        let (journal, history) = Journal::open(&path)?;
        assert_eq!(std::fs::read(&path)?, whole);
        let fate = |call: &Call| (history.fates[&call.id].call == *call, history.fates[&call.id].is_open());
        assert_eq!((fate(&calls[0]), fate(&calls[1])), ((true, false), (true, true)));
        journal.note(&[Entry::Begin { recovered: 0 }, acknowledged(&calls[1])])?;
        let history = History::read(&path)?;
        assert_eq!((history.processes, history.fates[&calls[1].id].counted), (2, 1));
        Ok(())
    }
}
