use anyhow::Result;
use nexus_testkit::db::TestDb;
use sqlx::Executor;

use crate::support::{run, text};

#[tokio::test]
async fn migrate_says_what_it_applied_and_the_second_time_nothing() -> Result<()> {
    let db = TestDb::new().await?;
    db.pool.execute("drop schema public cascade; create schema public").await?;
    let first = run(&["migrate", "--database-url", db.url()]).await?;
    assert!(first.status.success(), "{}", text(&first.stderr));
    let count = nexus_kit::db::MIGRATOR.iter().count();
    let said = text(&first.stdout);
    assert_eq!(said.lines().filter(|line| line.starts_with("applied ")).count(), count, "{said}");

    let second = run(&["migrate", "--database-url", db.url()]).await?;
    assert!(text(&second.stdout).starts_with("nothing to apply"), "{}", text(&second.stdout));
    Ok(())
}

#[tokio::test]
async fn servers_name_a_bad_setting() -> Result<()> {
    for (arguments, named) in [
        (&["usage", "--grpc-addr", "nowhere"][..], "--grpc-addr"),
        (&["billing", "--shutdown-grace", "long"], "--shutdown-grace"),
        (&["gateway", "--http-addr", "nowhere"], "--http-addr"),
        (&["rollup", "yesterday"], "DATE"),
        (&["overage", "process", "--billing-addr", "ftp://x"], "--billing-addr"),
    ] {
        let output = run(arguments).await?;
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains(named), "{arguments:?}: {said}");
    }
    Ok(())
}
