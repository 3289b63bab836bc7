//! Where a cluster can be put.

use crate::{Said, connect, open_tempdir, read_mark, socket_dir, start, write_mark};
use anyhow::Result;
use nexus_pg::{Error, Options};
use nix::unistd::geteuid;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;

#[tokio::test]
async fn a_path_too_long_for_a_socket_works() -> Result<()> {
    let dir = open_tempdir()?;
    let folder = dir.path().join("long".repeat(40));
    let cluster = start(Options::persistent(&folder), &Said::default()).await?;
    let url = cluster.url("postgres");
    connect(&url).await?;
    let socket = socket_dir(&url).await?;
    assert!(socket.as_os_str().as_bytes().len() < 94, "{socket:?}");
    cluster.stop().await?;
    assert!(!socket.exists());
    Ok(())
}

#[tokio::test]
async fn a_path_with_a_comma_or_a_space_works() -> Result<()> {
    let dir = open_tempdir()?;
    let cluster = start(Options::persistent(dir.path().join("my data, here")), &Said::default()).await?;
    connect(&cluster.url("postgres")).await?;
    cluster.stop().await?;
    Ok(())
}

/// Below a folder that only we may enter: as root, whose server is another user's, the data moves and a link stands
/// in its place; anybody else's stays.
#[tokio::test]
async fn a_closed_parent_folder_is_got_around() -> Result<()> {
    let closed = tempfile::tempdir()?;
    fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o700))?;
    let fallback = open_tempdir()?;
    let folder = closed.path().join("clone/.nexus/pg");
    let options = || {
        let mut options = Options::persistent(&folder);
        options.fallback_dir = fallback.path().join("lib");
        options
    };
    let said = Said::default();
    let first = start(options(), &said).await?;
    write_mark(&first.url("postgres")).await?;
    first.stop().await?;
    let is_link = fs::symlink_metadata(&folder)?.is_symlink();
    assert_eq!(is_link, geteuid().is_root());
    assert_eq!(said.text().contains("the data goes to"), is_link, "{}", said.text());

    let again = start(options(), &Said::default()).await?;
    assert!(!again.created());
    assert_eq!(read_mark(&again.url("postgres")).await?, 42);
    again.stop().await?;

    // Removing what stands at the asked place starts from nothing.
    if is_link {
        fs::remove_file(&folder)?
    } else {
        fs::remove_dir_all(&folder)?
    }
    let fresh = start(options(), &Said::default()).await?;
    assert!(fresh.created());
    fresh.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_data_folder_without_a_version_is_refused() -> Result<()> {
    let dir = open_tempdir()?;
    let folder = dir.path().join("pg");
    start(Options::persistent(&folder), &Said::default()).await?.stop().await?;
    fs::remove_file(folder.join("data/PG_VERSION"))?;
    let refused = start(Options::persistent(&folder), &Said::default()).await;
    assert!(matches!(refused, Err(Error::NotPostgresData { .. })), "{refused:?}");
    assert!(folder.join("data/base").exists(), "it is not touched");
    Ok(())
}
