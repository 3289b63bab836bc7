//! What the database says of the events of a flush.

use std::collections::{HashMap, HashSet};

use sqlx::PgConnection;

use super::locked::Locked;
use crate::{
    domain::{event::Event, judge::Facts},
    store,
};

/// Reads what judging needs, and takes a slot. The plans are held first: the segments that are open then are so
/// until the commit, and a change of plan adds up only what is committed.
pub(super) async fn read(
    connection: &mut PgConnection,
    slot: &mut i16,
    events: &[&Event],
) -> sqlx::Result<Result<Facts, Locked>> {
    let (now, free) = store::writer_slot::try_hold(connection, *slot).await?;
    // With every slot taken the one before is shared.
    *slot = free.unwrap_or(*slot);
    let accounts: HashSet<&str> = events.iter().map(|e| e.eco_id.as_str()).collect();
    let keys: HashSet<&str> = events.iter().filter_map(|e| e.payload.api_key_id.as_deref()).collect();
    let accounts: Vec<&str> = accounts.into_iter().collect();
    let keys: Vec<&str> = keys.into_iter().collect();
    let locked = store::plan_locks::try_hold_shared(connection, &accounts).await?;
    if !locked.is_empty() {
        return Ok(Err(Locked { ranges: locked.into_iter().collect(), ..Locked::default() }));
    }
    Ok(Ok(Facts {
        now,
        accounts: store::accounts::for_recording(connection, &accounts).await?,
        keys: if keys.is_empty() {
            HashMap::new()
        } else {
            store::api_keys::for_recording(connection, &keys).await?
        },
        terms: HashMap::new(),
    }))
}
