use std::fs::{self, File};

use tempfile::TempDir;
use uuid::Uuid;

use super::{Outcome, ROOM, append, drain, event, events, files};
use crate::{
    domain::event::Event,
    spool::{JOURNAL_BYTES, Level, Spool, SpoolError},
};

#[test]
fn what_was_appended_comes_back_in_order_after_a_restart_and_goes_when_it_is_drained() -> Outcome {
    let folder = TempDir::new()?;
    let spool = Spool::open(folder.path(), ROOM)?;
    append(&spool, &events(0..3))?;
    append(&spool, &events(3..500))?;
    drop(spool);
    let spool = Spool::open(folder.path(), ROOM)?;
    assert_eq!(spool.level().events, 500);
    append(&spool, &events(500..501))?;
    assert_eq!(drain(&spool)?, events(0..501));
    assert_eq!(spool.level(), Level { events: 0, bytes: 0, damaged: 0 });
    assert_eq!(files(folder.path(), "redb")?, Vec::<std::path::PathBuf>::new());
    Ok(())
}

#[test]
fn a_journal_that_is_being_drained_takes_nothing_more() -> Outcome {
    let folder = TempDir::new()?;
    let spool = Spool::open(folder.path(), ROOM)?;
    append(&spool, &events(0..2))?;
    let first = spool.oldest()?.ok_or("a journal")?;
    append(&spool, &events(2..3))?;
    let again = spool.oldest()?.ok_or("a journal")?;
    assert_eq!((first.id, first.events.len()), (again.id, again.events.len()));
    spool.note_left(first.id, 1);
    assert_eq!(spool.level().events, 2);
    spool.discard(first.id)?;
    assert_eq!(drain(&spool)?, events(2..3));
    Ok(())
}

#[test]
fn large_spools_have_several_journals() -> Outcome {
    let folder = TempDir::new()?;
    let spool = Spool::open(folder.path(), ROOM)?;
    let mut sent = Vec::new();
    for group in 0..10 {
        let group: Vec<Event> = (group * 2000..(group + 1) * 2000).map(|n| event(n, 500)).collect();
        append(&spool, &group)?;
        sent.extend(group);
    }
    let journals = files(folder.path(), "redb")?;
    assert!(journals.len() > 1, "{journals:?}");
    let level = spool.level();
    assert!(level.bytes < 2 * JOURNAL_BYTES * journals.len() as u64, "{level:?}");
    assert_eq!(level.events, 20_000);
    drop(spool);
    assert!(drain(&Spool::open(folder.path(), ROOM)?)? == sent);
    Ok(())
}

#[test]
fn the_spool_is_bounded_and_takes_more_when_some_is_drained() -> Outcome {
    let folder = TempDir::new()?;
    let spool = Spool::open(folder.path(), 4 << 20)?;
    let mut taken = 0;
    let full = loop {
        match append(&spool, &events(taken..taken + 100)) {
            Ok(()) => taken += 100,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, SpoolError::Full), "{full}");
    let level = spool.level();
    assert!(taken > 5000 && level.bytes <= 4 << 20, "{taken} events: {level:?}");
    assert_eq!(drain(&spool)?, events(0..taken), "all or none");
    append(&spool, &events(0..100))?;
    Ok(())
}

#[test]
fn one_server_at_a_time_uses_a_spool() -> Outcome {
    let folder = TempDir::new()?;
    let first = Spool::open(folder.path(), ROOM)?;
    let second = Spool::open(folder.path(), ROOM).err().ok_or("it is in use")?;
    assert!(matches!(second, SpoolError::InUse(_)), "{second}");
    assert!(second.to_string().contains("in use by another server"), "{second}");
    drop(first);
    Spool::open(folder.path(), ROOM)?;
    Ok(())
}

#[test]
fn a_damaged_journal_gives_what_it_can_and_is_set_aside() -> Outcome {
    let folder = TempDir::new()?;
    let spool = Spool::open(folder.path(), ROOM)?;
    append(&spool, &events(0..300))?;
    drop(spool);
    let path = files(folder.path(), "redb")?.pop().ok_or("a journal")?;
    let mut bytes = fs::read(&path)?;
    bytes[..512].fill(0xAA);
    fs::write(&path, &bytes)?;

    let spool = Spool::open(folder.path(), ROOM)?;
    assert_eq!((spool.level().events, spool.level().damaged), (300, 1));
    append(&spool, &events(300..301))?;
    assert_eq!(drain(&spool)?, events(0..301));
    assert_eq!(spool.level().damaged, 1);
    let aside = files(folder.path(), "damaged")?;
    assert_eq!((aside.len(), fs::read(&aside[0])? == bytes), (1, true), "kept as it was");
    drop(spool);
    assert_eq!(drain(&Spool::open(folder.path(), ROOM)?)?, []);
    assert_eq!(files(folder.path(), "damaged")?, aside);
    Ok(())
}

#[test]
fn files_that_are_empty_or_no_journals_do_not_stop_it() -> Outcome {
    let folder = TempDir::new()?;
    let name = |extension| folder.path().join(Uuid::now_v7().to_string()).with_extension(extension);
    let half_made = name("new");
    File::create(&half_made)?;
    fs::write(name("redb"), b"no store")?;
    File::create(name("redb"))?;
    File::create(folder.path().join("notes.redb"))?;
    let spool = Spool::open(folder.path(), ROOM)?;
    assert!(!half_made.exists());
    assert_eq!((spool.level().events, spool.level().damaged), (0, 2));
    append(&spool, &events(0..2))?;
    assert_eq!(drain(&spool)?, events(0..2));
    assert_eq!(files(folder.path(), "damaged")?.len(), 2);
    Ok(())
}

#[test]
fn a_disk_that_fails_takes_nothing_and_is_used_again_when_it_works() -> Outcome {
    let parent = TempDir::new()?;
    let (folder, away) = (parent.path().join("spool"), parent.path().join("away"));
    let spool = Spool::open(&folder, ROOM)?;
    fs::rename(&folder, &away)?;
    assert!(matches!(append(&spool, &events(0..1)), Err(SpoolError::Io(..))));
    assert!(spool.has_room().is_err());
    fs::rename(&away, &folder)?;
    spool.has_room()?;
    append(&spool, &events(1..2))?;
    assert_eq!(drain(&spool)?, events(1..2));
    Ok(())
}
