//! The REST gateway: HTTP in, gRPC out, no SQL
