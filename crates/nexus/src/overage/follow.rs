//! `nexus overage watch`, and how a run is followed: a bar on a terminal, lines otherwise.

use std::{
    io::{IsTerminal, stderr},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nexus_client as client;
use nexus_proto::billing::v1::{
    GetOverageRunRequest, OverageRun, OverageRunStatus, WatchOverageRunRequest, WatchOverageRunResponse,
    billing_service_client::BillingServiceClient,
};
use tonic::{Status, transport::Channel};

use super::{Failures, exit_code, show};
use crate::call::Billing;

pub(super) const HELP: &str = "\
It ends when the run has ended; leaving it (Ctrl-C) does not end the run.
Exit code: 0 all well, 2 some accounts could not be charged (`nexus overage errors` lists them), 1 the run
failed.";

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
const BAR: &str = "[{elapsed_precise}] {bar:30} {human_pos} of {human_len} accounts, {msg}";

#[derive(Args)]
pub(crate) struct WatchArgs {
    /// The run (`nexus overage runs` lists them)
    #[arg(value_name = "RUN_ID")]
    run_id: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Billing,
}

pub(super) async fn run(args: &WatchArgs) -> Result<ExitCode> {
    let run = watched_run(args).await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&show::run_json(&run))?);
    } else {
        print!("{}", show::run_text(&run));
    }
    Ok(match run.status() {
        OverageRunStatus::Finished => exit_code(run.failed_count),
        _ => ExitCode::FAILURE,
    })
}

/// The run, once it has ended.
async fn watched_run(args: &WatchArgs) -> Result<OverageRun> {
    let mut billing = args.server.client()?;
    let mut failures = Failures::default();
    loop {
        let status = match to_the_end(&args.server, &mut billing, &args.run_id).await? {
            Ok(_) => {
                let request = GetOverageRunRequest { run_id: args.run_id.clone() };
                let request = args.server.request(request)?;
                match billing.get_overage_run(request).await {
                    Ok(answer) => return Ok(answer.into_inner().run.unwrap_or_default()),
                    Err(status) => status,
                }
            }
            Err(status) => status,
        };
        let failed = args.server.refused("WatchOverageRun", &status);
        if !client::is_transient(&status) {
            return Err(anyhow!(failed));
        }
        failures.wait_after(failed).await?;
    }
}

/// Shows how far a run is until it has ended; returns the last that was said of it, or why nothing more is said.
pub(super) async fn to_the_end(
    server: &Billing,
    billing: &mut BillingServiceClient<Channel>,
    run_id: &str,
) -> Result<Result<WatchOverageRunResponse, Status>> {
    let request = server.credentials.options()?.endless(WatchOverageRunRequest { run_id: run_id.to_owned() });
    let mut progress = Progress::new(run_id)?;
    let mut looks = match billing.watch_overage_run(request).await {
        Ok(looks) => looks.into_inner(),
        Err(status) => return Ok(Err(status)),
    };
    loop {
        match looks.message().await {
            // Nobody is counted yet.
            Ok(Some(look)) if look.running && look.accounts_count == 0 => {}
            Ok(Some(look)) if look.running => progress.show(&look),
            Ok(Some(look)) => {
                progress.end(&look);
                return Ok(Ok(look));
            }
            Ok(None) => return Ok(Err(Status::unavailable("it ended before the run"))),
            Err(status) => return Ok(Err(status)),
        }
    }
}

/// What is shown meanwhile, on standard error.
enum Progress {
    /// On a terminal.
    Bar(ProgressBar),
    /// Elsewhere.
    Lines { run_id: String, last: Option<Instant> },
}

impl Progress {
    fn new(run_id: &str) -> Result<Self> {
        if !stderr().is_terminal() {
            return Ok(Self::Lines { run_id: run_id.to_owned(), last: None });
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(ProgressStyle::with_template(BAR)?);
        Ok(Self::Bar(bar))
    }

    fn show(&mut self, look: &WatchOverageRunResponse) {
        match self {
            Self::Bar(bar) => draw(bar, look),
            Self::Lines { run_id, last } => {
                if last.is_none_or(|last| last.elapsed() >= LINE_EVERY) {
                    eprint!("{}", show::look_text(run_id, look));
                    *last = Some(Instant::now());
                }
            }
        }
    }

    /// The bar stays where it is: what follows is printed below.
    fn end(self, look: &WatchOverageRunResponse) {
        if let Self::Bar(bar) = self {
            draw(&bar, look);
            bar.abandon();
        }
    }
}

fn draw(bar: &ProgressBar, look: &WatchOverageRunResponse) {
    bar.set_length(u64::from(look.accounts_count.unsigned_abs()));
    bar.set_position(u64::from(look.processed_count.unsigned_abs()));
    bar.set_message(show::look_message(look));
    bar.tick();
}
