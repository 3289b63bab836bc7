//! Quota arithmetic: two numbers that are never mixed.
//!
//! *Recorded* units are what the raw log holds; they alone are shown as calls and billed. *Consumed* units
//! are what was handed out, less what came back, plus what was recorded without an admission; they alone
//! decide admission.

/// Units included in a period; `None`: unlimited.
pub type Limit = Option<i64>;

/// Units handed out and used in a period.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Consumption {
    /// Units granted to holders.
    pub granted: i64,
    /// Units holders gave back.
    pub returned: i64,
    /// Units recorded without an admission, or beyond it.
    pub unadmitted: i64,
}

impl Consumption {
    /// Basis of admission.
    pub fn consumed(&self) -> i64 {
        self.granted - self.returned + self.unadmitted
    }
}

/// Units left, never below 0; -1 when unlimited.
pub fn remaining(limit: Limit, used: i64) -> i64 {
    limit.map_or(-1, |limit| (limit - used).max(0))
}

/// A limit as clients see it: -1 when unlimited.
pub fn shown_limit(limit: Limit) -> i64 {
    limit.unwrap_or(-1)
}

/// 100 × used / limit, to two decimals; may pass 100; 0 when unlimited.
pub fn percentage(limit: Limit, used: i64) -> f64 {
    match limit {
        None => 0.0,
        Some(0) if used > 0 => 100.0,
        Some(0) => 0.0,
        Some(limit) => (used as f64 * 10_000.0 / limit as f64).round() / 100.0,
    }
}
