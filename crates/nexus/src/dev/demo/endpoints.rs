//! What the demo accounts call: routes of a made-up document service, with latencies and outcomes.

use nexus_core::plan::Plan;
use rand::{Rng, rngs::StdRng};

/// A route.
pub(super) struct Endpoint {
    pub(super) method: &'static str,
    /// Template.
    pub(super) route: &'static str,
    /// How often it is called, relative to the others.
    weight: u32,
    /// Median latency.
    median_ms: f64,
    /// Spread of the latency: standard deviation of its logarithm.
    sigma: f64,
    /// Status of success.
    success: i16,
    /// Whether one call is worth many units.
    pub(super) bulk: bool,
}

const fn endpoint(
    method: &'static str,
    route: &'static str,
    weight: u32,
    median_ms: f64,
    success: i16,
) -> Endpoint {
    Endpoint { method, route, weight, median_ms, sigma: 0.45, success, bulk: false }
}

const fn bulk(route: &'static str, weight: u32, median_ms: f64) -> Endpoint {
    Endpoint { method: "POST", route, weight, median_ms, sigma: 0.7, success: 200, bulk: true }
}

/// The routes. Bulk ones are last: free accounts have none.
static ENDPOINTS: [Endpoint; 10] = [
    endpoint("GET", "/v1/documents/{id}", 300, 24.0, 200),
    endpoint("GET", "/v1/search", 250, 88.0, 200),
    endpoint("GET", "/v1/documents", 130, 46.0, 200),
    endpoint("POST", "/v1/documents", 90, 71.0, 201),
    endpoint("PATCH", "/v1/documents/{id}", 50, 58.0, 200),
    endpoint("GET", "/v1/account", 40, 12.0, 200),
    endpoint("DELETE", "/v1/documents/{id}", 12, 33.0, 204),
    endpoint("GET", "/v1/exports/{id}", 25, 19.0, 200),
    bulk("/v1/documents/batch", 60, 420.0),
    bulk("/v1/exports", 12, 1_900.0),
];

/// A call's outcome.
pub(super) struct Outcome {
    pub(super) status: i16,
    pub(super) latency_ms: i32,
}

/// The route of a call.
pub(super) fn pick(plan: Plan, rng: &mut StdRng) -> &'static Endpoint {
    let offered = if plan == Plan::Free { &ENDPOINTS[..8] } else { &ENDPOINTS[..] };
    let mut left = rng.random_range(0..offered.iter().map(|e| e.weight).sum());
    for endpoint in offered {
        if left < endpoint.weight {
            return endpoint;
        }
        left -= endpoint.weight;
    }
    &ENDPOINTS[0]
}

impl Endpoint {
    /// How a call ends; `trouble_per_mille` is the share of failures on our side.
    pub(super) fn call(&self, trouble_per_mille: u32, rng: &mut StdRng) -> Outcome {
        let chance = rng.random_range(0..1_000);
        let (status, slower) = if chance < trouble_per_mille {
            ([500, 502, 504][rng.random_range(0..3)], 6.0)
        } else if chance < trouble_per_mille + 28 {
            (self.mistake(rng), 0.4)
        } else if chance > 980 && self.method == "GET" {
            (304, 0.5)
        } else {
            (self.success, 1.0)
        };
        let ms = self.median_ms * slower * (self.sigma * normal(rng)).exp();
        Outcome { status, latency_ms: (ms.round() as i32).clamp(1, 60_000) }
    }

    /// A failure on the caller's side. 401 and 429 are not among them: those are never recorded.
    fn mistake(&self, rng: &mut StdRng) -> i16 {
        match (self.method, self.route.ends_with("{id}")) {
            (_, true) => [404, 404, 403][rng.random_range(0..3)],
            ("GET", false) => 400,
            _ => [400, 422, 409][rng.random_range(0..3)],
        }
    }

    /// A path of this route as a caller writes it; `None`: the route itself.
    pub(super) fn path(&self, rng: &mut StdRng) -> Option<String> {
        self.route.strip_suffix("{id}").map(|before| format!("{before}{}", rng.random_range(1_000..500_000)))
    }
}

/// A standard normal number (Box and Muller).
fn normal(rng: &mut StdRng) -> f64 {
    let (u, v): (f64, f64) = (rng.random_range(f64::EPSILON..1.0), rng.random());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

#[cfg(test)]
mod tests {
    use nexus_core::route::template;
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn paths_normalise_to_their_route() {
        let mut rng = StdRng::seed_from_u64(1);
        for endpoint in &ENDPOINTS {
            let path = endpoint.path(&mut rng);
            assert_eq!(template(path.as_deref().unwrap_or(endpoint.route)), endpoint.route);
        }
    }
}
