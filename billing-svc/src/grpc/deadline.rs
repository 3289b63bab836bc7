//! When a call must have been answered.

use std::time::Duration;

use tonic::metadata::MetadataMap;

/// Longest time an answer is held back for a run that goes on.
const LONGEST: Duration = Duration::from_secs(50);
/// The answer's way back takes a tenth of the time, within these bounds.
const MARGIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long a call may wait before it answers: the shorter of the caller's deadline and the server's limit,
/// less a margin, and 50 s at most.
pub(super) fn patience(metadata: &MetadataMap, limit: Duration) -> Duration {
    let deadline = metadata
        .get("grpc-timeout")
        .and_then(|value| value.to_str().ok())
        .and_then(parse)
        .map_or(limit, |timeout| timeout.min(limit));
    let margin = (deadline / 10).clamp(MARGIN.0, MARGIN.1);
    deadline.saturating_sub(margin).min(LONGEST)
}

/// `grpc-timeout` of the gRPC protocol: up to eight digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_comes_before_the_deadline_and_within_50_seconds() {
        let mut metadata = MetadataMap::new();
        let limit = Duration::from_secs(60);
        assert_eq!(patience(&metadata, limit), Duration::from_secs(50));
        for (text, expected) in
            [("2S", 1_800), ("500m", 400), ("50m", 0), ("10M", 50_000), ("20000000u", 18_000)]
        {
            metadata.insert("grpc-timeout", text.parse().expect("a header value"));
            assert_eq!(patience(&metadata, limit), Duration::from_millis(expected), "{text}");
        }
        metadata.insert("grpc-timeout", "soon".parse().expect("a header value"));
        assert_eq!(patience(&metadata, Duration::from_secs(10)), Duration::from_secs(9));
    }
}
