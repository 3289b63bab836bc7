//! `nexus accounts list`, `create` and `plan`.

use std::{collections::BTreeSet, process::Stdio};

use anyhow::{Context, Result};
use chrono::{TimeDelta, Utc};
use nexus_core::plan::Plan;
use nexus_testkit::{
    seed,
    settings::{admin_token, user_token},
};
use serde_json::{Value, json};

use super::servers::{Servers, blotted, service};
use crate::support::{Terminal, text};

const MANY: usize = 230;

/// The services, and many free accounts: `eco_000` to `eco_229`.
async fn with_many() -> Result<Servers> {
    let servers = Servers::start().await?;
    sqlx::query(
        "insert into eco_identities (eco_id, email, created_time)
         select 'eco_' || to_char(n, 'FM000'), 'User' || n || '@example.com', now() - n * interval '1 hour'
         from generate_series(0, $1 - 1) n",
    )
    .bind(i32::try_from(MANY)?)
    .execute(&servers.db.pool)
    .await?;
    sqlx::query(
        "insert into eco_subscriptions (eco_id, plan, plan_version, status, anchor_time)
         select eco_id, 'free', 1, 'active', created_time from eco_identities",
    )
    .execute(&servers.db.pool)
    .await?;
    Ok(servers)
}

fn ids(list: &Value) -> Result<Vec<&str>> {
    let rows = list["accounts"].as_array().context("a list")?;
    Ok(rows.iter().filter_map(|row| row["eco_id"].as_str()).collect())
}

#[tokio::test]
async fn accounts_are_listed_with_usage_and_revenue() -> Result<()> {
    let servers = Servers::start().await?;
    let (pool, admin) = (&servers.db.pool, admin_token()?);
    for (eco_id, plan) in [("eco_a", Plan::Pro), ("eco_b", Plan::Enterprise), ("eco_c", Plan::Free)] {
        seed::account(pool, eco_id, plan, Utc::now() - TimeDelta::days(3)).await?;
    }
    sqlx::query("update eco_subscriptions set status = 'past_due' where eco_id = 'eco_b'")
        .execute(pool)
        .await?;
    sqlx::query("select increment_api_calls('eco_a', 101234)").execute(pool).await?;
    // A run brings the figures up to date; it cannot charge who has no customer at Stripe.
    let run = servers.run(&service()?, &["overage", "process"]).await?;
    assert_eq!(run.status.code(), Some(2), "{}", text(&run.stderr));
    insta::assert_snapshot!(blotted(&servers.says(&admin, &["accounts", "list"]).await?));
    insta::assert_json_snapshot!(servers.json(&admin, &["accounts", "list"]).await?, {
        ".accounts[].create_time" => "[time]",
        ".accounts[].last_api_call_time" => "[time]",
    });
    for (filter, found) in [
        (&["--plan", "pro"][..], &["eco_a"][..]),
        (&["--status", "past_due"], &["eco_b"]),
        (&["--prefix", "ECO_C@"], &["eco_c"]),
        (&["--prefix", "eco_", "--plan", "free", "--status", "active"], &["eco_c"]),
        (&["--sort", "revenue"], &["eco_b", "eco_a", "eco_c"]),
        (&["--sort", "created"], &["eco_c", "eco_b", "eco_a"]),
        (&["--prefix", "nobody"], &[]),
    ] {
        let arguments: Vec<_> = ["accounts", "list"].iter().chain(filter).copied().collect();
        assert_eq!(ids(&servers.json(&admin, &arguments).await?)?, found, "{filter:?}");
    }
    for (wrong, named) in [
        (&["--plan", "gold"][..], "[possible values: free, pro, enterprise]"),
        (&["--status", "late"], "[possible values: trialing, active, past_due, "),
        (&["--sort", "name"], "[possible values: usage, overage, revenue, created]"),
        (&["--limit", "0"], "--limit"),
        (&["--limit", "5", "--all"], "'--limit <N>' cannot be used with '--all'"),
    ] {
        let arguments: Vec<_> = ["accounts", "list"].iter().chain(wrong).copied().collect();
        let said = servers.refuses(&admin, &arguments).await?;
        assert!(said.contains(named), "{wrong:?}: {said}");
    }
    let user = servers.refuses(&user_token("eco_a")?, &["accounts", "list"]).await?;
    assert!(user.contains("PERMISSION_DENIED"), "{user}");
    Ok(())
}

#[tokio::test]
async fn pages_follow_each_other_to_the_end_or_to_the_limit() -> Result<()> {
    let (servers, admin) = (with_many().await?, admin_token()?);
    let list = ["accounts", "list", "--sort", "created"];
    let with = |more: &[&'static str]| list.iter().chain(more).copied().collect::<Vec<_>>();
    let all = servers.json(&admin, &with(&["--all"])).await?;
    assert_eq!((&all["more"], &all["total"]), (&json!(false), &json!(MANY)));
    let found = ids(&all)?;
    assert_eq!((found.len(), found.iter().collect::<BTreeSet<_>>().len()), (MANY, MANY));
    assert_eq!((found[0], found[MANY - 1]), ("eco_000", "eco_229"));
    let some = servers.json(&admin, &with(&["--limit", "101"])).await?;
    assert_eq!((ids(&some)?, &some["more"]), (found[..101].to_vec(), &json!(true)));

    let output = servers.run(&admin, &with(&[])).await?;
    assert_eq!(text(&output.stdout).lines().count(), 51, "the titles and fifty");
    assert_eq!(text(&output.stderr), "50 of 230 accounts; --all or a higher --limit lists more.\n");
    let output = servers.run(&admin, &with(&["--all"])).await?;
    assert_eq!((text(&output.stdout).lines().count(), text(&output.stderr).as_str()), (MANY + 1, ""));
    Ok(())
}

#[tokio::test]
async fn a_list_keeps_within_the_terminal_and_has_no_colours() -> Result<()> {
    let (servers, admin) = (with_many().await?, admin_token()?);
    for (columns, left_out) in [
        (200, None),
        (100, Some("Left out for want of width: created, last call.\n")),
        (60, Some("Left out for want of width: email, overage cost, created, last call.\n")),
    ] {
        let mut command = servers.command(&admin, &["accounts", "list", "--all"]);
        let (terminal, stdout) = Terminal::open(columns)?;
        let child = command.stdout(stdout).stderr(Stdio::piped()).spawn()?;
        // It holds the terminal open, too.
        drop(command);
        let output = child.wait_with_output().await?;
        let seen = terminal.end().await;
        assert_eq!(text(&output.stderr), left_out.unwrap_or_default(), "{columns}");
        assert_eq!(seen.lines().count(), MANY + 1, "{columns}");
        assert!(seen.lines().all(|line| line.chars().count() <= columns.into()), "{columns}: {seen}");
        assert!(!seen.contains('\u{1b}'), "{seen:?}");
    }
    Ok(())
}

#[tokio::test]
async fn whoever_has_read_enough_is_no_failure() -> Result<()> {
    let (servers, admin) = (with_many().await?, admin_token()?);
    let mut command = servers.command(&admin, &["accounts", "list", "--all"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    drop(child.stdout.take());
    let output = child.wait_with_output().await?;
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
    Ok(())
}

#[tokio::test]
async fn an_account_is_created_once_and_moved_between_plans() -> Result<()> {
    let (servers, service) = (Servers::start().await?, service()?);
    let id = "0b9c0bd4-55a6-4a2e-8a3f-9d1d4c1a7f00";
    let create =
        ["accounts", "create", "--account", "eco_a", "--email", "ann@mail.example", "--request-id", id];
    insta::assert_snapshot!(blotted(&servers.says(&service, &create).await?));
    insta::assert_json_snapshot!(servers.json(&service, &create).await?, {
        ".create_time" => "[time]",
        ".billing_anchor_time" => "[time]",
    });
    let taken = servers.refuses(&service, &["accounts", "create", "--account", "eco_a"]).await?;
    assert!(taken.contains("AlreadyExists") && !taken.contains("--request-id"), "{taken}");
    let wrong = ["accounts", "create", "--account", "a b", "--email", "nobody", "--currency", "dollars"];
    let wrong = servers.refuses(&service, &wrong).await?;
    for field in ["eco_id", "email", "currency_code"] {
        assert!(wrong.contains(&format!("\n  {field}: ")), "{wrong}");
    }
    let random = servers.json(&service, &["accounts", "create"]).await?;
    assert!(random["eco_id"].as_str().is_some_and(|id| id.starts_with("eco_")), "{random}");

    let plan = |plan: &'static str| ["accounts", "plan", plan, "--account", "eco_a"];
    assert_eq!(servers.says(&service, &plan("enterprise")).await?, "eco_a is on enterprise.\n");
    let later = servers.says(&service, &plan("pro")).await?;
    assert_eq!(
        blotted(&later),
        "eco_a stays on enterprise until YYYY-MM-DD hh:mm UTC, and is on pro from then on.\n"
    );
    let waits = servers.json(&service, &plan("pro")).await?;
    assert_eq!((&waits["account"]["plan"], &waits["requested_plan"]), (&json!("enterprise"), &json!("pro")));
    let now: Vec<_> = plan("free").into_iter().chain(["--now"]).collect();
    assert_eq!(servers.says(&service, &now).await?, "eco_a is on free.\n");
    let paid = servers.refuses(&user_token("eco_a")?, &["accounts", "plan", "pro"]).await?;
    assert!(paid.contains("ChangePlan") && paid.contains("CHECKOUT_REQUIRED"), "{paid}");
    let unknown = servers.refuses(&service, &["accounts", "plan", "gold"]).await?;
    assert!(unknown.contains("[possible values: free, pro, enterprise]"), "{unknown}");
    Ok(())
}
