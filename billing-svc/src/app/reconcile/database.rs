//! Raw log, counters, segments, summary and ledger, compared at one snapshot.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use futures::{Stream, TryStreamExt};
use nexus_core::{money::Micros, text::thousands};
use nexus_kit::db;
use sqlx::PgConnection;

use super::{repair, work::Context};
use crate::{
    domain::{
        books::{RESOLVED_WITHIN, text},
        overage::Facts,
        period::PeriodKey,
        reconciliation::{Difference, Kind},
    },
    error::Error,
    store::{
        counts::{self, SegmentCounts, Summary},
        facts, reconciliations,
    },
};

/// Periods looked at in one statement.
const BATCH: i64 = 1_000;

/// Compares; returns the time of the snapshot, by the database's clock.
#[tracing::instrument(name = "reconcile.database", skip_all)]
pub(super) async fn compare(context: &Context) -> Result<DateTime<Utc>, Error> {
    let mut snapshot = db::snapshot(&context.pool).await?;
    let now = reconciliations::take_time(&mut snapshot).await?;
    let scope = &context.begun.scope;
    let first_start = scope.first_start(now);
    let mut periods = Periods { context, last: None };
    let mut after: Option<PeriodKey> = None;
    loop {
        context.go_on()?;
        let summaries = counts::summaries(&mut snapshot, scope, first_start, after.as_ref(), BATCH).await?;
        let is_last = (summaries.len() as i64) < BATCH;
        after = summaries.last().map(|summary| summary.key.clone());
        periods.look_at(&mut snapshot, summaries).await?;
        if is_last {
            break;
        }
    }
    let kind = Kind::SegmentCountersDiffer;
    let differing =
        first(context, kind, counts::segments_counters(&mut snapshot, scope, first_start)).await?;
    report_counts(context, &mut snapshot, kind, differing).await?;
    let kind = Kind::EventsCountersDiffer;
    let differing = first(context, kind, counts::events_counters(&mut snapshot, scope, first_start)).await?;
    report_counts(context, &mut snapshot, kind, differing).await?;
    snapshot.rollback().await?;
    Ok(now)
}

/// Segments that differ whose periods are looked up.
const MAX_SEGMENTS: usize = 10_000;

/// The first segments that differ. The others are told at once: they need not be kept.
async fn first(
    context: &Context,
    kind: Kind,
    segments: impl Stream<Item = sqlx::Result<SegmentCounts>>,
) -> Result<Vec<SegmentCounts>, Error> {
    let mut segments = std::pin::pin!(segments);
    let mut differing = Vec::new();
    while let Some(segment) = segments.try_next().await? {
        if differing.len() < MAX_SEGMENTS {
            differing.push(segment);
        } else {
            context.add(counts_difference(kind, &segment, "USD"));
        }
    }
    Ok(differing)
}

/// Tells of segments, if their periods are among those compared.
async fn report_counts(
    context: &Context,
    db: &mut PgConnection,
    kind: Kind,
    segments: Vec<SegmentCounts>,
) -> Result<(), Error> {
    for segment in segments {
        let key = PeriodKey { eco_id: segment.eco_id.clone(), start: segment.period_start };
        let facts = facts::read(db, &[key]).await?.pop();
        let currency = facts.as_ref().map_or_else(|| "USD".to_owned(), |facts| facts.currency.to_string());
        let scope = &context.begun.scope;
        if facts.is_none_or(|facts| scope.has_period(facts.period.start, facts.period.end)) {
            context.add(counts_difference(kind, &segment, &currency));
        }
    }
    Ok(())
}

fn counts_difference(kind: Kind, segment: &SegmentCounts, currency: &str) -> Difference {
    let sides = match kind {
        Kind::SegmentCountersDiffer => ("The segment was closed with", "its counters and adjustments have"),
        _ => ("The raw log has", "the counters have"),
    };
    let count = |n: i64| thousands(n.unsigned_abs());
    let test = match (segment.test_units, segment.other_test_units) {
        (a, b) if a == b => String::new(),
        (a, b) => format!(" Of test keys it is {} and {}.", count(a), count(b)),
    };
    Difference {
        eco_id: segment.eco_id.clone(),
        kind,
        message: format!(
            "{} {} units in segment {}, {} {}.{test}",
            sides.0,
            count(segment.units),
            segment.segment,
            sides.1,
            count(segment.other_units)
        ),
        amount: Micros(0),
        currency: currency.to_owned(),
        period_start: Some(segment.period_start),
        charge_id: String::new(),
        item_id: String::new(),
        repaired: false,
    }
}

struct Periods<'a> {
    context: &'a Context,
    /// The account that was counted last: its periods follow each other.
    last: Option<String>,
}

impl Periods<'_> {
    async fn look_at(&mut self, db: &mut PgConnection, summaries: Vec<Summary>) -> Result<(), Error> {
        let keys: Vec<PeriodKey> = summaries.iter().map(|summary| summary.key.clone()).collect();
        let mut facts: BTreeMap<PeriodKey, Facts> = facts::read(db, &keys)
            .await?
            .into_iter()
            .map(|facts| (PeriodKey { eco_id: facts.eco_id.clone(), start: facts.period.start }, facts))
            .collect();
        for summary in summaries {
            let Some(facts) = facts.remove(&summary.key) else { continue };
            if !self.context.begun.scope.has_period(facts.period.start, facts.period.end) {
                continue;
            }
            let is_new = self.last.as_deref() != Some(&summary.key.eco_id);
            self.context.count(|findings| {
                findings.periods += 1;
                findings.accounts += i64::from(is_new);
            });
            if is_new {
                self.last = Some(summary.key.eco_id.clone());
            }
            for difference in differences(&summary, &facts) {
                self.report(&summary.key, difference).await?;
            }
        }
        Ok(())
    }

    async fn report(&self, key: &PeriodKey, mut difference: Difference) -> Result<(), Error> {
        let is_computed = matches!(difference.kind, Kind::CountersSummaryDiffer | Kind::LedgerSumDiffers);
        if self.context.begun.repair && is_computed {
            repair::recompute(self.context, key).await?;
            difference.repaired = true;
        }
        self.context.add(difference);
        Ok(())
    }
}

/// What the summary says otherwise than what it is made from.
fn differences(summary: &Summary, facts: &Facts) -> Vec<Difference> {
    let mut found = Vec::new();
    let currency = facts.currency.to_string();
    let mut add = |kind, message: String, amount: i64| {
        found.push(Difference {
            eco_id: facts.eco_id.clone(),
            kind,
            message,
            amount: Micros(amount),
            currency: currency.clone(),
            period_start: Some(facts.period.start),
            charge_id: String::new(),
            item_id: String::new(),
            repaired: false,
        });
    };
    let overage = facts.overage_of_summary();
    let kept = facts.summary.unwrap_or_default();
    let calls = facts.api_calls();
    // What is queued is not in the summary yet.
    if !summary.queued && (summary.api_calls != Some(calls) || kept != overage) {
        let message = match summary.api_calls {
            None => {
                format!("The counters have {} units, there is no summary.", thousands(calls.unsigned_abs()))
            }
            Some(said) => format!(
                "The counters have {} units, {} of overage; the summary says {}, {} of overage.",
                thousands(calls.unsigned_abs()),
                thousands(overage.units.unsigned_abs()),
                thousands(said.unsigned_abs()),
                thousands(kept.units.unsigned_abs())
            ),
        };
        add(Kind::CountersSummaryDiffer, message, kept.exact.0.saturating_sub(overage.exact.0));
    }
    let billed = facts.ledger.billed;
    if summary.billed_micros != billed.0 {
        let said = Micros(summary.billed_micros);
        let message = format!(
            "The ledger's charges are {}, the summary says {}.",
            text(billed, &currency),
            text(said, &currency)
        );
        add(Kind::LedgerSumDiffers, message, said.0.saturating_sub(billed.0));
    }
    let due = facts.due();
    let is_overdue = facts.now >= facts.settle_time + RESOLVED_WITHIN && !summary.just_adjusted;
    if !summary.settled && is_overdue && !summary.queued && !facts.ledger.pending && due != Ok(billed) {
        let since = facts.settle_time.to_rfc3339();
        let why =
            facts.parked.as_ref().map_or_else(String::new, |why| format!(" It is parked: {}.", why.as_str()));
        let message = format!(
            "The period was to be settled on {since}; it owes {}, the ledger's charges are {}.{why}",
            due.map_or_else(|_| "more than can be counted".to_owned(), |due| text(due, &currency)),
            text(billed, &currency)
        );
        add(Kind::SettlementOverdue, message, due.map_or(0, |due| billed.0.saturating_sub(due.0)));
    }
    if let Ok(due) = due
        && summary.settled
        && !summary.queued
        && !facts.ledger.pending
        && due != billed
    {
        let message = format!(
            "The period was settled; it owes {}, the ledger's charges are {}.",
            text(due, &currency),
            text(billed, &currency)
        );
        add(Kind::SettledDiffers, message, billed.0.saturating_sub(due.0));
    }
    found
}
