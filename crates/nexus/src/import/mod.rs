//! `nexus import`: meters a web server's log through the gRPC API.
//!
//! | module | what it does |
//! |---|---|
//! | [`args`] | flags |
//! | [`lines`] | the file, line by line, never all of it in memory; its digest |
//! | [`parse`] | a line of the combined or common form, or of JSON |
//! | [`account`] | the account a caller gets |
//! | [`survey`] | the first reading: digest, times, accounts |
//! | [`send`] | accounts, the shift of the times, events in batches |
//! | [`report`] | what was found, and what it would cost |
//!
//! The file is read twice: events need its digest for their ids and its first and last time for the shift.

mod account;
mod args;
mod lines;
mod parse;
mod report;
mod send;
mod survey;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Datelike, TimeDelta, Utc};
use indicatif::{ProgressBar, ProgressStyle};
use nexus_core::period::MAX_EVENT_AGE;

pub(crate) use args::{HELP, ImportArgs};
use report::Report;
use send::{Services, Times};
use survey::Survey;

/// Imports the file and prints what was found.
pub(crate) async fn run(args: ImportArgs) -> Result<ExitCode> {
    args.check()?;
    let services = Services::new(&args)?;
    let parser = parse::Parser::new(&args);
    let size = std::fs::metadata(&args.file).with_context(|| args.file.display().to_string())?.len();
    let bar = progress(size, "reading")?;
    let survey = Survey::of(&args, &parser, &bar)?;
    bar.finish_and_clear();
    let Some((first, last)) = survey.span else {
        print!("{}", report::nothing(&args, &survey));
        // An empty log is a quiet day; a log in which no line can be read is a mistake.
        return Ok(if survey.malformed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    };

    // The shift is kept for good, so not before it is known that something can be recorded.
    let proposed = if args.shift_to_now { whole_seconds(Utc::now() - last) } else { TimeDelta::zero() };
    plausible(first + proposed, last + proposed).with_context(|| args.file.display().to_string())?;
    let existing = match args.create_accounts {
        Some(_) => None,
        None => Some(services.ensure_accounts(&survey, None).await?),
    };
    ensure!(
        existing.as_ref().is_none_or(|accounts| accounts.existing > 0),
        "{}: none of its {} accounts exists; --create-accounts PLAN makes them",
        args.file.display(),
        survey.accounts.len()
    );
    let (shift, known) = services.register(&survey.digest, proposed).await?;
    if known && shift.is_zero() == args.shift_to_now {
        eprintln!(
            "nexus: this file was imported before with its times moved by {} s; so they are again, or every event would count twice",
            shift.num_seconds()
        );
    }
    let times = Times { shift, anchor: first + shift };
    let accounts = match existing {
        Some(accounts) => accounts,
        None => {
            services.ensure_accounts(&survey, args.create_accounts.map(|plan| (plan, times.anchor))).await?
        }
    };

    let bar = progress(size, "recording")?;
    let sent = services.record(&args, &parser, &survey, &times, &accounts, &bar).await?;
    bar.finish_and_clear();
    let plans = services.plans().await?;
    let counted = sent.new + sent.duplicates > 0;
    print!(
        "{}",
        Report { args: &args, survey: &survey, times: &times, last, accounts: &accounts, sent, plans }
    );
    Ok(if counted { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether events between these times can be recorded at all.
fn plausible(first: DateTime<Utc>, last: DateTime<Utc>) -> Result<()> {
    let now = Utc::now();
    ensure!(
        last >= now - MAX_EVENT_AGE,
        "its last event is of {}, and events older than {} days are refused; --shift-to-now moves the file's times",
        show(last),
        MAX_EVENT_AGE.num_days()
    );
    ensure!(
        first <= now,
        "its first event is of {}, which is yet to come: is its time zone right? --shift-to-now moves the file's times",
        show(first)
    );
    ensure!(first.year() >= 1, "between its first and its last event are more years than can be moved");
    Ok(())
}

/// Shifts are whole seconds, as the times of most logs are.
fn whole_seconds(delta: TimeDelta) -> TimeDelta {
    TimeDelta::seconds(delta.num_seconds())
}

/// A bar over the bytes of the file; silent where the output is no terminal.
fn progress(bytes: u64, what: &'static str) -> Result<ProgressBar> {
    let style =
        ProgressStyle::with_template("{msg:>9} [{bar:40}] {percent:>3} %  {bytes}/{total_bytes}  {eta}")?;
    Ok(ProgressBar::new(bytes).with_style(style).with_message(what))
}

/// A time for people.
fn show(at: DateTime<Utc>) -> String {
    at.format("%F %T").to_string()
}
