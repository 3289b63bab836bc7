//! What became of a seed, and of all of them.

use std::{borrow::Cow, collections::BTreeMap};

use crate::script::Fault;

/// How often each kind of fault struck.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tally(BTreeMap<Cow<'static, str>, u32>);

impl Tally {
    /// Counts a fault; that a fault ends is none.
    pub(crate) fn note(&mut self, fault: Fault) {
        let kind = match fault {
            Fault::SwallowCommit => "answer of a commit lost",
            Fault::CutTransaction => "connection cut in a transaction",
            Fault::LoseCommit => "commit lost before the database",
            Fault::KillReplica => "replica killed",
            Fault::RestartReplica => "replica restarted",
            Fault::PauseReplica { .. } => "replica stopped (SIGSTOP)",
            Fault::Partition { .. } => "replica cut off from the database",
            Fault::KillDatabase => "database killed",
            Fault::KillClient => "client killed",
            Fault::Recover(_) | Fault::End => return,
        };
        self.add(kind, 1);
    }

    /// Counts something else.
    pub(crate) fn add(&mut self, kind: impl Into<Cow<'static, str>>, times: u32) {
        if times > 0 {
            *self.0.entry(kind.into()).or_default() += times;
        }
    }

    fn merge(&mut self, other: &Tally) {
        other.0.iter().for_each(|(kind, times)| self.add(kind.clone(), *times));
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kinds: Vec<String> = self.0.iter().map(|(kind, times)| format!("{kind} {times}")).collect();
        f.write_str(&kinds.join(", "))
    }
}

/// What became of a seed.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) tally: Tally,
    /// What was done, for people.
    pub(crate) done: String,
    /// Each invariant that does not hold, with the difference.
    pub(crate) failures: Vec<String>,
    /// It was not run, for want of something.
    left_out: bool,
}

impl Outcome {
    /// Of a seed that came to its end.
    pub(crate) fn done(tally: Tally, done: String, failures: Vec<String>) -> Self {
        Self { tally, done, failures, left_out: false }
    }

    /// Of a seed that was not run; why.
    pub(crate) fn left_out(why: &str) -> Self {
        Self { tally: Tally::default(), done: why.to_owned(), failures: Vec::new(), left_out: true }
    }

    /// A seed that did not come to its end.
    pub(crate) fn failed(tally: Tally, failure: String) -> Self {
        Self::done(tally, "not finished".to_owned(), vec![failure])
    }
}

/// The seeds of a run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    tally: Tally,
    seeds: u32,
    left_out: u32,
    failed: Vec<String>,
}

impl Report {
    /// Tells of a seed and adds it up; `arguments` run it again.
    pub(crate) fn add(&mut self, seed: u64, seconds: f64, outcome: &Outcome, arguments: String) {
        if outcome.left_out {
            println!("seed {seed}: LEFT OUT ({})", outcome.done);
            self.left_out += 1;
            return;
        }
        let word = if outcome.failures.is_empty() { "holds" } else { "FAILED" };
        println!("seed {seed}: {word} ({seconds:.1} s, {}; {})", outcome.done, outcome.tally);
        for failure in &outcome.failures {
            println!("seed {seed}:   {failure}");
        }
        self.tally.merge(&outcome.tally);
        self.seeds += 1;
        if !outcome.failures.is_empty() {
            self.failed.push(arguments);
        }
    }

    /// Tells of all; returns whether all hold.
    pub(crate) fn close(&self) -> bool {
        println!("\n{} seeds run: {}", self.seeds, self.tally);
        if self.left_out > 0 {
            println!("{} seeds LEFT OUT", self.left_out);
        }
        println!("{} failures", self.failed.len());
        if !self.failed.is_empty() {
            println!("to keep them, as lines of seeds.txt:\n{}", self.failed.join("\n"));
        }
        self.failed.is_empty()
    }
}
