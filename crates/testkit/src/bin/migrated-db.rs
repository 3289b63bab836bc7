//! Makes a fresh migrated database on the test server and prints its URL; for checking queries against.

use anyhow::Result;
use nexus_testkit::db::TestDb;

#[tokio::main]
async fn main() -> Result<()> {
    let db = TestDb::new().await?;
    println!("{}", db.url());
    // The database outlives this process; the server it is on is thrown away.
    std::mem::forget(db);
    Ok(())
}
