//! A mergeable latency histogram with a relative error of about 1.1 %.
//!
//! Buckets grow by 2^(1/32), as in DDSketch (Masson, Rim, Lee: "DDSketch: A fast and fully-mergeable
//! quantile sketch with relative-error guarantees", VLDB 2019). Merging adds the counts, so that it is
//! exact in any order. `nexus_sketch_bucket`, `nexus_sketch_compact` and `nexus_sketch_merge` in the database
//! are the same rules.

use std::collections::BTreeMap;

const BUCKETS_PER_DOUBLING: f64 = 32.0;
/// Bucket of a latency of 0 ms.
const ZERO_BUCKET: i64 = -1;

/// Counts of events by bucket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sketch(BTreeMap<i64, i64>);

/// A stored sketch that is not pairs of bucket and count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a stored latency sketch must be pairs of bucket and count")]
pub struct MalformedSketch;

/// Bits of an entry that hold the bucket.
const BUCKET_BITS: u32 = 10;

/// What is stored for so many events of one bucket: `count * 1024 + bucket + 1`. A stored sketch is entries in
/// any order, and a bucket may have several, so that adding to it is appending.
pub fn entry(bucket: i64, count: i64) -> i64 {
    (count << BUCKET_BITS) + bucket - ZERO_BUCKET
}

/// Bucket of a latency in whole milliseconds. The small addend keeps powers of two, whose logarithm is
/// exact, from falling below their bucket.
pub fn bucket(latency_ms: i32) -> i64 {
    if latency_ms <= 0 {
        return ZERO_BUCKET;
    }
    (f64::from(latency_ms).ln() * (BUCKETS_PER_DOUBLING / 2f64.ln()) + 1e-9).floor() as i64
}

impl Sketch {
    /// Counts one event.
    pub fn add(&mut self, latency_ms: i32) {
        *self.0.entry(bucket(latency_ms)).or_default() += 1;
    }

    /// Adds another sketch.
    pub fn merge(&mut self, other: &Sketch) {
        for (bucket, count) in &other.0 {
            *self.0.entry(*bucket).or_default() += count;
        }
    }

    /// Events counted.
    pub fn count(&self) -> i64 {
        self.0.values().sum()
    }

    /// The latency in milliseconds that a share `q` (0 to 1) of the events does not exceed, by nearest
    /// rank: the geometric middle of the bucket, within 1.1 %. 0 for an empty sketch.
    pub fn quantile(&self, q: f64) -> f64 {
        let rank = ((q * self.count() as f64).ceil() as i64).max(1);
        let mut seen = 0;
        for (bucket, count) in &self.0 {
            seen += count;
            if seen >= rank {
                return if *bucket == ZERO_BUCKET {
                    0.0
                } else {
                    ((*bucket as f64 + 0.5) / BUCKETS_PER_DOUBLING).exp2()
                };
            }
        }
        0.0
    }

    /// Its [`entry`]s, one a bucket.
    pub fn entries(&self) -> impl Iterator<Item = i64> {
        self.0.iter().map(|(bucket, count)| entry(*bucket, *count))
    }

    /// Adds stored [`entry`]s.
    pub fn add_entries(&mut self, entries: &[i64]) {
        for entry in entries {
            let bucket = (entry & ((1 << BUCKET_BITS) - 1)) + ZERO_BUCKET;
            *self.0.entry(bucket).or_default() += entry >> BUCKET_BITS;
        }
    }

    /// The older stored form: pairs of bucket and count, by bucket.
    pub fn to_pairs(&self) -> Vec<i64> {
        self.0.iter().flat_map(|(bucket, count)| [*bucket, *count]).collect()
    }

    /// Reads the older stored form.
    pub fn from_pairs(pairs: &[i64]) -> Result<Self, MalformedSketch> {
        let (pairs, []) = pairs.as_chunks::<2>() else { return Err(MalformedSketch) };
        Ok(Self(pairs.iter().map(|[bucket, count]| (*bucket, *count)).collect()))
    }
}
