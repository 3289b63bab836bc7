//! Answers that leave. A caller may leave its answer unread for as long as it likes; what was made for it is held
//! meanwhile, by the transport. Of one account this bounds it.
//!
//! Small answers do not count: their number is bounded, as that of connections and of the calls on one is.

use nexus_core::id::EcoId;
use tonic::{Status, codegen::Bytes};

use crate::{
    share::{Share, Shares},
    status,
};

/// Of these bytes one account has a quarter: a dozen of the largest answers.
const BYTES: u32 = 64 * 1024 * 1024;
/// Pieces that are smaller do not count.
const FREE_BYTES: usize = 4 * 1024;

/// What accounts have not taken of their answers. Clones are the same.
#[derive(Debug, Clone)]
pub struct Leaving(Shares);

impl Default for Leaving {
    fn default() -> Self {
        Self(Shares::of(BYTES))
    }
}

/// A piece of an answer, which counts as the account's until it is sent or given up.
struct Piece {
    data: Bytes,
    _share: Share,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Leaving {
    /// A piece on its way to the account; fails where too many are.
    pub fn piece(&self, data: Bytes, eco_id: &EcoId) -> Result<Bytes, Status> {
        if data.len() < FREE_BYTES {
            return Ok(data);
        }
        let mut share = self.0.nothing(eco_id);
        if !share.resize(u32::try_from(data.len()).unwrap_or(u32::MAX)) {
            return Err(status::overloaded("too many answers of this account are not taken"));
        }
        Ok(Bytes::from_owner(Piece { data, _share: share }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_leaves_a_quarter_untaken_and_others_theirs() {
        let leaving = Leaving(Shares::of(40_000));
        let id = |text| EcoId::parse(text).expect("an id");
        let piece = |eco_id, bytes| leaving.piece(Bytes::from(vec![7; bytes]), &id(eco_id));
        let held = piece("eco_a", 6_000).expect("there is room");
        assert_eq!(held, Bytes::from(vec![7; 6_000]));
        assert!(piece("eco_a", 6_000).is_err());
        assert!(piece("eco_a", 4_000).is_ok() && piece("eco_b", 6_000).is_ok());
        drop(held);
        assert!(piece("eco_a", 6_000).is_ok());
    }
}
