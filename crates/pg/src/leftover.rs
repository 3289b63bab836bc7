//! The server that a killed run left behind: it goes before a new one starts, so that the server in use is always
//! our own child, with our settings.

use crate::pidfile::PostmasterPid;
use crate::{Error, Report};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::Path;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long a fast shutdown (it writes a checkpoint) may take before the immediate one.
const FAST: Duration = Duration::from_secs(60);
/// How long the immediate shutdown may take.
const IMMEDIATE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// Stops whatever server processes still work in `data`, then removes their stale `postmaster.pid`. The caller holds
/// the cluster's lock, so no other run of ours can be using them.
pub(crate) async fn stop(data: &Path, report: Report<'_>) -> Result<(), Error> {
    let processes = processes_in(data)?;
    let pid_file = data.join("postmaster.pid");
    if let Some(&any) = processes.first() {
        // Without its postmaster a backend ends by itself; then there is nobody to signal at first.
        let postmaster = match fs::read_to_string(&pid_file) {
            Ok(text) => {
                PostmasterPid::parse(&text).map(|file| file.pid).filter(|pid| processes.contains(pid))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io("read", &pid_file)(error)),
        };
        report(&format!(
            "stopping the PostgreSQL server (process {}) that an earlier run left",
            postmaster.unwrap_or(any)
        ));
        if let Some(pid) = postmaster {
            signal(pid, Signal::SIGINT)?;
        }
        if !gone(data, FAST).await? {
            for pid in processes_in(data)? {
                signal(pid, Signal::SIGQUIT)?;
            }
            if !gone(data, IMMEDIATE).await? {
                return Err(Error::WillNotStop { pid: postmaster.unwrap_or(any) });
            }
        }
    }
    // No server works here, so a file that is still there is stale. PostgreSQL would see so itself, except when its
    // process number has been given to another process since.
    match fs::remove_file(&pid_file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", &pid_file)(error))
        }
        _ => Ok(()),
    }
}

async fn gone(data: &Path, limit: Duration) -> Result<bool, Error> {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if processes_in(data)?.is_empty() {
            return Ok(true);
        }
        sleep(POLL).await;
    }
    Ok(false)
}

/// The PostgreSQL processes whose working folder is `data`: every process of a server works there.
fn processes_in(data: &Path) -> Result<Vec<i32>, Error> {
    let proc = Path::new("/proc");
    if !proc.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(proc).map_err(Error::io("list", proc))? {
        let entry = entry.map_err(Error::io("list", proc))?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process that is gone meanwhile, or another user's, cannot be read: it is none of ours.
        let works_here = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == data);
        // One that is ending has no program any more, and gives its shared memory back just then: a new server would
        // still find it in use.
        if works_here && fs::read_link(entry.path().join("exe")).map_or(true, |exe| is_postgres(&exe)) {
            found.push(pid);
        }
    }
    Ok(found)
}

fn is_postgres(program: &Path) -> bool {
    program.file_name().is_some_and(|name| name.to_string_lossy().starts_with("postgres"))
}

fn signal(pid: i32, signal: Signal) -> Result<(), Error> {
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(Error::io("signal", Path::new(&format!("process {pid}")))(error.into())),
    }
}
