use std::{collections::HashMap, time::Duration};

use nexus_kit::{
    status::{self, QuotaExceeded},
    validate::Violations,
};
use tonic::Code;
use tonic_types::StatusExt;

#[test]
fn invalid_input_names_every_field() {
    let mut violations = Violations::new();
    violations.eco_id("eco_id", "nobody");
    violations.optional_uuid("request_id", "x");
    violations.require(false, "page_size", "must not be negative");
    let status = status::invalid(&violations);
    assert_eq!(status.code(), Code::InvalidArgument);
    let details = status.get_error_details();
    let fields: Vec<_> = details
        .bad_request()
        .expect("BadRequest")
        .field_violations
        .iter()
        .map(|v| v.field.as_str())
        .collect();
    assert_eq!(fields, ["eco_id", "request_id", "page_size"]);
    assert_eq!(
        details.error_info().map(|i| (i.reason.as_str(), i.domain.as_str())),
        Some(("INVALID_ARGUMENT", "nexus.metering"))
    );
}

/// Clients refuse headers of more than 8 KiB, and would not hear what is wrong.
#[test]
fn however_many_fields_are_at_fault_the_status_fits_into_headers() {
    let mut violations = Violations::new();
    for i in 0..1_000 {
        violations.add(format!("account_ids[{i}]"), "must begin with eco_");
    }
    let status = status::invalid(&violations);
    let told = status.get_error_details().bad_request().map_or(0, |b| b.field_violations.len());
    assert!((20..1_000).contains(&told), "{told}");
    assert!(status.message().ends_with(&format!("; and {} more", 1_000 - told)), "{}", status.message());
    assert!(status.message().len() + status.details().len() * 4 / 3 < 8_000);
    // One that is long by itself is told.
    let long = status::invalid(&Violations::one("name", "x".repeat(3_000)));
    assert_eq!(long.get_error_details().bad_request().map(|b| b.field_violations.len()), Some(1));
}

#[test]
fn a_used_up_quota_says_how_much_until_when_and_where_to_upgrade() {
    let status = status::quota_exceeded(QuotaExceeded {
        eco_id: "eco_a",
        message: "1,000 of 1,000 calls used".into(),
        metadata: HashMap::from([("limit".into(), "1000".into())]),
        retry: Duration::from_secs(60),
        help: "Upgrade the plan",
        upgrade_url: "/dashboard/billing",
    });
    let details = status.get_error_details();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(
        details.error_info().map(|i| (i.reason.as_str(), i.metadata["limit"].as_str())),
        Some(("QUOTA_EXCEEDED", "1000"))
    );
    assert_eq!(details.quota_failure().map(|q| q.violations[0].subject.as_str()), Some("account:eco_a"));
    assert_eq!(details.retry_info().and_then(|r| r.retry_delay), Some(Duration::from_secs(60)));
    assert_eq!(details.help().map(|h| h.links[0].url.as_str()), Some("/dashboard/billing"));
}

#[test]
fn an_internal_error_says_nothing_of_the_inside() {
    assert_eq!(status::internal().message(), "internal error");
    assert_eq!(status::reason(&status::internal()), "INTERNAL");
}
