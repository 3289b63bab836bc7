//! What every server shares: configuration, telemetry, serving, authentication, database, status
