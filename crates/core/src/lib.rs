//! Pure rules: money, plans, periods, quota arithmetic, latency sketches, ids
