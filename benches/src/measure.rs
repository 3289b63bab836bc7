//! Latencies, what a load generator reports, and the tables people read.

use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;
use nexus_core::text::thousands;
use serde::{Deserialize, Serialize};

/// What a load generator measured.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Requests or events that were answered within the measured time.
    pub(crate) done: u64,
    /// The measured time.
    pub(crate) seconds: f64,
    /// Median time of a call in milliseconds.
    pub(crate) p50_ms: f64,
    /// 99th percentile of the time of a call in milliseconds.
    pub(crate) p99_ms: f64,
}

impl Report {
    pub(crate) fn new(done: u64, took: Duration, latencies: &Latencies) -> Self {
        let (p50_ms, p99_ms) = (latencies.milliseconds(0.50), latencies.milliseconds(0.99));
        Self { done, seconds: took.as_secs_f64(), p50_ms, p99_ms }
    }

    /// Requests or events a second.
    pub(crate) fn rate(&self) -> f64 {
        self.done as f64 / self.seconds
    }

    /// The report whose rate is the median; of an even number the lower one.
    pub(crate) fn median(mut reports: Vec<Report>) -> Report {
        reports.sort_by(|a, b| a.rate().total_cmp(&b.rate()));
        reports[(reports.len() - 1) / 2]
    }
}

/// Times of calls, in microseconds with three digits.
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(Histogram::new(3)?))
    }

    pub(crate) fn record(&mut self, took: Duration) -> Result<()> {
        Ok(self.0.record(u64::try_from(took.as_micros())?.max(1))?)
    }

    pub(crate) fn milliseconds(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }

    pub(crate) fn merge(&mut self, other: &Latencies) -> Result<()> {
        Ok(self.0.add(&other.0)?)
    }
}

/// Prints ours and the references. `of` says what is counted.
pub(crate) fn print_table(title: &str, of: &str, ours: (&str, Report), references: &[(&str, Report)]) {
    println!("\n{title}");
    println!("{} {:>13} {:>12}", header(of), "ours / this", "p99 of ours");
    println!("{}", row(ours.0, &ours.1));
    for (name, reference) in references {
        let ratio = ours.1.rate() / reference.rate();
        let p99 = ours.1.p99_ms / reference.p99_ms;
        println!("{} {ratio:>13.3} {:>12}", row(name, reference), format!("{p99:.2}x"));
    }
}

/// Prints the head of a table without references.
pub(crate) fn print_header(title: &str, of: &str) {
    println!("\n{title}\n{}", header(of));
}

/// Prints a row of its own below a table.
pub(crate) fn print_row(name: &str, report: &Report) {
    println!("{}", row(name, report));
}

fn header(of: &str) -> String {
    format!("{:<34} {:>14} {:>10} {:>10}", "", format!("{of}/s"), "p50 ms", "p99 ms")
}

fn row(name: &str, report: &Report) -> String {
    format!(
        "{name:<34} {:>14} {:>10.3} {:>10.3}",
        thousands(report.rate().round() as i64),
        report.p50_ms,
        report.p99_ms
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_that_of_the_rates() {
        let report = |done, seconds| Report { done, seconds, p50_ms: 0.0, p99_ms: 0.0 };
        let median = |reports: Vec<Report>| Report::median(reports).rate();
        assert_eq!(median(vec![report(90, 1.0), report(100, 10.0), report(30, 2.0)]), 15.0);
        assert_eq!(median(vec![report(2, 1.0), report(1, 1.0)]), 1.0);
    }

    #[test]
    fn percentiles_are_in_milliseconds() -> Result<()> {
        let (mut one, mut other) = (Latencies::new()?, Latencies::new()?);
        (1..=50).try_for_each(|ms| one.record(Duration::from_millis(ms)))?;
        (51..=100).try_for_each(|ms| other.record(Duration::from_millis(ms)))?;
        one.merge(&other)?;
        let report = Report::new(100, Duration::from_secs(2), &one);
        assert_eq!(report.rate(), 50.0);
        assert!((report.p50_ms - 50.0).abs() < 0.1 && (report.p99_ms - 99.0).abs() < 0.1, "{report:?}");
        Ok(())
    }
}
