use std::time::Duration;

use nexus_kit::config::{parse_duration, parse_timeout};

#[test]
fn durations_have_a_unit() {
    for (text, expected) in
        [("500ms", 500), ("25s", 25_000), ("2m", 120_000), ("1h", 3_600_000), ("1d", 86_400_000)]
    {
        assert_eq!(parse_duration(text), Ok(Duration::from_millis(expected)));
    }
    for bad in ["", "5", "s", "-1s", "1.5s", "5 s", "9999999999999999999h", "9999999999999999d", "1w"] {
        assert!(parse_duration(bad).is_err_and(|e| e.contains(bad)), "{bad}");
    }
}

#[test]
fn a_timeout_leaves_time() {
    assert!(parse_timeout("0s").is_err() && parse_timeout("0ms").is_err());
    assert_eq!(parse_timeout("1ms"), Ok(Duration::from_millis(1)));
}
