use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;
use nexus_kit::config::{AuthArgs, DbArgs, ServeArgs, parse_duration, parse_timeout};

/// Settings of usage-svc.
#[derive(Args, Debug, Clone)]
pub struct Config {
    /// Address of the gRPC server; port 0: a free one
    #[arg(long = "grpc-addr", env = "USAGE_GRPC_ADDR", default_value = "0.0.0.0:50051", value_name = "ADDR")]
    pub grpc_addr: SocketAddr,
    /// Address of /metrics, /healthz and /readyz; port 0: a free one
    #[arg(
        long = "metrics-addr",
        env = "USAGE_METRICS_ADDR",
        default_value = "0.0.0.0:9151",
        value_name = "ADDR"
    )]
    pub metrics_addr: SocketAddr,
    /// Days the raw log and the hourly rollup are kept, at least 40; the daily rollup stays
    #[arg(long = "raw-retention-days", env = "RAW_RETENTION_DAYS", default_value_t = 45, value_parser = clap::value_parser!(u16).range(40..), value_name = "DAYS")]
    pub raw_retention_days: u16,
    /// Events that may wait to be written, and of streams as many again that wait for their place; more are answered
    /// UNAVAILABLE
    #[arg(long = "ingest-queue", env = "INGEST_QUEUE_EVENTS", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(10_000..=10_000_000), value_name = "EVENTS")]
    pub ingest_queue: u32,
    /// Longest time one try of a flush may take before its connection is given up, above the statement
    /// time-out of 30 s, so that only a connection that went silent takes as long
    #[arg(long = "flush-timeout", env = "FLUSH_TIMEOUT", default_value = "35s", value_parser = parse_timeout, value_name = "DURATION")]
    pub flush_timeout: Duration,
    /// Longest time that API keys which are known are accepted unread, while the database is away and no
    /// change of them is heard
    #[arg(long = "key-stale-max", env = "KEY_STALE_MAX", default_value = "60s", value_parser = parse_duration, value_name = "DURATION")]
    pub key_stale_max: Duration,
    /// Folder of the spool, on a volume of this replica's own: takes events while the database is away; unset:
    /// they are answered UNAVAILABLE then
    #[arg(long = "spool-dir", env = "SPOOL_DIR", value_name = "FOLDER")]
    pub spool_dir: Option<PathBuf>,
    /// Bytes that the spool may take on its disk, a quarter of them for the keys of one account; beyond, events are
    /// answered UNAVAILABLE
    #[arg(long = "spool-max-bytes", env = "SPOOL_MAX_BYTES", default_value_t = 1024 * 1024 * 1024, value_parser = clap::value_parser!(u64).range(1024 * 1024..), value_name = "BYTES")]
    pub spool_max_bytes: u64,
    #[command(flatten)]
    pub auth: AuthArgs,
    #[command(flatten)]
    pub serve: ServeArgs,
    #[command(flatten)]
    pub db: DbArgs,
}
