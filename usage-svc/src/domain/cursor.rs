//! How far a journal of the spool is drained.

use std::ops::Range;

/// A journal's cursor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Events with this number and beyond are not drained.
    pub next: i64,
    /// Of those before, the ones that the file did not give when it was drained, in order. A whole copy of it may yet.
    pub missing: Vec<Range<i64>>,
}

impl Cursor {
    /// Whether the event with this number is drained.
    pub fn is_past(&self, number: i64) -> bool {
        let candidate = self.missing.partition_point(|range| range.end <= number);
        number < self.next && self.missing.get(candidate).is_none_or(|range| !range.contains(&number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_missing_is_not_drained() {
        let cursor = Cursor { next: 10, missing: vec![0..1, 4..7] };
        let drained: Vec<i64> = (0..12).filter(|number| cursor.is_past(*number)).collect();
        assert_eq!(drained, [1, 2, 3, 7, 8, 9]);
        assert!(!Cursor::default().is_past(0));
    }
}
