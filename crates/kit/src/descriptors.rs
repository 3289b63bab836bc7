//! How many connections a server may have open: fewer than the process may have files, so that the database, the spool
//! and the operations port never lack one because of who connects.

use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::Semaphore;

/// More are of no use: each may have a thousand calls in flight.
const MOST: u64 = 16_384;
/// Files of everything else.
const OTHERS: u64 = 256;

/// Places for a server's connections. The process may have as many files open as it is allowed to allow itself; of what
/// is left beside the others, one server takes half.
pub fn connection_places() -> Arc<Semaphore> {
    let allowed = allowed().unwrap_or_else(|error| {
        tracing::warn!(%error, "the limit of open files is unknown");
        MOST
    });
    let places = (allowed.saturating_sub(OTHERS) / 2).clamp(1, MOST);
    tracing::debug!(allowed, places, "connections are bounded");
    Arc::new(Semaphore::new(usize::try_from(places).unwrap_or(Semaphore::MAX_PERMITS)))
}

fn allowed() -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_allows_itself_what_it_may_and_keeps_some_for_others() -> nix::Result<()> {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let few = 1_024.min(hard);
        setrlimit(Resource::RLIMIT_NOFILE, few / 2, few)?;
        assert_eq!(connection_places().available_permits() as u64, (few - OTHERS) / 2);
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE)?, (few, few));
        Ok(())
    }
}
