use chrono::NaiveDate;

use super::mean;

/// Busiest endpoints shown with a day.
pub const TOP_ENDPOINTS: i64 = 5;

/// Usage of one UTC day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DailyUsage {
    /// The day.
    pub day: NaiveDate,
    /// Units of all statuses.
    pub total_units: i64,
    /// Units of calls answered 2xx.
    pub successful_units: i64,
    /// Units of calls answered 400 and above.
    pub failed_units: i64,
    /// How long the calls took.
    pub latency: Latency,
    /// The busiest endpoints, at most [`TOP_ENDPOINTS`]; ties by route, then method.
    pub top_endpoints: Vec<EndpointUsage>,
}

/// Usage of one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointUsage {
    /// Route template.
    pub route: String,
    /// HTTP method.
    pub method: String,
    /// Units of all statuses.
    pub units: i64,
    /// How long the calls took.
    pub latency: Latency,
}

/// Response times as the rollups keep them: by call, whatever units a call consumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// Σ of the response times in milliseconds.
    pub sum_ms: i64,
    /// Calls.
    pub events: i64,
}

impl Latency {
    /// Mean response time in milliseconds.
    pub fn mean_ms(self) -> f64 {
        mean(self.sum_ms, self.events)
    }
}
