//! Files and folders that go while the spool is used. A link to itself stands for a file that the disk does not open.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
};

use tempfile::TempDir;

use super::{Outcome, ROOM, append, drain, events, files};
use crate::spool::{LOCK, Level, Spool, SpoolError};

#[test]
fn a_journal_that_is_lost_is_passed_over_and_said_to_be() -> Outcome {
    let folder = TempDir::new()?;
    let spool = Spool::open(folder.path(), ROOM)?;
    append(&spool, &events(0..2))?;
    let lost = spool.oldest()?.ok_or("a journal")?;
    append(&spool, &events(2..4))?;
    fs::remove_file(spool.path(lost.id))?;
    assert_eq!(drain(&spool)?, events(2..4));
    assert_eq!(spool.level(), Level { events: 0, bytes: 0, damaged: 1 });
    Ok(())
}

#[test]
fn a_journal_that_cannot_be_opened_is_passed_over_until_it_can() -> Outcome {
    let folder = TempDir::new()?;
    let spool = Spool::open(folder.path(), ROOM)?;
    append(&spool, &events(0..2))?;
    let closed = spool.path(spool.oldest()?.ok_or("a journal")?.id);
    let kept = closed.with_extension("kept");
    fs::rename(&closed, &kept)?;
    symlink(&closed, &closed)?;
    append(&spool, &events(2..4))?;
    let next = spool.oldest()?.ok_or("the other journal")?;
    assert_eq!(next.events.into_values().collect::<Vec<_>>(), events(2..4));
    spool.discard(next.id)?;
    for _ in 0..2 {
        assert!(matches!(spool.oldest(), Err(SpoolError::Io(..))));
        assert_eq!((spool.level().events, spool.level().damaged), (2, 1));
    }
    // It keeps no server from starting.
    drop(spool);
    let spool = Spool::open(folder.path(), ROOM)?;
    assert_eq!(spool.level().damaged, 1);
    append(&spool, &events(4..5))?;
    fs::remove_file(&closed)?;
    fs::rename(&kept, &closed)?;
    assert_eq!(drain(&spool)?, [events(0..2), events(4..5)].concat());
    assert_eq!((spool.level().damaged, files(folder.path(), "damaged")?.len()), (1, 0));
    Ok(())
}

#[test]
fn nothing_is_taken_into_a_file_that_is_gone() -> Outcome {
    let folder = TempDir::new()?;
    let spool = Spool::open(folder.path(), ROOM)?;
    append(&spool, &events(0..2))?;
    let active = files(folder.path(), "redb")?.pop().ok_or("a journal")?;
    fs::remove_file(&active)?;
    append(&spool, &events(2..4))?;
    // Nor into one that another took the name of.
    let active = files(folder.path(), "redb")?.pop().ok_or("another journal")?;
    let kept = active.with_extension("kept");
    fs::rename(&active, &kept)?;
    File::create(&active)?;
    append(&spool, &events(4..6))?;
    fs::rename(&kept, &active)?;
    assert_eq!(drain(&spool)?, events(2..6));
    assert_eq!(spool.level(), Level { events: 0, bytes: 0, damaged: 1 });
    Ok(())
}

#[test]
fn a_folder_that_is_gone_takes_nothing_and_keeps_what_it_has_until_it_is_back() -> Outcome {
    let parent = TempDir::new()?;
    let (folder, away) = (parent.path().join("spool"), parent.path().join("away"));
    let spool = Spool::open(&folder, ROOM)?;
    append(&spool, &events(0..2))?;
    fs::rename(&folder, &away)?;
    let takes_nothing = || {
        assert!(matches!(spool.is_there(), Err(SpoolError::Io(..))));
        assert!(matches!(append(&spool, &events(2..4)), Err(SpoolError::Io(..))));
        assert!(matches!(spool.has_room(), Err(SpoolError::Io(..))));
        assert!(matches!(spool.oldest(), Err(SpoolError::Io(..))));
    };
    takes_nothing();
    // As where a volume is not mounted, or another one is.
    fs::create_dir(&folder)?;
    takes_nothing();
    File::create(folder.join(LOCK))?;
    takes_nothing();
    assert_eq!((spool.level().events, spool.level().damaged), (2, 1));
    fs::remove_dir_all(&folder)?;
    fs::rename(&away, &folder)?;
    spool.is_there()?;
    spool.has_room()?;
    append(&spool, &events(4..6))?;
    assert_eq!(drain(&spool)?, [events(0..2), events(4..6)].concat());
    Ok(())
}
