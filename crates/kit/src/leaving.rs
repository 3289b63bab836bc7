//! Answers that leave. A caller may leave its answer unread for as long as it likes; what was made for it is held
//! meanwhile, by the transport. This bounds it, of one account and of all.

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
/// What a piece takes besides its bytes: where it is kept, and its place in a queue.
const OVERHEAD: usize = 512;

/// What accounts have not taken of their answers. Clones are the same.
#[derive(Debug, Clone)]
pub struct Leaving {
    shares: Shares,
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
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Leaving {
    fn new(bytes: u32, of_one: u32) -> Self {
        Self { shares: Shares::of_at_most(bytes, of_one), room: Arc::new(Semaphore::new(bytes as usize)) }
    }

    /// A piece on its way to the account; fails where too many are.
    pub fn piece(&self, data: Bytes, eco_id: &EcoId) -> Result<Bytes, Status> {
        let size = u32::try_from(data.len() + OVERHEAD).unwrap_or(u32::MAX);
        let mut share = self.shares.nothing(eco_id);
        if !share.resize(size) {
            return Err(status::overloaded("too many answers of this account are not taken"));
        }
        let Ok(room) = self.room.clone().try_acquire_many_owned(size) else {
            return Err(status::overloaded("too many answers are not taken"));
        };
        Ok(Bytes::from_owner(Piece { data, _share: share, _room: room }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_leaves_so_much_untaken_and_others_theirs_while_there_is_room() {
        let leaving = Leaving::new(40_000, 10_000);
        let id = |text| EcoId::parse(text).expect("an id");
        let piece = |eco_id, bytes: usize| leaving.piece(Bytes::from(vec![7; bytes - OVERHEAD]), &id(eco_id));
        let held = piece("eco_a", 6_000).expect("there is room");
        assert_eq!(held, Bytes::from(vec![7; 6_000 - OVERHEAD]));
        assert!(piece("eco_a", 6_000).is_err());
        assert!(piece("eco_a", 4_000).is_ok() && piece("eco_b", 6_000).is_ok());
        drop(held);
        let held: Vec<_> = ["eco_a", "eco_b", "eco_c", "eco_d"].map(|id| piece(id, 10_000)).into_iter().flatten().collect();
        assert_eq!(held.len(), 4);
        assert!(piece("eco_e", 1_000).is_err(), "there is no room, whoever has it");
        drop(held);
        let small: Vec<_> = (0..20).flat_map(|_| piece("eco_a", OVERHEAD + 1)).collect();
        assert_eq!(small.len(), 19, "small ones count");
    }
}
