//! Chance by seed: the same seed and the same case always give the same answer, whatever else
//! happens and in whatever order.

use sha2::{Digest as _, Sha256};

pub(crate) struct Chance {
    case: Sha256,
}

impl Chance {
    pub(crate) fn new(seed: u64, case: &[&str]) -> Self {
        let mut digest = Sha256::new();
        digest.update(seed.to_be_bytes());
        for part in case {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        Self { case: digest }
    }

    /// A number of 32 bits for a question about the case.
    fn number(&self, question: &str) -> u32 {
        let digest = self.case.clone().chain_update(question).finalize();
        digest.iter().take(4).fold(0, |number, byte| (number << 8) | u32::from(*byte))
    }

    /// A number from 0 to below 1.
    pub(crate) fn share(&self, question: &str) -> f64 {
        f64::from(self.number(question)) / (f64::from(u32::MAX) + 1.0)
    }

    /// Yes in a share of all cases.
    pub(crate) fn strikes(&self, question: &str, share: f64) -> bool {
        self.share(question) < share
    }

    /// A number below `limit`, which is at least 1.
    pub(crate) fn below(&self, question: &str, limit: u32) -> u32 {
        let scaled = u64::from(self.number(question)) * u64::from(limit.max(1));
        u32::try_from(scaled >> 32).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::Chance;

    #[test]
    fn a_share_of_cases_is_struck_and_always_the_same_ones() {
        let struck = |seed: u64| -> Vec<u32> {
            (0..1000).filter(|n| Chance::new(seed, &[&n.to_string()]).strikes("x", 0.1)).collect()
        };
        let first = struck(1);
        assert!((60..140).contains(&first.len()), "{}", first.len());
        assert_eq!(first, struck(1));
        assert_ne!(first, struck(2));
        assert!((0..1000).all(|n| Chance::new(3, &[&n.to_string()]).below("y", 7) < 7));
    }
}
