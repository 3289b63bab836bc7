use std::path::Path;

use anyhow::Result;
use sqlx::PgPool;

use crate::support::{Dev, text};

const LOG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/combined.log");

/// Everything that an import may change.
async fn state(pool: &PgPool) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for statement in [
        "select t::text from eco_api_usage t order by event_id",
        "select eco_id || ' ' || sum(recorded_units) from eco_usage_counters group by eco_id order by eco_id",
        "select eco_id || anchor_time || plan from eco_subscriptions order by eco_id",
        "select t::text from eco_usage_daily t order by 1",
        "select file_digest || shift_ms from eco_imports order by 1",
    ] {
        all.extend(sqlx::query_scalar::<_, String>(statement).fetch_all(pool).await?);
    }
    Ok(all)
}

#[tokio::test]
async fn importing_twice_changes_nothing() -> Result<()> {
    let dev = Dev::start(&["--ephemeral", "--empty"]).await?;
    let pool = dev.database().await?;
    let import = ["import", LOG, "--create-accounts", "free", "--shift-to-now"];
    // Of events as old as these nothing would be recorded: nothing is fixed or made for them.
    let old = tempfile::tempdir()?;
    let old = old.path().join("old.log");
    let path = old.to_str().expect("a path of ours");
    for year in ["/2015:", "/2999:"] {
        std::fs::write(&old, std::fs::read_to_string(LOG)?.replace("/2026:", year))?;
        let refused = dev.command(&["import", path, "--create-accounts", "free"]).await?;
        let said = text(&refused.stderr);
        assert!(!refused.status.success() && said.contains("--shift-to-now"), "{said}");
    }
    let refused = dev.command(&["import", LOG, "--shift-to-now"]).await?;
    assert!(!refused.status.success() && text(&refused.stderr).contains("--create-accounts"));
    assert!(state(&pool).await?.is_empty());

    let first = dev.command(&import).await?;
    let (said, told) = (text(&first.stdout), text(&first.stderr));
    assert!(first.status.success(), "{told}");
    assert!(said.contains("calls       12 (12 new, 0 recorded before)"), "{said}");
    assert!(said.contains("malformed   2 lines, skipped"), "{said}");
    assert!(said.contains("empty lines 1, skipped"), "{said}");
    assert!(said.contains("accounts    4 (4 new, 0 existing)"), "{said}");
    assert!(told.contains("line 5: ") && told.contains("line 11: "), "{told}");

    let before = state(&pool).await?;
    // All are UUIDv8, and the times keep their distances: an hour and two minutes from first to last.
    let (events, version, span): (i64, i64, i64) = sqlx::query_as(
        "select count(*), count(*) filter (where substr(event_id::text, 15, 1) = '8'),
                extract(epoch from max(event_time) - min(event_time))::bigint from eco_api_usage",
    )
    .fetch_one(&pool)
    .await?;
    assert_eq!((events, version, span), (12, 12, 3_720));
    let anchored: i64 = sqlx::query_scalar(
        "select count(*) from eco_subscriptions where anchor_time = (select min(event_time) from eco_api_usage)",
    )
    .fetch_one(&pool)
    .await?;
    assert_eq!(anchored, 4);

    let second = dev.command(&import).await?;
    let said = text(&second.stdout);
    assert!(said.contains("calls       12 (0 new, 12 recorded before)"), "{said}");
    assert!(said.contains("accounts    4 (0 new, 4 existing)"), "{said}");
    assert_eq!(state(&pool).await?, before);
    pool.close().await;
    dev.stop().await
}

#[tokio::test]
async fn json_lines_name_their_account_and_latency_and_tell_who_is_over() -> Result<()> {
    let dev = Dev::start(&["--ephemeral", "--empty"]).await?;
    let pool = dev.database().await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("calls.jsonl");
    std::fs::write(&file, json_lines())?;
    let path = file.to_str().expect("a path in UTF-8");
    let import = |more: &[&'static str]| {
        let mut arguments = vec!["import", path, "--format", "json", "--account-by", "tenant"];
        arguments.extend(["--latency-field", "took", "--latency-unit", "s", "--shift-to-now"]);
        arguments.extend(more);
        arguments.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let run = async |arguments: Vec<String>| {
        dev.command(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await
    };

    // Without accounts nothing can be recorded, and that is said.
    let refused = run(import(&[])).await?;
    let said = text(&refused.stderr);
    assert!(!refused.status.success() && said.contains("--create-accounts"), "{said}");

    let done = run(import(&["--create-accounts", "free"])).await?;
    let said = text(&done.stdout);
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(said.contains("calls       1,003 (1,003 new, 0 recorded before)"), "{said}");
    assert!(said.contains("Over the limit of their plan by this file alone: 1"), "{said}");
    assert!(
        said.contains("eco_busy") && said.contains("1,002 calls in a period, free includes 1,000"),
        "{said}"
    );
    assert!(
        said.contains("free        1 account over 1,000 calls a period: 2 calls would be refused"),
        "{said}"
    );
    let (latency, route): (i32, Option<String>) =
        sqlx::query_as("select response_time_ms, route from eco_api_usage where eco_id like 'eco_small-co%'")
            .fetch_one(&pool)
            .await?;
    assert_eq!((latency, route.as_deref()), (250, Some("/v1/items/{id}")));
    pool.close().await;
    dev.stop().await
}

/// A busy tenant with two calls more than free includes, and a small one whose name is no account id.
fn json_lines() -> String {
    let busy = r#"{"tenant":"busy","time":"2026-01-05T10:00:00Z","method":"GET","path":"/v1/search?q=a","status":200}"#;
    let small = r#"{"tenant":"small co","time":"2026-01-05T10:30:00Z","method":"GET","path":"/v1/items/77","status":200,"took":0.25}"#;
    let mut lines = vec![busy; 1_002];
    lines.push(small);
    lines.join("\n")
}

#[tokio::test]
async fn a_missing_token_is_told_before_anything_is_read() -> Result<()> {
    for arguments in [&["import", LOG][..], &["import", LOG, "--token", ""], &["overage", "process"]] {
        let output = crate::support::run(arguments).await?;
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains("NEXUS_TOKEN (--token)"), "{said}");
        assert!(!said.contains("line 5"), "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn a_log_that_cannot_be_read_is_a_failure_and_an_empty_one_is_not() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (nonsense, empty) = (folder.path().join("nonsense.log"), folder.path().join("empty.log"));
    std::fs::write(&nonsense, "nonsense\n")?;
    std::fs::write(&empty, "")?;
    for (file, code) in [(nonsense, 1), (empty, 0)] {
        let file = file.to_str().expect("a path of ours");
        let output = crate::support::run(&["import", file, "--token", "t"]).await?;
        assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
        assert!(text(&output.stdout).contains("no calls"), "{}", text(&output.stdout));
    }
    let output = crate::support::run(&["import", LOG, "--token", "t", "--account-by", "tenant"]).await?;
    assert!(!output.status.success() && text(&output.stderr).contains("--account-by tenant"));
    Ok(())
}

#[tokio::test]
async fn a_missing_file_is_named() -> Result<()> {
    let output = crate::support::run(&["import", "no-such.log", "--token", "t"]).await?;
    assert!(!output.status.success() && text(&output.stderr).contains("no-such.log"));
    assert!(Path::new(LOG).exists());
    Ok(())
}
