//! Bytes as a request of RecordUsage and of BatchRecordUsage: read, validated, judged.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nexus_usage::grpc::fuzzing::usage_event(bytes));
