use nexus_core::{id::EcoId, sketch::Sketch};
use serde::{Deserialize, Serialize};

use super::{history::EndpointUsage, mean};

/// Which endpoints to list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EndpointFilter {
    /// Account.
    pub eco_id: EcoId,
    /// UTC days up to and including today.
    pub days: i64,
}

/// Place in the order of the list: units descending, then route, then method.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointCursor {
    /// Units of the last endpoint shown.
    pub units: i64,
    /// Its route.
    pub route: String,
    /// Its method.
    pub method: String,
}

impl EndpointCursor {
    /// Whether a stored endpoint could be at this place: no stored text has a NUL in it.
    pub fn is_possible(&self) -> bool {
        !self.route.contains('\0') && !self.method.contains('\0')
    }
}

/// Statistics of one endpoint over some days.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointStats {
    /// The endpoint, its units and mean response time.
    pub usage: EndpointUsage,
    /// Units of calls answered 2xx.
    pub successful_units: i64,
    /// Distribution of the response times.
    pub sketch: Sketch,
}

impl EndpointStats {
    /// Share of the units answered 2xx, 0 to 1.
    pub fn success_rate(&self) -> f64 {
        mean(self.successful_units, self.usage.units)
    }

    /// Its place in the list.
    pub fn cursor(&self) -> EndpointCursor {
        EndpointCursor {
            units: self.usage.units,
            route: self.usage.route.clone(),
            method: self.usage.method.clone(),
        }
    }
}
