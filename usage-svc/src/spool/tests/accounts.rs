use tempfile::TempDir;

use super::{Outcome, append, drain, event, events};
use crate::{
    domain::event::Event,
    spool::{Call, Spool, SpoolError, accounts::event_bytes},
};

const ROOM: u64 = 4 << 20;

/// Events of account `eco_<account>`, by a key of it.
fn of(account: u64, numbers: std::ops::Range<u64>) -> Vec<Event> {
    let mut events: Vec<Event> = numbers.map(|n| event(n * 7 + account, 20)).collect();
    events.iter_mut().for_each(|event| event.payload.api_key_id = Some("key".to_owned()));
    events
}

fn by_key(events: &[Event]) -> Call<'_> {
    Call { events: events.iter().collect(), by_key: true }
}

/// Fills an account's part, by 100 at a time; what was kept.
fn fill(spool: &Spool, account: u64) -> Result<Vec<Event>, SpoolError> {
    let mut all = Vec::new();
    loop {
        let first = all.len() as u64;
        let some = of(account, first..first + 100);
        if spool.append(&[by_key(&some)])? == [false] {
            return Ok(all);
        }
        all.extend(some);
    }
}

#[test]
fn the_keys_of_an_account_have_their_part_and_everybody_else_the_rest() -> Outcome {
    let folder = TempDir::new()?;
    let spool = Spool::open(folder.path(), ROOM)?;
    let mut sent = fill(&spool, 3)?;
    let bytes: u64 = sent.iter().map(event_bytes).sum();
    assert!(bytes <= ROOM / 4 && bytes > ROOM / 5, "{bytes}");
    // Of calls that are kept together, too, each is judged alone.
    let (more, other, service) = (of(3, 10_000..10_100), of(4, 0..100), of(3, 20_000..20_100));
    let calls = [by_key(&more), by_key(&other), Call { events: service.iter().collect(), by_key: false }];
    assert_eq!(spool.append(&calls)?, [false, true, true]);
    sent.extend(other.into_iter().chain(service));
    assert!(spool.append(&[by_key(&more)])? == [false]);
    assert!(drain(&spool)? == sent, "what was refused is not there");
    assert_eq!(spool.append(&[by_key(&more)])?, [true]);
    Ok(())
}

#[test]
fn calls_that_come_together_share_the_part() -> Outcome {
    let folder = TempDir::new()?;
    let spool = Spool::open(folder.path(), ROOM)?;
    let (first, second) = (of(3, 0..2_000), of(3, 2_000..4_000));
    let bytes: u64 = first.iter().map(event_bytes).sum();
    assert!(bytes < ROOM / 4 && 2 * bytes > ROOM / 4, "{bytes}");
    assert_eq!(spool.append(&[by_key(&first), by_key(&second)])?, [true, false]);
    Ok(())
}

#[test]
fn a_part_comes_back_with_each_journal_that_is_drained() -> Outcome {
    let folder = TempDir::new()?;
    let spool = Spool::open(folder.path(), ROOM)?;
    let (first, second) = (of(3, 0..2_000), of(3, 2_000..4_000));
    assert_eq!(spool.append(&[by_key(&first)])?, [true]);
    let oldest = spool.oldest()?.ok_or("a journal")?;
    assert_eq!(spool.append(&[by_key(&second)])?, [false], "it is drained when its file is gone");
    spool.discard(oldest.id)?;
    assert_eq!(spool.append(&[by_key(&second)])?, [true]);
    assert_eq!(spool.append(&[by_key(&first)])?, [false]);
    Ok(())
}

/// Who sent an event, the file does not tell: those that name a key are taken for its account's own.
#[test]
fn a_part_that_is_taken_is_so_after_a_restart() -> Outcome {
    let folder = TempDir::new()?;
    let spool = Spool::open(folder.path(), ROOM)?;
    fill(&spool, 3)?;
    append(&spool, &events(0..2_000))?;
    drop(spool);
    let spool = Spool::open(folder.path(), ROOM)?;
    let (more, other) = (of(3, 10_000..10_100), of(4, 10_000..10_100));
    assert_eq!(spool.append(&[by_key(&more), by_key(&other)])?, [false, true]);
    drain(&spool)?;
    assert_eq!(spool.append(&[by_key(&more)])?, [true]);
    Ok(())
}
