//! Flags of `nexus import`.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use nexus_core::plan::Plan;

use crate::call::{self, Credentials};

pub(crate) const HELP: &str = "\
Examples:
  nexus import access.log --create-accounts free --shift-to-now
  nexus import access.json --format json --account-by customer --latency-field duration --latency-unit s
Every line becomes an event whose id follows from the file's SHA-256 and the line's number: importing the
same file again changes nothing. Events older than 35 days are refused; --shift-to-now moves the file's
times so that its last event is now, and keeps that shift for the file. Queries (`?…`) are not recorded.";

/// The caller that every web server's log has.
const REMOTE_ADDRESS: &str = "remote_addr";

#[derive(Args)]
pub(crate) struct ImportArgs {
    /// The log
    pub(crate) file: PathBuf,
    /// Form of its lines
    #[arg(long, value_enum, default_value = "combined")]
    pub(crate) format: Format,
    /// Who is charged: the remote address, or with --format json a field of that name
    #[arg(long, default_value = REMOTE_ADDRESS, value_name = "remote_addr|FIELD")]
    pub(crate) account_by: String,
    /// Create accounts that do not exist, on this plan: free, pro or enterprise
    #[arg(long, value_name = "PLAN")]
    pub(crate) create_accounts: Option<Plan>,
    /// Move all times by the same amount, so that the last event is now
    #[arg(long)]
    pub(crate) shift_to_now: bool,
    /// JSON: field of the time, RFC 3339 or seconds since 1970
    #[arg(long, default_value = "time", value_name = "FIELD")]
    pub(crate) time_field: String,
    /// JSON: field of the method
    #[arg(long, default_value = "method", value_name = "FIELD")]
    pub(crate) method_field: String,
    /// JSON: field of the path
    #[arg(long, default_value = "path", value_name = "FIELD")]
    pub(crate) path_field: String,
    /// JSON: field of the status
    #[arg(long, default_value = "status", value_name = "FIELD")]
    pub(crate) status_field: String,
    /// JSON: field of the latency; a line without it counts as 0
    #[arg(long, default_value = "response_time_ms", value_name = "FIELD")]
    pub(crate) latency_field: String,
    /// JSON: unit of the latency
    #[arg(long, value_enum, default_value = "ms")]
    pub(crate) latency_unit: LatencyUnit,
    /// usage-svc
    #[arg(long, env = "USAGE_ADDR", default_value = "localhost:50051", value_parser = call::address, value_name = "ADDR")]
    pub(crate) usage_addr: String,
    /// billing-svc, for accounts and plans
    #[arg(long, env = "BILLING_ADDR", default_value = "localhost:50052", value_parser = call::address, value_name = "ADDR")]
    pub(crate) billing_addr: String,
    #[command(flatten)]
    pub(crate) credentials: Credentials,
}

impl ImportArgs {
    /// What no single flag can tell: the common forms have one field that names a caller.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(
            self.format == Format::Json || self.account_by == REMOTE_ADDRESS,
            "--account-by {}: a log of the combined or common form has {REMOTE_ADDRESS} only; a field of that name needs --format json",
            self.account_by
        );
        Ok(())
    }
}

/// Form of a log's lines.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// NCSA combined: common, then referrer and user agent (Apache, nginx)
    Combined,
    /// NCSA common
    Common,
    /// One JSON object a line
    Json,
}

/// Unit of a JSON line's latency.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LatencyUnit {
    /// Milliseconds
    Ms,
    /// Seconds, with decimals
    S,
}
