use std::{collections::BTreeMap, io};

use nexus_testkit::disk::{Disk, SECTOR};
use rand::{Rng, SeedableRng, rngs::StdRng};
use uuid::Uuid;

use super::{Outcome, event, events};
use crate::{
    domain::event::Event,
    spool::{
        frame,
        journal::{Journal, contents, read_blocks},
    },
};

const ID: Uuid = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0002);

/// What was acknowledged, and what may be there too: of an append that failed.
#[derive(Default)]
struct Sent {
    acknowledged: BTreeMap<u64, Event>,
    doubtful: BTreeMap<u64, Event>,
}

/// Appends groups of random sizes until one fails, or so many; `None`: the journal could not even be made.
fn append_until_it_fails(disk: &Disk, groups: usize, rng: &mut StdRng) -> Option<Sent> {
    let mut journal = Journal::create(ID, disk.clone()).ok()?;
    let mut sent = Sent::default();
    for _ in 0..groups {
        let count = if rng.random_bool(0.1) { rng.random_range(100..300) } else { rng.random_range(1..20) };
        let numbers = journal.next..journal.next + count;
        let group: BTreeMap<_, _> = numbers.map(|n| (n, event(n, rng.random_range(0..400)))).collect();
        match journal.append(group.values()) {
            Ok(()) => sent.acknowledged.extend(group),
            Err(_) => {
                sent.doubtful = group;
                break;
            }
        }
    }
    Some(sent)
}

#[track_caller]
fn check(sent: &Sent, found: &BTreeMap<u64, Event>, what: &str) {
    for (number, event) in &sent.acknowledged {
        assert_eq!(found.get(number), Some(event), "{what}: {number} is lost");
    }
    for (number, event) in found.iter().filter(|(number, _)| !sent.acknowledged.contains_key(number)) {
        assert_eq!(sent.doubtful.get(number), Some(event), "{what}: {number} is invented");
    }
}

/// How many of these appends the disk stops, over all seeds.
fn crash(seeds: std::ops::Range<u64>, after_crash: impl Fn(&Disk, &mut StdRng) -> Vec<u8>) -> u32 {
    let mut stopped = 0;
    for seed in seeds {
        let rng = &mut StdRng::seed_from_u64(seed);
        let disk = Disk::default();
        disk.file().lives = Some(rng.random_range(0..400));
        let Some(sent) = append_until_it_fails(&disk, 60, rng) else { continue };
        stopped += u32::from(!sent.doubtful.is_empty());
        let found = contents(ID, &after_crash(&disk, rng));
        check(&sent, &found.events, &format!("seed {seed}"));
        assert!(found.damage.is_empty(), "seed {seed}: a crash is no damage: {:?}", found.damage);
    }
    stopped
}

#[test]
fn a_crash_at_any_write_loses_nothing_that_was_acknowledged_and_invents_nothing() {
    let stopped = crash(0..120, |disk, rng| disk.file().after_crash(rng));
    assert!(stopped > 60, "only {stopped} appends were interrupted");
}

#[test]
fn so_does_a_process_that_is_killed_at_any_write() {
    let stopped = crash(300..340, |disk, _| disk.file().current.clone());
    assert!(stopped > 20, "only {stopped} appends were interrupted");
}

#[test]
fn a_disk_that_is_full_at_any_byte_loses_nothing_that_was_acknowledged() {
    let mut refused = 0;
    for seed in 0..60 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let disk = Disk::default();
        disk.file().room = Some(rng.random_range(0..600_000));
        let Some(sent) = append_until_it_fails(&disk, 60, rng) else { continue };
        refused += u32::from(!sent.doubtful.is_empty());
        let found = contents(ID, &disk.file().current);
        check(&sent, &found.events, &format!("seed {seed}"));
        assert!(found.damage.is_empty(), "seed {seed}: {:?}", found.damage);
    }
    assert!(refused > 20, "only {refused} appends were refused");
}

/// A file and what was acknowledged into it; closed in good order or not.
fn written(closed: bool) -> Result<(Vec<u8>, Sent), redb::Error> {
    let disk = Disk::default();
    let mut journal = Journal::create(ID, disk.clone())?;
    let mut sent = Sent::default();
    for group in [0..1, 1..150, 150..151, 151..155, 155..400, 400..403] {
        let group: Vec<Event> = events(group);
        journal.append(&group)?;
        sent.acknowledged
            .extend(group.into_iter().map(|event| (event.payload.units_count as u64 - 1, event)));
    }
    let open = disk.file().current.clone();
    drop(journal);
    let file = if closed { disk.file().current.clone() } else { open };
    Ok((file, sent))
}

/// What is found is true, what can still be found is found, and what is not is said to be lost.
#[track_caller]
fn check_damaged(sent: &Sent, file: &[u8], what: &str) -> usize {
    let found = contents(ID, file);
    for (number, event) in &found.events {
        assert_eq!(sent.acknowledged.get(number), Some(event), "{what}: {number} is invented");
    }
    let whole: Vec<u64> = frame::all(file, ID).map(|frame| frame.number).collect();
    for number in whole {
        assert!(found.events.contains_key(&number), "{what}: {number} is whole and not found");
    }
    let lost = sent.acknowledged.len() - found.events.len();
    assert!(lost == 0 || !found.damage.is_empty(), "{what}: {lost} are lost without a word");
    lost
}

#[test]
fn a_file_cut_at_any_sector_gives_what_is_left_and_says_so() -> Outcome {
    for closed in [true, false] {
        let (file, sent) = written(closed)?;
        let mut lost = 0;
        for length in (0..file.len()).step_by(SECTOR) {
            lost += check_damaged(&sent, &file[..length], &format!("cut at {length}"));
        }
        assert!(lost > 0);
        assert_eq!(check_damaged(&sent, &file, "whole"), 0);
    }
    Ok(())
}

#[test]
fn a_file_that_rots_gives_what_is_left_and_says_so() -> Outcome {
    for closed in [true, false] {
        let (file, sent) = written(closed)?;
        let (mut lost, mut kept) = (0, 0);
        for seed in 0..80 {
            let rng = &mut StdRng::seed_from_u64(seed);
            let mut rotten = file.clone();
            for _ in 0..rng.random_range(1..8) {
                let at = rng.random_range(0..file.len());
                match rng.random_range(0..3) {
                    0 => rotten[at] ^= 1 << rng.random_range(0..8),
                    // A sector that is zeros, or another one.
                    1 => rotten[at / SECTOR * SECTOR..][..SECTOR].fill(0),
                    _ => {
                        let from = rng.random_range(0..file.len()) / SECTOR * SECTOR;
                        rotten[at / SECTOR * SECTOR..][..SECTOR].copy_from_slice(&file[from..][..SECTOR]);
                    }
                }
            }
            let lost_here = check_damaged(&sent, &rotten, &format!("seed {seed}"));
            (lost, kept) = (lost + lost_here, kept + usize::from(lost_here == 0));
        }
        assert!(lost > 0 && kept > 0, "{lost} events lost, {kept} files gave all");
    }
    Ok(())
}

/// The head of the file is gone, and with it all that the store knows; the events are found by themselves.
#[test]
fn a_file_whose_head_is_lost_gives_every_event() -> Outcome {
    let (mut file, sent) = written(true)?;
    file[..4096].fill(0);
    let found = contents(ID, &file);
    assert_eq!(found.events, sent.acknowledged);
    assert!(!found.damage.is_empty() && found.missing == 0, "{found:?}");
    Ok(())
}

/// Wherever pages of the store had the event, it is changed.
fn damage(file: &mut [u8], number: u64) {
    let needle = format!("/{number}/");
    let places = file.windows(needle.len()).enumerate().filter(|(_, w)| *w == needle.as_bytes());
    let places: Vec<usize> = places.map(|(at, _)| at).collect();
    assert!(!places.is_empty());
    places.into_iter().for_each(|at| file[at + 1] ^= 1);
}

#[test]
fn an_event_that_is_damaged_is_missing_and_said_to_be_and_its_neighbours_are_there() -> Outcome {
    for closed in [true, false] {
        // The last one, too, though the store could take it for one that was never committed.
        for number in [1, 300, 402] {
            let (mut file, mut sent) = written(closed)?;
            damage(&mut file, number);
            sent.acknowledged.remove(&number);
            let found = contents(ID, &file);
            assert!(found.events == sent.acknowledged, "{number}");
            assert!(!found.damage.is_empty(), "{number} is lost without a word");
            assert_eq!(found.missing, u64::from(number != 402), "{:?}", found.damage);
        }
    }
    Ok(())
}

#[test]
fn blocks_that_cannot_be_read_are_zeros_and_the_others_are_read() {
    let file: Vec<u8> = (0..10_000_u32).map(|i| i as u8 | 1).collect();
    let (bytes, unreadable) = read_blocks(file.len(), |at, block| {
        block.copy_from_slice(&file[at as usize..][..block.len()]);
        if at == 4096 { Err(io::Error::other("a bad sector")) } else { Ok(()) }
    });
    assert_eq!(unreadable, 1);
    assert_eq!((&bytes[..4096], &bytes[8192..]), (&file[..4096], &file[8192..]));
    assert!(bytes[4096..8192].iter().all(|byte| *byte == 0));
}
