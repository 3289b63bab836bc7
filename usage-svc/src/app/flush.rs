//! The transaction that counts a group of events exactly once: whichever rows are new to the raw log are
//! added to counters, rollups and leases, in that transaction; nothing else is.
//!
//! Locks are taken in one order by every flush (days, leases, raw rows, counters, rollups; each in the
//! order of its keys), so that flushes wait for each other but not in a circle.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    time::Duration,
};

use nexus_kit::db;
use sqlx::{Connection, PgConnection, PgPool, Postgres, pool::PoolConnection};
use tokio::time::{error::Elapsed, timeout};

use crate::{
    domain::{
        admission::{self, Row},
        delta::Deltas,
        event::{Event, Identity, Outcome, Payload},
        judge::{Facts, Placement, judge},
    },
    store,
};

/// Times a flush is tried that lost a race (deadlock, serialisation) or lacked a partition.
const MAX_TRIES: u32 = 5;

/// Why a flush failed; logged where it happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FlushError {
    /// The database is away. The events may be counted or not: a retry with the same ids tells.
    #[error("the database is unavailable")]
    Unavailable,
    /// A statement failed: our fault, nothing is counted.
    #[error("a flush failed")]
    Failed,
}

/// The slot a writer had last.
#[derive(Debug, Default)]
pub struct Slot(i16);

/// Counts the events; returns an outcome for each, in their order, after the commit. A try takes `bound` at
/// most: a connection that says nothing for so long is given up.
pub async fn run(
    pool: &PgPool,
    bound: Duration,
    slot: &mut Slot,
    events: &[&Event],
) -> Result<Vec<Outcome>, FlushError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let error = match try_once(pool, bound, slot, events).await {
            Ok(outcomes) => return Ok(outcomes),
            Err(error) => error,
        };
        if tries < MAX_TRIES && lost_a_race(&error) {
            tracing::debug!(%error, tries, "a flush lost a race and is redone");
            continue;
        }
        if tries < MAX_TRIES && store::api_usage::lacks_partition(&error) {
            match ensure_partitions(pool, bound).await {
                Ok(made) => tracing::warn!(made, "a partition of the raw log was missing"),
                Err(error) => return Err(failed(&error)),
            }
            continue;
        }
        return Err(failed(&error));
    }
}

fn lost_a_race(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(e) if matches!(e.code().as_deref(), Some("40P01" | "40001")))
}

fn failed(error: &sqlx::Error) -> FlushError {
    if db::is_unavailable(error) {
        tracing::warn!(%error, "a flush met an unavailable database");
        FlushError::Unavailable
    } else {
        tracing::error!(%error, "a flush failed");
        FlushError::Failed
    }
}

async fn ensure_partitions(pool: &PgPool, bound: Duration) -> sqlx::Result<i32> {
    let mut connection = db::acquire(pool).await?;
    let made = timeout(bound, store::api_usage::ensure_partitions(&mut connection)).await;
    in_time(made, connection)
}

async fn try_once(
    pool: &PgPool,
    bound: Duration,
    slot: &mut Slot,
    events: &[&Event],
) -> sqlx::Result<Vec<Outcome>> {
    let mut connection = db::acquire(pool).await?;
    let counted = timeout(bound, async {
        let mut transaction = connection.begin().await?;
        let outcomes = count(&mut transaction, slot, events).await?;
        transaction.commit().await?;
        Ok(outcomes)
    })
    .await;
    in_time(counted, connection)
}

/// The result, or that the database is away where there was none in time. The connection is closed then:
/// the pool would wait for its answer before it opens another.
fn in_time<T>(
    result: Result<sqlx::Result<T>, Elapsed>,
    connection: PoolConnection<Postgres>,
) -> sqlx::Result<T> {
    result.unwrap_or_else(|_| {
        drop(connection.detach());
        Err(sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, "the connection went silent")))
    })
}

async fn count(
    connection: &mut PgConnection,
    slot: &mut Slot,
    events: &[&Event],
) -> sqlx::Result<Vec<Outcome>> {
    let facts = facts(connection, slot, events).await?;
    let mut outcomes = Vec::with_capacity(events.len());
    // Events of one identity, in the order of the raw log's key; the first of them is the one written.
    let mut groups: BTreeMap<Identity, (Placement, Vec<usize>)> = BTreeMap::new();
    for (position, event) in events.iter().enumerate() {
        match judge(event, &facts) {
            Ok(placement) => {
                groups.entry(event.identity()).or_insert((placement, Vec::new())).1.push(position);
                outcomes.push(Outcome::Accepted);
            }
            Err(refusal) => outcomes.push(Outcome::Refused(refusal)),
        }
    }
    if groups.is_empty() {
        return Ok(outcomes);
    }
    let mut rows: Vec<Row<'_>> = groups
        .values()
        .map(|(placement, positions)| Row {
            event: events[positions[0]],
            placement: *placement,
            admitted_units: 0,
        })
        .collect();
    let days: BTreeSet<_> = groups.keys().map(|identity| identity.2).collect();
    store::usage_daily::lock_days_shared(connection, &days.into_iter().collect::<Vec<_>>()).await?;
    cover(connection, &mut rows, &facts).await?;
    let new = write_new(connection, slot, &rows).await?;
    let stored = stored_of(connection, groups.keys().filter(|identity| !new.contains(*identity))).await?;
    for (identity, (_, positions)) in &groups {
        tell_apart(events, positions, stored.get(identity), &mut outcomes);
    }
    Ok(outcomes)
}

/// Reads what judging needs, and takes a slot.
async fn facts(connection: &mut PgConnection, slot: &mut Slot, events: &[&Event]) -> sqlx::Result<Facts> {
    let mut now = None;
    // With every slot taken the last one tried is shared.
    for _ in 0..store::writer_slot::SLOTS {
        let (clock, held) = store::writer_slot::try_hold(connection, slot.0).await?;
        now = Some(clock);
        if held {
            break;
        }
        slot.0 = (slot.0 + 1) % store::writer_slot::SLOTS;
    }
    let accounts: BTreeSet<&str> = events.iter().map(|e| e.eco_id.as_str()).collect();
    let keys: BTreeSet<&str> = events.iter().filter_map(|e| e.payload.api_key_id.as_deref()).collect();
    let accounts: Vec<&str> = accounts.into_iter().collect();
    let keys: Vec<&str> = keys.into_iter().collect();
    Ok(Facts {
        now: now.expect("there is at least one slot"),
        accounts: store::accounts::for_recording(connection, &accounts).await?,
        keys: if keys.is_empty() {
            HashMap::new()
        } else {
            store::api_keys::for_recording(connection, &keys).await?
        },
    })
}

/// Covers rows by the leases they name. The leases are locked first, so that what another flush books on
/// them, and writes with them, is seen.
async fn cover(connection: &mut PgConnection, rows: &mut [Row<'_>], facts: &Facts) -> sqlx::Result<()> {
    let named: BTreeSet<_> = rows.iter().filter_map(|row| row.event.payload.admission).collect();
    if named.is_empty() {
        return Ok(());
    }
    let mut leases = store::quota_leases::lock(connection, &named.into_iter().collect::<Vec<_>>()).await?;
    let covered = |row: &&Row<'_>| row.event.payload.admission.is_some_and(|id| leases.contains_key(&id));
    let identities: Vec<Identity> = rows.iter().filter(covered).map(|row| row.event.identity()).collect();
    let stored = store::api_usage::stored(connection, &identities).await?;
    admission::cover(rows, &mut leases, &stored.into_keys().collect(), facts.now);
    Ok(())
}

/// Writes the rows and adds up those that were new; returns their identities.
async fn write_new(
    connection: &mut PgConnection,
    slot: &Slot,
    rows: &[Row<'_>],
) -> sqlx::Result<HashSet<Identity>> {
    let new = store::api_usage::insert_new(connection, rows).await?;
    let deltas = Deltas::of(rows.iter().filter(|row| new.contains(&row.event.identity())));
    if !deltas.booked.is_empty() {
        store::quota_leases::book(connection, &deltas.booked).await?;
    }
    if !deltas.counters.is_empty() {
        store::usage_counters::increment(connection, slot.0, &deltas.counters).await?;
    }
    if !deltas.rollups.is_empty() {
        store::usage_daily::add(connection, &deltas.rollups).await?;
    }
    Ok(new)
}

async fn stored_of(
    connection: &mut PgConnection,
    identities: impl Iterator<Item = &Identity>,
) -> sqlx::Result<HashMap<Identity, Payload>> {
    let identities: Vec<Identity> = identities.cloned().collect();
    if identities.is_empty() {
        return Ok(HashMap::new());
    }
    store::api_usage::stored(connection, &identities).await
}

/// The outcomes of the events of one identity: against what was `stored` before, or else against the
/// first of them, which was written now.
fn tell_apart(events: &[&Event], positions: &[usize], stored: Option<&Payload>, outcomes: &mut [Outcome]) {
    let (reference, repeats) = match stored {
        Some(payload) => (payload, positions),
        None => (&events[positions[0]].payload, &positions[1..]),
    };
    for &position in repeats {
        outcomes[position] =
            if events[position].payload == *reference { Outcome::Duplicate } else { Outcome::Conflict };
    }
}
