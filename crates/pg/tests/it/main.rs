//! The private cluster as its users see it, with the server programs of this machine.

mod ephemeral;
mod killed;
mod placement;
mod programs;
mod restart;

use anyhow::Result;
use nexus_pg::{Cluster, Options};
use sqlx::{Connection, PgConnection};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tempfile::TempDir;

/// A temporary folder that the server's user may pass, also when root runs the tests.
fn open_tempdir() -> Result<TempDir> {
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
    Ok(dir)
}

/// Starts on `options`; nothing may be fetched in a test.
async fn start(mut options: Options, said: &Said) -> Result<Cluster, nexus_pg::Error> {
    options.fetch = false;
    Cluster::start(options, &|line| said.add(line)).await
}

/// What the library told the user.
#[derive(Default)]
struct Said(Mutex<Vec<String>>);

impl Said {
    fn add(&self, line: &str) {
        self.0.lock().expect("no test panics while it holds this").push(line.to_owned());
    }

    fn text(&self) -> String {
        self.0.lock().expect("no test panics while it holds this").join("\n")
    }
}

async fn connect(url: &str) -> Result<PgConnection> {
    Ok(PgConnection::connect(url).await?)
}

/// Writes a row that a later run looks for.
async fn write_mark(url: &str) -> Result<()> {
    let mut connection = connect(url).await?;
    sqlx::raw_sql("CREATE TABLE mark (n int); INSERT INTO mark VALUES (42)").execute(&mut connection).await?;
    Ok(())
}

async fn read_mark(url: &str) -> Result<i32> {
    let mut connection = connect(url).await?;
    Ok(sqlx::query_scalar("SELECT n FROM mark").fetch_one(&mut connection).await?)
}

fn running(pid: i32) -> bool {
    // A process that ended but is not yet waited for has no working folder any more.
    fs::read_link(format!("/proc/{pid}/cwd")).is_ok()
}

/// The folder of the server's socket, out of its URL.
async fn socket_dir(url: &str) -> Result<PathBuf> {
    let mut connection = connect(url).await?;
    let dir: String = sqlx::query_scalar("SELECT current_setting('unix_socket_directories')")
        .fetch_one(&mut connection)
        .await?;
    Ok(PathBuf::from(dir))
}

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o777)
}
