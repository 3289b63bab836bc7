//! How many connections the servers of a process may have open: fewer than the process may have files, so that the
//! database, the spool and the operations port never lack one because of who connects.

use std::sync::{Arc, OnceLock};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::Semaphore;

/// More are of no use: each may have a thousand calls in flight.
const MOST: u64 = 16_384;
/// Files of everything else.
const OTHERS: u64 = 256;

/// Places for connections, of all servers of the process together. It may have as many files open as it is allowed to
/// allow itself; some are kept for everything else.
pub fn connection_places() -> Arc<Semaphore> {
    static PLACES: OnceLock<Arc<Semaphore>> = OnceLock::new();
    PLACES.get_or_init(places).clone()
}

fn places() -> Arc<Semaphore> {
    let allowed = allowed().unwrap_or_else(|error| {
        tracing::warn!(%error, "the limit of open files is unknown");
        MOST
    });
    let places = allowed.saturating_sub(OTHERS).clamp(1, MOST);
    tracing::debug!(allowed, places, "connections are bounded");
    Arc::new(Semaphore::new(usize::try_from(places).unwrap_or(Semaphore::MAX_PERMITS)))
}

fn allowed() -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        return Ok(hard);
    }
    Ok(soft)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_allows_itself_what_it_may_and_keeps_some_for_others() -> nix::Result<()> {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let few = 1_024.min(hard);
        setrlimit(Resource::RLIMIT_NOFILE, few / 2, few)?;
        assert_eq!(connection_places().available_permits() as u64, few - OTHERS);
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE)?, (few, few));
        Ok(())
    }
}
