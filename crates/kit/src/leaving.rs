//! Answers that leave. A caller may leave its answer unread for as long as it likes; what was made for it is held
//! meanwhile, by the transport. This bounds it, of one account and of all. Who leaves little always has room, whoever else
//! has what there is, and who has none is told so before anything is done for it: a call that is answered so has had no
//! effect, but for one whose answer alone is large.

use std::sync::Arc;

use nexus_core::id::EcoId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Status, codegen::Bytes};

use crate::{
    share::{Share, Shares},
    status,
};

/// Of all accounts.
const BYTES: u32 = 128 * 1024 * 1024;
/// Of one account: a dozen of the largest answers.
const BYTES_OF_ONE: u32 = 16 * 1024 * 1024;
/// What an account may leave however much others do.
const ALWAYS: u32 = 64 * 1024;
/// What there must be room for before a call is served: an answer of the common kind.
const USUAL: u32 = 4 * 1024;
/// What a piece takes besides its bytes: where it is kept, and its place in a queue.
const OVERHEAD: usize = 512;

/// What accounts have not taken of their answers. Clones are the same.
#[derive(Debug, Clone)]
pub struct Leaving {
    shares: Shares,
    of_one: u32,
    room: Arc<Semaphore>,
}

impl Default for Leaving {
    fn default() -> Self {
        Self::new(BYTES, BYTES_OF_ONE)
    }
}

/// A piece of an answer, which counts as the account's until it is sent or given up.
struct Piece {
    data: Bytes,
    _share: Share,
    _room: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Leaving {
    fn new(bytes: u32, of_one: u32) -> Self {
        let room = Arc::new(Semaphore::new(bytes as usize));
        Self { shares: Shares::of_at_most(bytes, of_one), of_one, room }
    }

    /// Whether a call of the account is to be served: there is room for what it is usually answered.
    pub fn check(&self, eco_id: &EcoId) -> Result<(), Status> {
        let held = self.shares.of_account(eco_id);
        if held + USUAL <= ALWAYS {
            return Ok(());
        }
        if held + USUAL > self.of_one {
            return Err(status::overloaded(ACCOUNT_IS_FULL));
        }
        if self.room.available_permits() < USUAL as usize {
            return Err(status::overloaded(ALL_IS_FULL));
        }
        Ok(())
    }

    /// A piece on its way to the account; fails where too many are.
    pub fn piece(&self, data: Bytes, eco_id: &EcoId) -> Result<Bytes, Status> {
        let size = u32::try_from(data.len() + OVERHEAD).unwrap_or(u32::MAX);
        let mut share = self.shares.nothing(eco_id);
        if !share.resize(size) {
            return Err(status::overloaded(ACCOUNT_IS_FULL));
        }
        if self.shares.of_account(eco_id) <= ALWAYS {
            return Ok(Bytes::from_owner(Piece { data, _share: share, _room: None }));
        }
        let Ok(room) = self.room.clone().try_acquire_many_owned(size) else {
            return Err(status::overloaded(ALL_IS_FULL));
        };
        Ok(Bytes::from_owner(Piece { data, _share: share, _room: Some(room) }))
    }
}

const ACCOUNT_IS_FULL: &str = "too many answers of this account are not taken";
const ALL_IS_FULL: &str = "too many answers are not taken";

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> EcoId {
        EcoId::parse(text).expect("an id")
    }

    fn piece(leaving: &Leaving, eco_id: &str, bytes: usize) -> Result<Bytes, Status> {
        leaving.piece(Bytes::from(vec![7; bytes - OVERHEAD]), &id(eco_id))
    }

    const ONE: usize = 1_000_000;

    #[test]
    fn an_account_leaves_so_much_untaken_and_others_theirs_while_there_is_room() {
        let leaving = Leaving::new(4 * ONE as u32, ONE as u32);
        let held = piece(&leaving, "eco_a", ONE / 2 + 1).expect("there is room");
        assert_eq!(held, Bytes::from(vec![7; ONE / 2 + 1 - OVERHEAD]));
        assert!(piece(&leaving, "eco_a", ONE / 2).is_err());
        assert!(piece(&leaving, "eco_a", ONE / 4).is_ok() && piece(&leaving, "eco_b", ONE).is_ok());
        drop(held);
        assert!(piece(&leaving, "eco_a", ONE).is_ok());
        let small: Vec<_> =
            (0..ONE / OVERHEAD).flat_map(|_| piece(&leaving, "eco_a", OVERHEAD + 1)).collect();
        assert!(small.len() < ONE / OVERHEAD, "small ones count");
    }

    #[test]
    fn who_leaves_little_has_room_whoever_has_the_rest_and_others_are_told_before_they_are_served() {
        let leaving = Leaving::new(4 * ONE as u32, ONE as u32);
        let held: Vec<_> = ["eco_a", "eco_b", "eco_c", "eco_d"]
            .map(|id| piece(&leaving, id, ONE - 5_000))
            .into_iter()
            .flatten()
            .collect();
        assert_eq!(held.len(), 4);
        assert!(leaving.check(&id("eco_a")).is_ok(), "there is room for one more of the usual kind");
        let _more = piece(&leaving, "eco_a", 4_500).expect("there is");
        assert!(leaving.check(&id("eco_a")).is_err(), "it has what it may have");
        let _rest = piece(&leaving, "eco_e", 64 * 1024 + 1);
        let mut little = Vec::new();
        while leaving.check(&id("eco_e")).is_ok() {
            little.push(piece(&leaving, "eco_e", USUAL as usize).expect("what is served is answered"));
        }
        assert!((14..=20).contains(&little.len()), "{}", little.len());
        assert!(leaving.check(&id("eco_f")).is_ok() && piece(&leaving, "eco_f", 60_000).is_ok());
        assert!(piece(&leaving, "eco_f", 70_000).is_err(), "there is no room for what is large");
    }
}
