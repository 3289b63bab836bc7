//! Bytes as Envoy's request of ShouldRateLimit: read and validated.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nexus_usage::grpc::fuzzing::rate_limit(bytes));
