//! What operators are told, in Slack's mark-up.

use std::fmt::Write;

use chrono::{DateTime, SecondsFormat, Utc};
use uuid::Uuid;

use super::run::Figures;

/// Errors of a run that are told; all are in its row.
const ERRORS_TOLD: usize = 5;
/// Characters of each.
const ERROR_CHARS: usize = 300;

/// Kind of an occurrence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoticeKind {
    /// A run of ProcessOverage failed.
    RunFailed,
    /// No full run has finished for too long.
    RunOverdue,
}

impl NoticeKind {
    /// As it is kept.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RunFailed => "run_failed",
            Self::RunOverdue => "run_overdue",
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
    /// Its figures.
    pub figures: Figures,
}

impl Notice {
    /// A run failed.
    pub fn run_failed(run: &FailedRun) -> Self {
        let figures = &run.figures;
        let how = if run.finished_time.is_some() { "was cut short" } else { "gives no sign of life" };
        let mut message = format!(
            ":rotating_light: *A run of ProcessOverage failed*: `{}`, begun {}, {how} after {} accounts ({} charged, {} \
             failed). What it charged stays charged; the next run goes on with the rest.",
            run.run_id,
            time(run.started_time),
            figures.processed,
            figures.charged,
            figures.failed,
        );
        for error in figures.errors.iter().take(ERRORS_TOLD) {
            let told: String = error.message.chars().take(ERROR_CHARS).collect();
            let (eco_id, reason) = (escape(&error.eco_id), escape(&error.reason));
            write!(message, "\n• {eco_id}: {reason}: {}", escape(&told)).expect("writing to a string does not fail");
        }
        let subject = subject(run.run_id, run.started_time);
        Self { kind: NoticeKind::RunFailed, subject, message }
    }

    /// No full run has finished since.
    pub fn run_overdue(since: DateTime<Utc>) -> Self {
        let message = format!(
            ":hourglass: *ProcessOverage is overdue*: no run over all accounts has finished since {}. Overage goes on \
             accruing and is not charged. Does the scheduler still call it?",
            time(since),
        );
        Self { kind: NoticeKind::RunOverdue, subject: since.timestamp_micros().to_string(), message }
    }
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
    use crate::domain::run::AccountError;

    #[test]
    fn text_from_outside_is_no_mark_up() {
        let error = AccountError::new("eco_a", "CARD", "<!channel> a & b <https://evil.example|here>\n*new*");
        let figures = Figures { processed: 7, charged: 5, failed: 2, errors: vec![error], ..Figures::default() };
        let started_time = DateTime::from_timestamp(1_700_000_000, 0).expect("a time");
        let run = FailedRun { run_id: Uuid::nil(), started_time, finished_time: Some(started_time), figures };
        let notice = Notice::run_failed(&run);
        let (_, told) = notice.message.split_once('\n').expect("a line for the error");
        assert_eq!(
            told,
            "• eco_a: CARD: &lt;!channel&gt; a &amp; b &lt;https://evil.example|here&gt; *new*"
        );
        assert!(notice.message.contains("after 7 accounts (5 charged, 2 failed)"), "{}", notice.message);
        let again = FailedRun { started_time: started_time + chrono::TimeDelta::seconds(1), ..run.clone() };
        assert_ne!(Notice::run_failed(&again).subject, notice.subject);
        assert_eq!(Notice::run_failed(&run), notice);
    }
}
