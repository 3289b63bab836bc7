//! The transaction that counts a group of events exactly once: whichever rows are new to the raw log are
//! added to counters, rollups and leases, in that transaction; nothing else is.
//!
//! Rows are copied straight into the raw log. Where one of them is stored already, that fails; the flush is
//! then redone through a stage, which tells the new rows from the others.
//!
//! Locks are taken in one order by every flush (plans, days, leases, routes, raw rows, counters, hours, days of the
//! rollup; each in the order of its keys), so that flushes wait for each other but not in a circle.

use std::{
    cmp::Ordering,
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use chrono::NaiveDate;
use nexus_core::route;
use nexus_kit::db;
use sqlx::{Connection, PgConnection, PgPool};
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    bound_routes::{self, KnownRoutes},
    drained::Drained,
    facts,
    known::Known,
    locked::{Flushed, Locked, Wait},
};
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
    /// Others hold what the events need, for too long: nothing is counted.
    #[error("the database is busy with what these events need")]
    Busy,
    /// A statement failed: our fault, nothing is counted.
    #[error("a flush failed")]
    Failed,
    /// The database does not take one of the events: our fault, nothing is counted.
    #[error("a flush was rejected")]
    Rejected,
}

/// What a writer remembers from one flush to the next.
#[derive(Debug, Default)]
pub struct Memory {
    /// The slot it had last.
    slot: i16,
    /// The last flush met events that were stored before: the next one probably does, too.
    met_repeats: bool,
    /// Routes that have their place in the rollups.
    routes: KnownRoutes,
    /// Where what the database says of accounts and keys is remembered.
    known: Arc<Known>,
}

impl Memory {
    /// Of a writer that has not written yet.
    pub fn new(known: Arc<Known>) -> Self {
        Self { known, ..Self::default() }
    }

    /// What was found in a transaction that was committed is known.
    pub(super) fn committed(&mut self) {
        self.routes.committed();
    }
}

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// All at once; fails where one is stored already.
    Direct,
    /// Through a stage, those that are new.
    Stage,
}

/// Counts the events; says an outcome for each, in their order, after the commit, or what of them is locked: for a
/// day that is being rebuilt, or a plan that is being changed, it does not wait, but where it begins with that. A try
/// takes `bound` at most: a connection that says nothing for so long is given up. Events that are drained bring what is
/// committed with them.
pub async fn run(
    pool: &PgPool,
    bound: Duration,
    memory: &mut Memory,
    wait: Wait,
    events: &[&Event],
    drained: Option<&Drained<'_>>,
) -> Result<Flushed, FlushError> {
    let mut way = if memory.met_repeats { Way::Stage } else { Way::Direct };
    let mut tries = 0;
    loop {
        tries += 1;
        memory.routes.begin();
        let error = match try_once(pool, bound, memory, (way, wait), events, drained).await {
            Ok(Flushed::Counted(outcomes)) => {
                memory.committed();
                let repeat = |outcome| matches!(outcome, &Outcome::Duplicate | &Outcome::Conflict);
                memory.met_repeats = way == Way::Stage && outcomes.iter().any(repeat);
                return Ok(Flushed::Counted(outcomes));
            }
            Ok(locked) => return Ok(locked),
            Err(error) => error,
        };
        if way == Way::Direct && store::api_usage::is_stored_already(&error) {
            way = Way::Stage;
            continue;
        }
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

/// 22 data exception, 23 integrity violation
fn is_for_its_data(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|e| e.code());
    code.is_some_and(|code| code.starts_with("22") || code.starts_with("23"))
}

fn failed(error: &sqlx::Error) -> FlushError {
    if db::is_away(error) {
        tracing::warn!(%error, "a flush met an unavailable database");
        FlushError::Unavailable
    } else if db::is_busy(error) {
        tracing::warn!(%error, "a flush met a busy database");
        FlushError::Busy
    } else if is_for_its_data(error) {
        tracing::error!(%error, "a flush was rejected");
        FlushError::Rejected
    } else {
        tracing::error!(%error, "a flush failed");
        FlushError::Failed
    }
}

async fn ensure_partitions(pool: &PgPool, bound: Duration) -> sqlx::Result<i32> {
    let mut connection = db::acquire(pool).await?;
    let made = timeout(bound, store::api_usage::ensure_partitions(&mut connection)).await;
    db::in_time(made, connection)
}

async fn try_once(
    pool: &PgPool,
    bound: Duration,
    memory: &mut Memory,
    (way, wait): (Way, Wait),
    events: &[&Event],
    drained: Option<&Drained<'_>>,
) -> sqlx::Result<Flushed> {
    let mut connection = db::acquire(pool).await?;
    let counted = timeout(wait.bound(bound), async {
        let mut transaction = connection.begin().await?;
        match wait {
            Wait::Long => {}
            Wait::Briefly => store::api_usage::wait_briefly(&mut transaction).await?,
            Wait::InTurn(lock) => lock.wait(&mut transaction).await?,
        }
        let flushed = count(&mut transaction, memory, way, events).await?;
        let Flushed::Counted(outcomes) = &flushed else {
            transaction.rollback().await?;
            return Ok(flushed);
        };
        if let Some(drained) = drained {
            drained.settle(&mut transaction, events, outcomes).await?;
        }
        transaction.commit().await?;
        Ok(flushed)
    })
    .await;
    db::in_time(counted, connection)
}

/// Counts the events in a transaction that has waited for a lock, or says what else of them is locked: then the others
/// may be counted in it. An error ends it.
pub(super) async fn count_in_turn(
    connection: &mut PgConnection,
    memory: &mut Memory,
    events: &[&Event],
) -> sqlx::Result<Flushed> {
    memory.routes.begin();
    // One that is stored already must not fail all: the lock would have to be waited for again.
    count(connection, memory, Way::Stage, events).await
}

async fn count(
    connection: &mut PgConnection,
    memory: &mut Memory,
    way: Way,
    events: &[&Event],
) -> sqlx::Result<Flushed> {
    let before = memory.known.before();
    let mut facts = match facts::read(connection, &mut memory.slot, events).await? {
        Ok(facts) => facts,
        Err(locked) => return Ok(Flushed::Locked(locked)),
    };
    let wanting = memory.known.wanting(before, facts.accounts.keys());
    if !wanting.is_empty() {
        facts.terms = store::accounts::terms(connection, &wanting).await?;
    }
    memory.known.learn(before, &facts);
    let (mut outcomes, places) = judged(events, &facts);
    // Events of one identity; the first of them is the one written.
    let groups: Vec<&[Place]> = places.chunk_by(|a, b| a.is_same(b, events)).collect();
    if groups.is_empty() {
        return Ok(Flushed::Counted(outcomes));
    }
    let mut rows: Vec<Row<'_>> = groups.iter().map(|group| group[0].row(events)).collect();
    let mut days: Vec<_> = rows.iter().map(|row| row.event.day()).collect();
    days.dedup();
    let locked = store::usage_daily::try_lock_days_shared(connection, &days).await?;
    if !locked.is_empty() {
        let days = locked.into_iter().collect();
        return Ok(Flushed::Locked(Locked { days, ..Locked::default() }));
    }
    cover(connection, &mut rows, &facts).await?;
    bound_routes::run(connection, &mut memory.routes, &mut rows).await?;
    let old = match way {
        Way::Direct => {
            store::api_usage::insert(connection, &rows).await?;
            HashSet::new()
        }
        Way::Stage => {
            let new = store::api_usage::insert_new(connection, &rows).await?;
            rows.iter().map(|row| row.event.identity()).filter(|identity| !new.contains(identity)).collect()
        }
    };
    add_up(connection, memory.slot, &rows, &old).await?;
    let stored = stored_of(connection, &old).await?;
    for group in groups.iter().filter(|group| group.len() > 1 || !old.is_empty()) {
        let stored = stored.get(&events[group[0].position].identity());
        tell_apart(events, group, stored, &mut outcomes);
    }
    Ok(Flushed::Counted(outcomes))
}

/// An event that is taken: its position among all, and where it counts.
#[derive(Debug, Clone, Copy)]
struct Place {
    day: NaiveDate,
    event_id: Uuid,
    position: usize,
    placement: Placement,
}

impl Place {
    /// The order of the raw log's days and keys; of events that are the same, the order of their positions.
    fn compare(&self, other: &Self, events: &[&Event]) -> Ordering {
        let account = |place: &Self| &events[place.position].eco_id;
        (self.day, self.event_id)
            .cmp(&(other.day, other.event_id))
            .then_with(|| account(self).cmp(account(other)))
            .then_with(|| self.position.cmp(&other.position))
    }

    fn is_same(&self, other: &Self, events: &[&Event]) -> bool {
        (self.day, self.event_id) == (other.day, other.event_id)
            && events[self.position].eco_id == events[other.position].eco_id
    }

    fn row<'a>(&self, events: &[&'a Event]) -> Row<'a> {
        let event = events[self.position];
        let route = route::template(&event.payload.endpoint);
        Row { event, route, placement: self.placement, admitted_units: 0 }
    }
}

/// Outcomes for all events, as far as judging tells, and those that are taken, in the order of the raw log.
fn judged(events: &[&Event], facts: &Facts) -> (Vec<Outcome>, Vec<Place>) {
    let mut outcomes = Vec::with_capacity(events.len());
    let mut places = Vec::with_capacity(events.len());
    for (position, event) in events.iter().enumerate() {
        outcomes.push(match judge(event, facts) {
            Ok(placement) => {
                places.push(Place { day: event.day(), event_id: event.event_id, position, placement });
                Outcome::Accepted
            }
            Err(refusal) => Outcome::Refused(refusal),
        });
    }
    places.sort_unstable_by(|a, b| a.compare(b, events));
    (outcomes, places)
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
    admission::cover(rows, &mut leases, &stored.into_keys().collect(), facts);
    Ok(())
}

/// Adds up the rows that are not `old`.
async fn add_up(
    connection: &mut PgConnection,
    slot: i16,
    rows: &[Row<'_>],
    old: &HashSet<Identity>,
) -> sqlx::Result<()> {
    let deltas = Deltas::of(rows.iter().filter(|row| old.is_empty() || !old.contains(&row.event.identity())));
    if !deltas.booked.is_empty() {
        store::quota_leases::book(connection, &deltas.booked).await?;
    }
    if !deltas.counters.is_empty() {
        store::usage_counters::increment(connection, slot, &deltas.counters).await?;
    }
    if !deltas.hourly.is_empty() {
        store::usage_hourly::add(connection, &deltas.hourly).await?;
        store::usage_daily::add(connection, slot, &deltas.daily).await?;
    }
    Ok(())
}

async fn stored_of(
    connection: &mut PgConnection,
    identities: &HashSet<Identity>,
) -> sqlx::Result<HashMap<Identity, Payload>> {
    if identities.is_empty() {
        return Ok(HashMap::new());
    }
    store::api_usage::stored(connection, &identities.iter().cloned().collect::<Vec<_>>()).await
}

/// The outcomes of the events of one identity: against what was `stored` before, or else against the
/// first of them, which was written now.
fn tell_apart(events: &[&Event], group: &[Place], stored: Option<&Payload>, outcomes: &mut [Outcome]) {
    let (reference, repeats) = match stored {
        Some(payload) => (payload, group),
        None => (&events[group[0].position].payload, &group[1..]),
    };
    for place in repeats {
        outcomes[place.position] =
            if events[place.position].payload == *reference { Outcome::Duplicate } else { Outcome::Conflict };
    }
}
