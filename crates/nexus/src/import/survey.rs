//! The first reading of the file: its digest, its first and last time, who is in it.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use indicatif::ProgressBar;

use super::{
    account,
    args::ImportArgs,
    lines::Lines,
    parse::{Call, Parser},
};

/// What the first reading found. Memory grows with the accounts, not with the file.
pub(super) struct Survey {
    pub(super) digest: [u8; 32],
    /// Time of the first and of the last event; `None`: there is none.
    pub(super) span: Option<(DateTime<Utc>, DateTime<Utc>)>,
    pub(super) accounts: BTreeSet<String>,
    pub(super) calls: u64,
    pub(super) malformed: u64,
    pub(super) empty: u64,
}

/// A line that is a call: who is charged, and the call.
pub(super) type Metered = (String, Call);

/// A line: a call, nothing, or malformed with the reason.
pub(super) fn read(parser: &Parser, text: Option<&[u8]>) -> Option<Result<Metered, String>> {
    if text.is_some_and(|text| text.trim_ascii().is_empty()) {
        return None;
    }
    Some(parser.call(text).map_err(|e| e.to_string()).and_then(|call| match account::id(&call.caller) {
        Ok(id) => Ok((id.into(), call)),
        Err(error) => Err(format!("`{}` is no account: {error}", call.caller)),
    }))
}

impl Survey {
    /// Reads the file; tells malformed lines with their numbers.
    pub(super) fn of(args: &ImportArgs, parser: &Parser, bar: &ProgressBar) -> Result<Self> {
        let context = || format!("reading {}", args.file.display());
        let mut lines = Lines::open(&args.file).with_context(context)?;
        let mut found =
            Self { digest: [0; 32], span: None, accounts: BTreeSet::new(), calls: 0, malformed: 0, empty: 0 };
        while let Some(line) = lines.next().with_context(context)? {
            match read(parser, line.text) {
                None => found.empty += 1,
                Some(Ok((account, call))) => found.add(account, call.time),
                Some(Err(reason)) => {
                    found.malformed += 1;
                    bar.suspend(|| eprintln!("line {}: {reason}; skipped", line.number));
                }
            }
            bar.set_position(line.position);
        }
        found.digest = lines.digest();
        Ok(found)
    }

    fn add(&mut self, account: String, time: DateTime<Utc>) {
        self.calls += 1;
        let (first, last) = self.span.unwrap_or((time, time));
        self.span = Some((first.min(time), last.max(time)));
        if !self.accounts.contains(&account) {
            self.accounts.insert(account);
        }
    }
}
