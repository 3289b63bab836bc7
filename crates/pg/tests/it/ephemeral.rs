//! Throw-away clusters leave nothing.

use crate::killed::{holder, postmaster};
use crate::{Said, connect, open_tempdir, running, socket_dir, start};
use anyhow::Result;
use nexus_pg::Options;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::Path;

#[tokio::test]
async fn stopping_removes_the_folder_and_the_server() -> Result<()> {
    let cluster = start(Options::ephemeral(), &Said::default()).await?;
    assert!(cluster.created());
    let (pid, folder) = (cluster.pid(), cluster.folder().to_owned());
    let socket = socket_dir(&cluster.url("postgres")).await?;
    cluster.stop().await?;
    assert!(!running(pid) && !folder.exists() && !socket.exists());
    Ok(())
}

#[tokio::test]
async fn dropping_does_the_same_even_with_a_session_open() -> Result<()> {
    let cluster = start(Options::ephemeral(), &Said::default()).await?;
    let mut session = connect(&cluster.url("postgres")).await?;
    sqlx::raw_sql("BEGIN; CREATE TABLE t (n int)").execute(&mut session).await?;
    let (pid, folder) = (cluster.pid(), cluster.folder().to_owned());
    drop(cluster);
    assert!(!running(pid) && !folder.exists());
    Ok(())
}

#[tokio::test]
async fn two_at_once_do_not_meet() -> Result<()> {
    let (said, also) = (Said::default(), Said::default());
    let (one, two) =
        tokio::try_join!(start(Options::ephemeral(), &said), start(Options::ephemeral(), &also))?;
    assert_ne!(one.folder(), two.folder());
    connect(&one.url("postgres")).await?;
    connect(&two.url("postgres")).await?;
    one.stop().await?;
    connect(&two.url("postgres")).await?;
    two.stop().await?;
    Ok(())
}

fn clusters_in(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

#[tokio::test]
async fn what_a_killed_run_left_goes_with_the_next() -> Result<()> {
    let temp = open_tempdir()?;
    let place = [("TMPDIR", temp.path())];
    let (mut killed, url) = holder([], &place)?;
    let socket = socket_dir(&url).await?;
    killed.kill()?;
    killed.wait()?;
    let left = clusters_in(temp.path())?;
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(socket.exists());
    let old = postmaster(&temp.path().join(&left[0]))?;
    assert!(running(old));

    let (mut next, url) = holder([], &place)?;
    connect(&url).await?;
    let now = clusters_in(temp.path())?;
    assert!(now.len() == 1 && now != left, "{now:?} after {left:?}");
    assert!(!running(old) && !socket.exists());

    kill(Pid::from_raw(next.id().cast_signed()), Signal::SIGTERM)?;
    assert!(next.wait()?.success());
    assert_eq!(clusters_in(temp.path())?, Vec::<String>::new());
    Ok(())
}
