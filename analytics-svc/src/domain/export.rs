use chrono::{DateTime, Utc};
use nexus_core::id::EcoId;

use super::history::Latency;

/// What is exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportRange {
    /// Account.
    pub eco_id: EcoId,
    /// Hours that begin then or later.
    pub start: DateTime<Utc>,
    /// Hours that begin before.
    pub end: DateTime<Utc>,
}

/// Place in the order of the rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HourCursor {
    /// Start of the hour.
    pub hour: DateTime<Utc>,
    /// Route template.
    pub route: String,
    /// HTTP method.
    pub method: String,
    /// Status class.
    pub status_class: i16,
}

impl HourCursor {
    /// Before every row of an hour and of those after it.
    pub fn before(hour: DateTime<Utc>) -> Self {
        Self { hour, route: String::new(), method: String::new(), status_class: 0 }
    }
}

/// Usage of one endpoint in one hour, by class of status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HourlyUsage {
    /// Hour, endpoint and status class: no two rows have the same.
    pub place: HourCursor,
    /// Units.
    pub units: i64,
    /// How long the calls took.
    pub latency: Latency,
}
