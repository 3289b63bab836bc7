//! A persistent cluster from nothing to its second start.

use crate::{Said, connect, mode, open_tempdir, read_mark, running, socket_dir, start, write_mark};
use anyhow::Result;
use nexus_pg::{Error, Options};
use std::fs;

#[tokio::test]
async fn data_survives_a_restart() -> Result<()> {
    let dir = open_tempdir()?;
    let folder = dir.path().join("not/there/yet");
    let said = Said::default();

    let first = start(Options::persistent(&folder), &said).await?;
    assert!(first.created());
    write_mark(&first.url("postgres")).await?;
    let first_pid = first.pid();
    let socket = socket_dir(&first.url("postgres")).await?;
    first.stop().await?;
    assert!(!running(first_pid));
    assert!(!socket.exists(), "a stopped cluster keeps no socket folder");

    let second = start(Options::persistent(&folder), &said).await?;
    assert!(!second.created(), "the data was there");
    assert_eq!(read_mark(&second.url("postgres")).await?, 42);
    second.stop().await?;
    assert_eq!(said.text(), "", "nothing needs telling");
    Ok(())
}

#[tokio::test]
async fn a_killed_server_comes_back_with_what_was_committed_and_nothing_else() -> Result<()> {
    let mut cluster = start(Options::ephemeral(), &Said::default()).await?;
    let url = cluster.url("postgres");
    write_mark(&url).await?;
    let mut session = connect(&url).await?;
    sqlx::raw_sql("BEGIN; UPDATE mark SET n = 43").execute(&mut session).await?;
    let killed = cluster.pid();
    cluster.kill()?;
    assert!(!running(killed));
    cluster.restart().await?;
    assert!(running(cluster.pid()) && cluster.pid() != killed);
    assert_eq!(cluster.url("postgres"), url);
    assert_eq!(read_mark(&url).await?, 42);
    cluster.stop().await?;
    Ok(())
}

#[tokio::test]
async fn the_server_is_durable_private_and_set_as_asked() -> Result<()> {
    let dir = open_tempdir()?;
    let options = Options::persistent(dir.path().join("pg"))
        .setting("max_connections", "37")
        .setting("listen_addresses", "*");
    let cluster = start(options, &Said::default()).await?;
    let mut connection = connect(&cluster.url("postgres")).await?;
    for (setting, expected) in [
        ("max_connections", "37"),
        ("listen_addresses", ""),
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("full_page_writes", "on"),
        ("data_checksums", "on"),
        ("server_encoding", "UTF8"),
    ] {
        let value: String =
            sqlx::query_scalar("SELECT current_setting($1)").bind(setting).fetch_one(&mut connection).await?;
        assert_eq!(value, expected, "{setting}");
    }
    let (user, superuser): (String, bool) =
        sqlx::query_as("SELECT rolname::text, rolsuper FROM pg_roles WHERE rolname = current_user")
            .fetch_one(&mut connection)
            .await?;
    assert_eq!((user.as_str(), superuser), ("postgres", true));
    // Whoever reaches the socket is trusted, so nobody else may.
    assert_eq!(mode(&socket_dir(&cluster.url("postgres")).await?)?, 0o700);
    assert_eq!(mode(&cluster.folder().join("data"))?, 0o700);
    cluster.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_database_name_may_hold_anything() -> Result<()> {
    let cluster = start(Options::ephemeral(), &Said::default()).await?;
    let name = "a b/c?d&ü%41";
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE DATABASE \"{name}\"")))
        .execute(&mut connect(&cluster.url("postgres")).await?)
        .await?;
    let mut connection = connect(&cluster.url(name)).await?;
    let current: String =
        sqlx::query_scalar("SELECT current_database()::text").fetch_one(&mut connection).await?;
    assert_eq!(current, name);
    cluster.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_server_that_will_not_start_tells_why() -> Result<()> {
    let dir = open_tempdir()?;
    let folder = dir.path().join("pg");
    let options = Options::persistent(&folder).setting("max_connections", "many");
    let refused = start(options, &Said::default()).await;
    let Err(Error::EndedEarly { log, .. }) = &refused else { panic!("{refused:?}") };
    assert!(log.contains("max_connections"), "{log}");

    // Nothing of the failure stands in the way of the next start.
    start(Options::persistent(&folder), &Said::default()).await?.stop().await?;
    Ok(())
}

#[tokio::test]
async fn an_unfinished_initdb_is_not_taken_for_data() -> Result<()> {
    let dir = open_tempdir()?;
    let folder = dir.path().join("pg");
    fs::create_dir_all(folder.join("data.new/base"))?;
    fs::write(folder.join("data.new/PG_VERSION"), "15\n")?;
    let cluster = start(Options::persistent(&folder), &Said::default()).await?;
    assert!(cluster.created());
    assert!(!folder.join("data.new").exists());
    cluster.stop().await?;
    Ok(())
}
