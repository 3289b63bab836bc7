//! analytics-svc: history, endpoints, overview, users, from rollups and counters
