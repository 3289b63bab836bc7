//! Crashes at every moment, by a disk that loses and tears what was not synced; files that rot.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

use nexus_testkit::disk::Disk;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::*;

type Outcome = Result<(), Box<dyn std::error::Error>>;

const ROOM: u64 = 1 << 20;

fn event(n: u64) -> UsageEvent {
    UsageEvent { event_id: n.to_string(), endpoint: format!("/v1/{n}"), units_count: 1, ..Default::default() }
}

fn events(numbers: std::ops::Range<u64>) -> Vec<UsageEvent> {
    numbers.map(event).collect()
}

fn open(disk: &Disk) -> Result<(Spool, Found), SpoolError> {
    let disk = disk.clone();
    let open = move || builder().create_with_backend(disk.clone()).map_err(failed);
    Spool::with_opener(Box::new(open), ROOM)
}

fn all(spool: &Spool) -> Result<BTreeMap<u64, UsageEvent>, SpoolError> {
    let read = spool.read(0, usize::MAX)?;
    assert!(read.damaged.is_empty(), "{:?}", read.damaged);
    Ok(read.numbers.into_iter().zip(read.events).collect())
}

/// What must be there, and what may be there too: the work that the crash interrupted.
#[derive(Default)]
struct Expected {
    synced: BTreeMap<u64, UsageEvent>,
    /// Appended without an answer.
    doubtful: BTreeMap<u64, UsageEvent>,
    /// Removed without an answer.
    leaving: Vec<u64>,
}

/// Appends and removes until the disk fails, and not for ever: then the crash is between two operations.
fn work_until_the_crash(spool: &Spool, next: &mut u64, expected: &mut Expected, rng: &mut StdRng) {
    for _ in 0..100 {
        let kept: Vec<u64> = expected.synced.keys().copied().collect();
        if !kept.is_empty() && rng.random_bool(0.4) {
            let some: Vec<u64> = kept.choose_multiple(rng, 30).copied().collect();
            if spool.remove(&some).is_err() {
                expected.leaving = some;
                return;
            }
            expected.synced.retain(|number, _| !some.contains(number));
        } else {
            let numbers = *next..*next + rng.random_range(1..60);
            let added = numbers.clone().map(|n| (n, event(n)));
            *next = numbers.end;
            match spool.append(numbers.start, &events(numbers.clone())) {
                Ok(Appended::Synced) => expected.synced.extend(added),
                Ok(Appended::Full) => {}
                Err(_) => {
                    expected.doubtful = added.collect();
                    return;
                }
            }
        }
    }
}

#[test]
fn crashes_with_torn_writes_lose_no_synced_event_and_invent_none() -> Outcome {
    let mut interrupted = 0;
    for seed in 0..60 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let mut disk = Disk::default();
        let (mut next, mut expected) = (0, Expected::default());
        for life in 0..4 {
            // Not in the making of the file: a tracker that could not be built has taken nothing.
            let (spool, _) = open(&disk)?;
            disk.file().lives = Some(rng.random_range(0..120));
            work_until_the_crash(&spool, &mut next, &mut expected, rng);
            let after = disk.file().after_crash(rng);
            interrupted += usize::from(!expected.doubtful.is_empty() || !expected.leaving.is_empty());
            drop(spool);
            disk = Disk::of(after);
            let (spool, found) = open(&disk).map_err(|e| format!("seed {seed}, life {life}: {e}"))?;
            let there = all(&spool)?;
            assert_eq!(found.records, there.len() as u64);
            for (number, event) in &expected.synced {
                let found = there.get(number);
                let gone = found.is_none() && expected.leaving.contains(number);
                assert!(found == Some(event) || gone, "seed {seed}, life {life}: {number} is lost");
            }
            for (number, event) in &there {
                let known = expected.synced.get(number).or(expected.doubtful.get(number));
                assert_eq!(known, Some(event), "seed {seed}, life {life}: {number} is invented");
            }
            expected = Expected { synced: there, ..Expected::default() };
        }
    }
    assert!(interrupted > 60, "the crashes interrupted only {interrupted} operations");
    Ok(())
}

#[test]
fn a_file_that_rots_gives_fewer_events_and_never_others() -> Outcome {
    let disk = Disk::default();
    let (spool, _) = open(&disk)?;
    spool.append(0, &events(0..500))?;
    drop(spool);
    let whole = disk.file().current.clone();
    let (mut refused, mut read_back) = (0, 0);
    for seed in 0..200 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let mut file = whole.clone();
        for _ in 0..rng.random_range(1..8) {
            let at = rng.random_range(0..file.len());
            file[at] ^= 1 << rng.random_range(0..8);
        }
        if rng.random_bool(0.2) {
            file.truncate(rng.random_range(0..file.len()));
        }
        let rotten = Disk::of(file);
        // The store may stop by a panic; the worker takes that as any other failure.
        let read = catch_unwind(AssertUnwindSafe(|| {
            let (spool, _) = open(&rotten)?;
            spool.read(0, usize::MAX)
        }));
        match read {
            Ok(Ok(read)) => {
                read_back += 1;
                for (number, found) in read.numbers.into_iter().zip(read.events) {
                    assert_eq!(found, event(number), "seed {seed}");
                }
            }
            Ok(Err(_)) | Err(_) => refused += 1,
        }
    }
    assert!(refused > 0 && read_back > 0, "{refused} refused, {read_back} read");
    Ok(())
}

#[test]
fn a_record_whose_bytes_changed_is_damaged_and_the_others_are_read() -> Outcome {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("events.redb");
    let (spool, _) = Spool::open(&path, ROOM)?;
    spool.append(0, &events(0..3))?;
    drop(spool);
    let database = Database::open(&path)?;
    let transaction = database.begin_write()?;
    transaction.open_table(EVENTS)?.insert(1, encode(2, &event(2)).as_slice())?;
    transaction.commit()?;
    drop(database);
    let (spool, found) = Spool::open(&path, ROOM)?;
    assert_eq!(found, Found { records: 3, next_number: 3 });
    let read = spool.read(0, 10)?;
    assert_eq!((read.numbers, read.damaged), (vec![0, 2], vec![1]));
    assert_eq!(read.events, [event(0), event(2)]);
    Ok(())
}

#[test]
fn the_buffer_is_bounded_and_takes_more_when_some_left() -> Outcome {
    let folder = tempfile::tempdir()?;
    let one = size(&encode(0, &event(0)));
    let (spool, _) = Spool::open(&folder.path().join("deep/events.redb"), 3 * one)?;
    assert_eq!(spool.append(0, &events(0..3))?, Appended::Synced);
    assert_eq!(spool.append(3, &events(3..4))?, Appended::Full);
    spool.remove(&[1])?;
    assert_eq!(spool.append(3, &events(3..5))?, Appended::Full, "all or none");
    assert_eq!(spool.append(3, &events(3..4))?, Appended::Synced);
    assert_eq!(all(&spool)?.into_keys().collect::<Vec<_>>(), [0, 2, 3]);
    Ok(())
}

#[test]
fn one_tracker_at_a_time_uses_a_file() -> Outcome {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("events.redb");
    let _first = Spool::open(&path, ROOM)?;
    let second = Spool::open(&path, ROOM).err();
    assert!(matches!(second, Some(SpoolError::InUse)), "{second:?}");
    Ok(())
}
