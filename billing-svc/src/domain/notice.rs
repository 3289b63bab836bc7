//! What operators are told, in Slack's mark-up.

use std::{collections::BTreeMap, fmt::Write};

use chrono::{DateTime, SecondsFormat, Utc};
use uuid::Uuid;

use super::{
    reconciliation::{Difference, Kind},
    run::AccountError,
};

/// Errors of a run, or differences, that are told; more are kept.
pub const DETAILS_TOLD: usize = 5;
/// Characters of each.
const DETAIL_CHARS: usize = 300;

/// Kind of an occurrence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoticeKind {
    /// A run of ProcessOverage failed.
    RunFailed,
    /// No full run has finished for too long.
    RunOverdue,
    /// A reconciliation found differences that are left.
    DriftFound,
}

impl NoticeKind {
    /// As it is kept.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RunFailed => "run_failed",
            Self::RunOverdue => "run_overdue",
            Self::DriftFound => "drift_found",
        }
    }
}

/// Something operators are to hear of, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Kind.
    pub kind: NoticeKind,
    /// Which occurrence: there is one notice for each.
    pub subject: String,
    /// What is told.
    pub message: String,
}

/// A run that failed, or gives no sign of life any more.
#[derive(Debug, Clone)]
pub struct FailedRun {
    /// The run.
    pub run_id: Uuid,
    /// When it was begun, or begun again: each time may fail.
    pub started_time: DateTime<Utc>,
    /// When it failed; `None`: nobody has said so, its process is gone.
    pub finished_time: Option<DateTime<Utc>>,
    /// Accounts it was done with.
    pub processed: i32,
    /// Accounts it charged.
    pub charged: i32,
    /// Accounts that failed.
    pub failed: i32,
    /// Why those did, the first of them.
    pub errors: Vec<AccountError>,
}

/// That no run over all accounts has finished for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overdue {
    /// Since when.
    pub since: DateTime<Utc>,
    /// How many times the longest time between two has passed by now, at least 1: each is told.
    pub times: i64,
}

/// A reconciliation that left differences.
#[derive(Debug, Clone)]
pub struct DriftLeft {
    /// The reconciliation.
    pub reconciliation_id: Uuid,
    /// When it ended.
    pub finished_time: DateTime<Utc>,
    /// Differences that are left, by kind.
    pub drift: BTreeMap<Kind, i64>,
    /// The first of its differences, repaired ones among them.
    pub differences: Vec<Difference>,
}

impl Notice {
    /// A run failed.
    pub fn run_failed(run: &FailedRun) -> Self {
        let how = if run.finished_time.is_some() { "was cut short" } else { "gives no sign of life" };
        let mut message = format!(
            ":rotating_light: *A run of ProcessOverage failed*: `{}`, begun {}, {how} after {} accounts ({} charged, {} \
             failed). What it charged stays charged; the next run goes on with the rest.",
            run.run_id,
            time(run.started_time),
            run.processed,
            run.charged,
            run.failed,
        );
        for error in run.errors.iter().take(DETAILS_TOLD) {
            detail(&mut message, &error.eco_id, &error.reason, &error.message);
        }
        let subject = subject(run.run_id, run.started_time);
        Self { kind: NoticeKind::RunFailed, subject, message }
    }

    /// No full run has finished since.
    pub fn run_overdue(overdue: Overdue) -> Self {
        let message = format!(
            ":hourglass: *ProcessOverage is overdue*: no run over all accounts has finished since {}. Overage goes on \
             accruing and is not charged. Does the scheduler still call it?",
            time(overdue.since),
        );
        let subject = format!("{} {}", overdue.since.timestamp_micros(), overdue.times);
        Self { kind: NoticeKind::RunOverdue, subject, message }
    }

    /// A reconciliation left differences.
    pub fn drift_found(left: &DriftLeft) -> Self {
        let count: i64 = left.drift.values().sum();
        let kinds: Vec<_> = left.drift.iter().map(|(kind, n)| format!("{} {n}", kind.as_str())).collect();
        let mut message = format!(
            ":mag: *Reconciliation found drift*: `{}`, ended {}, leaves {count} differences: {}.",
            left.reconciliation_id,
            time(left.finished_time),
            kinds.join(", "),
        );
        for difference in left.differences.iter().filter(|d| !d.repaired).take(DETAILS_TOLD) {
            detail(&mut message, &difference.eco_id, difference.kind.as_str(), &difference.message);
        }
        Self { kind: NoticeKind::DriftFound, subject: left.reconciliation_id.to_string(), message }
    }
}

/// A line about one account.
fn detail(message: &mut String, eco_id: &str, word: &str, sentence: &str) {
    let told: String = sentence.chars().take(DETAIL_CHARS).collect();
    let line = [escape(eco_id), escape(word), escape(&told)].join(": ");
    write!(message, "\n• {line}").expect("writing to a string does not fail");
}

/// Names the failure of a run: a run that is begun again may fail again.
pub fn subject(run_id: Uuid, started_time: DateTime<Utc>) -> String {
    format!("{run_id} {}", started_time.timestamp_micros())
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Text from outside: Slack takes `&`, `<` and `>` for mark-up, links and calls to everybody among it.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            // A line of its own would look like one of ours.
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_is_no_mark_up() {
        let message = "<!channel> a & b <https://evil.example|here>\n*new*";
        let error = AccountError::new("eco_a", "CARD", message);
        let started_time = DateTime::from_timestamp(1_700_000_000, 0).expect("a time");
        let run = FailedRun {
            run_id: Uuid::nil(),
            started_time,
            finished_time: Some(started_time),
            processed: 7,
            charged: 5,
            failed: 2,
            errors: vec![error],
        };
        let notice = Notice::run_failed(&run);
        let (head, told) = notice.message.split_once('\n').expect("a line for the error");
        let expected = "• eco_a: CARD: &lt;!channel&gt; a &amp; b &lt;https://evil.example|here&gt; *new*";
        assert_eq!(told, expected);
        assert!(head.contains("after 7 accounts (5 charged, 2 failed)"), "{head}");
        let again = FailedRun { started_time: started_time + chrono::TimeDelta::seconds(1), ..run.clone() };
        assert_ne!(Notice::run_failed(&again).subject, notice.subject);
        assert_eq!(Notice::run_failed(&run), notice);
    }
}
