//! Runs that end without stopping their server, and runs that would share one.

use crate::{Said, open_tempdir, read_mark, running, start, write_mark};
use anyhow::{Context, Result};
use nexus_pg::{Error, Options};
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Another process that runs a cluster; returns when that is ready, with its URL.
pub(crate) fn holder<'a>(
    arguments: impl IntoIterator<Item = &'a OsStr>,
    environment: &[(&str, &Path)],
) -> Result<(Child, String)> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_private-postgres"))
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut url = String::new();
    BufReader::new(child.stdout.take().context("its output is piped")?).read_line(&mut url)?;
    Ok((child, url.trim().to_owned()))
}

/// The process number in the folder's `postmaster.pid`.
pub(crate) fn postmaster(folder: &Path) -> Result<i32> {
    let text = fs::read_to_string(folder.join("data/postmaster.pid"))?;
    Ok(text.lines().next().context("line 1 is the process")?.trim().parse()?)
}

#[tokio::test]
async fn the_server_of_a_killed_run_is_replaced_and_keeps_its_data() -> Result<()> {
    let dir = open_tempdir()?;
    let folder = dir.path().join("pg");
    let (mut killed, url) = holder([folder.as_os_str()], &[])?;
    write_mark(&url).await?;
    let old = postmaster(&folder)?;
    killed.kill()?;
    killed.wait()?;
    assert!(running(old), "a killed run cannot stop its server");

    let said = Said::default();
    let cluster = start(Options::persistent(&folder), &said).await?;
    assert!(!running(old));
    assert!(said.text().contains(&format!("process {old}")), "{}", said.text());
    assert!(!cluster.created());
    assert_eq!(read_mark(&cluster.url("postgres")).await?, 42);
    cluster.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_second_run_on_the_folder_is_refused_and_harms_nothing() -> Result<()> {
    let dir = open_tempdir()?;
    let folder = dir.path().join("pg");
    let (mut first, url) = holder([folder.as_os_str()], &[])?;
    write_mark(&url).await?;

    let refused = start(Options::persistent(&folder), &Said::default()).await;
    let Err(error @ Error::InUse { .. }) = refused else { panic!("{refused:?}") };
    assert!(error.to_string().contains(&format!("process {}", first.id())), "{error}");
    assert_eq!(read_mark(&url).await?, 42, "the first one goes on");

    drop(first.stdin.take());
    assert!(first.wait()?.success());
    start(Options::persistent(&folder), &Said::default()).await?.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_stale_pid_file_that_names_a_strangers_process_is_no_obstacle() -> Result<()> {
    let dir = open_tempdir()?;
    let folder = dir.path().join("pg");
    start(Options::persistent(&folder), &Said::default()).await?.stop().await?;

    // A process of the server's user: PostgreSQL alone would take it for a server and refuse.
    let owner = fs::metadata(folder.join("data"))?;
    let mut stranger = Command::new("cat");
    stranger.stdin(Stdio::piped()).stdout(Stdio::null());
    if owner.uid() != fs::metadata(dir.path())?.uid() {
        stranger.uid(owner.uid()).gid(owner.gid());
    }
    let mut stranger = stranger.spawn()?;
    let pid_file = folder.join("data/postmaster.pid");
    fs::write(
        &pid_file,
        format!("{}\n{}\n1\n5432\n/nowhere\n\n 1 1\nready\n", stranger.id(), folder.display()),
    )?;
    chown(&pid_file, Some(owner.uid()), Some(owner.gid()))?;

    let cluster = start(Options::persistent(&folder), &Said::default()).await?;
    assert_eq!(stranger.try_wait()?, None, "the stranger is left alone");
    cluster.stop().await?;
    drop(stranger.stdin.take());
    stranger.wait()?;
    Ok(())
}

#[tokio::test]
async fn a_start_given_up_half_way_leaves_no_server() -> Result<()> {
    let dir = open_tempdir()?;
    let folder = dir.path().join("pg");
    start(Options::persistent(&folder), &Said::default()).await?.stop().await?;

    // A standby that takes no queries is never ready, so the start cannot be faster than this test.
    let standby = folder.join("data/standby.signal");
    let owner = fs::metadata(folder.join("data"))?;
    fs::write(&standby, "")?;
    chown(&standby, Some(owner.uid()), Some(owner.gid()))?;
    let said = Said::default();
    let options = Options::persistent(&folder).setting("hot_standby", "off");
    let pid = tokio::select! {
        started = start(options, &said) => anyhow::bail!("a standby became ready: {started:?}"),
        pid = until_started(&folder) => pid,
    };
    assert!(!running(pid), "giving the start up stops the server");

    fs::remove_file(&standby)?;
    start(Options::persistent(&folder), &said).await?.stop().await?;
    assert_eq!(said.text(), "", "nothing was left to clear");
    Ok(())
}

/// Waits for the server's process number.
async fn until_started(folder: &Path) -> i32 {
    loop {
        match postmaster(folder) {
            Ok(pid) => return pid,
            Err(_) => tokio::task::yield_now().await,
        }
    }
}
