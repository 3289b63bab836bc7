//! Ids of Stripe's shape: a prefix and 14 random letters and digits.

use rand::Rng as _;
use rand::distr::Alphanumeric;
use rand::rngs::StdRng;

pub(crate) struct Ids {
    rng: StdRng,
}

impl Ids {
    pub(crate) fn new(rng: StdRng) -> Self {
        Self { rng }
    }

    pub(crate) fn next(&mut self, prefix: &str) -> String {
        format!("{prefix}_{}", self.letters(14))
    }

    pub(crate) fn letters(&mut self, count: usize) -> String {
        (0..count).map(|_| char::from(self.rng.sample(Alphanumeric))).collect()
    }
}
