//! A few seeds of each harness, and all that have failed once. More by hand: see README.md.

use std::{process::Command, thread};

use anyhow::{Context, Result, anyhow, ensure};

/// Seeds that have failed once.
const KEPT: &str = include_str!("../seeds.txt");

/// Runs the harness; what it printed, if everything holds.
fn run(arguments: &str) -> Result<String> {
    let harness = env!("CARGO_BIN_EXE_nexus-harness");
    let output = Command::new(harness).args(arguments.split(' ')).env("RUST_BACKTRACE", "0").output()?;
    let printed = String::from_utf8(output.stdout)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments}: {}\n{printed}{said}", output.status);
    print!("{printed}");
    Ok(printed)
}

/// The number that follows a text in the last line that has it.
fn number(printed: &str, text: &str) -> Result<u32> {
    let after = printed.rsplit_once(text).with_context(|| format!("no `{text}` in {printed}"))?.1;
    let digits = after.trim_start().split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().with_context(|| format!("no number after `{text}` in {printed}"))
}

#[test]
fn acknowledged_events_are_counted_once_whatever_is_killed() -> Result<()> {
    let printed = run("faults --first 4 --seeds 2 --faults 8")?;
    ensure!(printed.contains("2 seeds run") && printed.contains("0 failures"), "{printed}");
    // Or nothing was shown.
    for fault in ["answer of a commit lost", "replica killed", "client killed", "database killed"] {
        number(&printed, fault)?;
    }
    for counted in ["events sent again and counted once", "events in large batches", "events over streams"] {
        ensure!(number(&printed, counted)? > 0, "{printed}");
    }
    Ok(())
}

#[test]
fn so_are_those_that_replicas_acknowledged_into_their_spools() -> Result<()> {
    let printed = run("faults --seeds 1 --first 3 --spools")?;
    ensure!(printed.contains("1 seeds run") && printed.contains("0 failures"), "{printed}");
    ensure!(number(&printed, "events drained from spools")? > 0, "{printed}");
    Ok(())
}

#[test]
fn a_hard_limit_is_exact_whatever_is_stopped_and_killed() -> Result<()> {
    let printed = run("limit --seeds 7")?;
    ensure!(printed.contains("0 failures"), "{printed}");
    if printed.contains("no libfaketime") {
        // ./test says so, too.
        ensure!(printed.contains("6 seeds run") && printed.contains("1 seeds LEFT OUT"), "{printed}");
    } else {
        ensure!(printed.contains("7 seeds run") && number(&printed, "clock an hour off")? == 2, "{printed}");
    }
    for fault in [
        "replica killed",
        "replica stopped (SIGSTOP)",
        "replica cut off from the database",
        "replica restarted",
        "spend cap raised",
    ] {
        number(&printed, fault)?;
    }
    Ok(())
}

#[test]
fn everybody_who_owes_is_charged_once_and_the_poisoned_are_parked_whoever_is_killed() -> Result<()> {
    let printed = run("overage --accounts 2000 --poisoned 20 --kills 2 --speed 20")?;
    ensure!(printed.contains("1980 charged and 20 parked") && printed.contains("0 failures"), "{printed}");
    assert_eq!(number(&printed, "billing-svc killed")?, 2);
    Ok(())
}

#[test]
fn each_intent_has_one_item_wherever_billing_svc_is_killed_and_however_stripe_fails() -> Result<()> {
    // 50 seeds, in processes beside each other: much of their time they wait.
    const PROCESSES: u32 = 5;
    let printed: Vec<String> = thread::scope(|scope| {
        let runs: Vec<_> = (0..PROCESSES)
            .map(|n| scope.spawn(move || run(&format!("charges --first {} --seeds 10", 1 + 10 * n))))
            .collect();
        runs.into_iter().map(|run| run.join().map_err(|_| anyhow!("a run panicked"))?).collect::<Result<_>>()
    })?;
    let printed = printed.concat();
    ensure!(printed.matches("10 seeds run").count() == PROCESSES as usize, "{printed}");
    // Or nothing was shown.
    for struck in [
        "killed before a commit",
        "killed after a commit",
        "killed before POST /v1/invoiceitems",
        "killed after POST /v1/invoiceitems",
        "killed before a statement in a transaction",
        "killed after a statement of its own",
        "requests that arrived late",
        "two runs at once",
        "more than 24 h passed",
        "subscriptions renewed",
        "subscriptions ended at once",
        "subscriptions ended with their period",
        "webhooks applied",
        "charges on drafts",
        "charges taken off drafts",
        "invoices of settlements",
        "refused charges retried",
        "killed before GET /v1/subscriptions/{id}",
    ] {
        ensure!(number(&printed, struck)? > 0, "{struck}: {printed}");
    }
    Ok(())
}

#[test]
fn seeds_that_failed_once_hold() -> Result<()> {
    for arguments in KEPT.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        run(&format!("{arguments} --seeds 1"))?;
    }
    Ok(())
}
