//! A private PostgreSQL for a shell or a test: prints its URL, serves until its standard input ends or a SIGINT or
//! SIGTERM comes, and stops it.
//!
//! ```text
//! private-postgres [FOLDER]      without FOLDER: a throw-away one
//! ```

use nexus_pg::{Cluster, Options};
use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("private-postgres: {error}");
            let mut cause = error.source();
            while let Some(deeper) = cause {
                eprintln!("  because: {deeper}");
                cause = deeper.source();
            }
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let options = std::env::args_os().nth(1).map_or_else(Options::ephemeral, Options::persistent);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;

    let starting = Cluster::start(options, &|said| eprintln!("private-postgres: {said}"));
    let cluster = tokio::select! {
        started = starting => started?,
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
    };
    let mut out = std::io::stdout();
    writeln!(out, "{}", cluster.url("postgres"))?;
    out.flush()?;

    // A thread, since a read of standard input cannot be called off; it ends with the process.
    let (at_end, mut input_end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let ended = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        // Without a receiver the server is being stopped already.
        let _ = at_end.send(ended);
    });
    tokio::select! {
        ended = &mut input_end => { ended??; }
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    cluster.stop().await?;
    Ok(())
}
