//! Settings that all servers have. Each is a flag and an environment variable; a bad value is told with the
//! names of both.

use std::{path::PathBuf, process, time::Duration};

use clap::{
    Args, Command, Parser,
    error::{ContextKind, ContextValue},
};
use secrecy::SecretString;

/// Reads the command line and the environment; ends the process on `--help`, `--version` and mistakes.
pub fn parse<C: Parser>() -> C {
    C::try_parse().unwrap_or_else(|error| {
        let mut command = C::command();
        command.build();
        exit(error, &command)
    })
}

/// Ends the process with what is wrong on the command line of `command` (built: with its global arguments),
/// or with the help that was asked for.
pub fn exit(error: clap::Error, command: &Command) -> ! {
    // 1, not clap's 2, which `nexus overage process` says something else with.
    let code = i32::from(error.use_stderr());
    if with_variables(error, command).print().is_err() {
        process::exit(1);
    }
    process::exit(code)
}

/// Names the variables of the flags at fault: whoever has set a variable knows no flag.
fn with_variables(mut error: clap::Error, command: &Command) -> clap::Error {
    let flags = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(flag)) => vec![flag.clone()],
        Some(ContextValue::Strings(flags)) => flags.clone(),
        _ => return error,
    };
    let variables: Vec<String> = flags.iter().filter_map(|flag| variable(command, flag)).collect();
    if !variables.is_empty() {
        let tip = format!("the environment sets it too: {}", variables.join(", "));
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

fn variable(command: &Command, flag: &str) -> Option<String> {
    let here = command.get_arguments().find(|argument| argument.to_string() == flag);
    here.and_then(|argument| argument.get_env())
        .map(|name| name.to_string_lossy().into_owned())
        .or_else(|| command.get_subcommands().find_map(|command| variable(command, flag)))
}

/// Where `--help` shows what every command has.
const TELEMETRY: &str = "Logs and traces";

/// Logs and traces.
#[derive(Args, Debug, Clone)]
pub struct TelemetryArgs {
    /// Which log lines to write: a level, or directives like `info,sqlx=warn`
    #[arg(long, env = "NEXUS_LOG", default_value = "info", value_name = "FILTER", help_heading = TELEMETRY, global = true)]
    pub log: String,
    /// Form of the log lines
    #[arg(long, env = "NEXUS_LOG_FORMAT", default_value = "json", value_enum, help_heading = TELEMETRY, global = true)]
    pub log_format: LogFormat,
    /// Where traces go: URL of an OTLP/gRPC collector, e.g. http://localhost:4317; unset: no traces
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_parser = parse_collector, hide_env_values = true, value_name = "URL", help_heading = TELEMETRY, global = true)]
    pub otlp_endpoint: Option<String>,
}

/// Form of the log lines.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Who may call.
#[derive(Args, Debug, Clone)]
pub struct AuthArgs {
    /// Secret of users' HS256 tokens, at least 32 bytes
    #[arg(long, env = "JWT_SECRET", hide_env_values = true, value_name = "SECRET")]
    pub jwt_secret: Option<SecretString>,
    /// Issuer that users' tokens must name
    #[arg(long, env = "JWT_ISSUER", default_value = "nexus", value_name = "ISS")]
    pub jwt_issuer: String,
    /// Audience that users' tokens must name, alone or among others; unset: they may name any
    #[arg(long, env = "JWT_AUDIENCE", value_name = "AUD")]
    pub jwt_audience: Option<String>,
    /// Public keys of users' RS256, ES256 or EdDSA tokens: a JWK set, or the path of a file with one
    #[arg(long, env = "JWT_JWKS", value_name = "JSON|FILE")]
    pub jwt_jwks: Option<String>,
    /// One public key of users' tokens in PEM, or the path of a file with it
    #[arg(long, env = "JWT_PUBLIC_KEY", value_name = "PEM|FILE")]
    pub jwt_public_key: Option<String>,
    /// Accounts whose users are admins, comma separated
    #[arg(long, env = "ADMIN_ECO_IDS", default_value = "", value_name = "IDS")]
    pub admin_eco_ids: String,
    /// Secret of service tokens (HS256), at least 32 bytes, not the users' secret
    #[arg(long, env = "SERVICE_TOKEN_SECRET", hide_env_values = true, value_name = "SECRET")]
    pub service_token_secret: SecretString,
    /// Serve reflection without credentials
    #[arg(long, env = "OPEN_REFLECTION", default_value_t = false, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub open_reflection: bool,
    /// Serve health without credentials
    #[arg(long, env = "OPEN_HEALTH", default_value_t = false, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub open_health: bool,
}

/// How to serve.
#[derive(Args, Debug, Clone)]
pub struct ServeArgs {
    /// How long a stopping server may finish what is in flight
    #[arg(long, env = "SHUTDOWN_GRACE", default_value = "25s", value_parser = parse_duration, value_name = "DURATION")]
    pub shutdown_grace: Duration,
    /// Longest time one call may take; a caller's own deadline may be shorter
    #[arg(long, env = "REQUEST_TIMEOUT", default_value = "60s", value_parser = parse_timeout, value_name = "DURATION")]
    pub request_timeout: Duration,
    /// Calls in flight beyond which new ones are answered UNAVAILABLE
    #[arg(long, env = "MAX_IN_FLIGHT", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    pub max_in_flight: u32,
    /// Certificate chain in PEM; with TLS_KEY: serve TLS
    #[arg(long, env = "TLS_CERT", requires = "tls_key", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Private key in PEM
    #[arg(long, env = "TLS_KEY", requires = "tls_cert", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
}

/// The database.
#[derive(Args, Debug, Clone)]
pub struct DbArgs {
    /// PostgreSQL, e.g. postgres://user@host/nexus; the user must be a member of the service's role
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: SecretString,
    /// Connections at most
    #[arg(long, env = "DATABASE_MAX_CONNECTIONS", default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..=1000), value_name = "N")]
    pub database_max_connections: u32,
}

/// A duration such as `500ms`, `25s`, `10m`, `2h`, `30d`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let expected = || format!("`{text}` is not a duration such as 500ms, 25s, 10m, 2h or 30d");
    let number: u64 = text[..digits].parse().map_err(|_| expected())?;
    match &text[digits..] {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs).ok_or_else(expected),
        "h" => number.checked_mul(3600).map(Duration::from_secs).ok_or_else(expected),
        "d" => number.checked_mul(86_400).map(Duration::from_secs).ok_or_else(expected),
        _ => Err(expected()),
    }
}

/// URL of a collector. Without TLS: a collector stands beside the server, and sends on as it likes.
fn parse_collector(text: &str) -> Result<String, String> {
    let http = text.parse::<http::Uri>().is_ok_and(|uri| uri.scheme_str() == Some("http"));
    let expected = "not an http:// URL, such as http://localhost:4317 (without TLS: to a collector nearby)";
    if http { Ok(text.to_owned()) } else { Err(expected.to_owned()) }
}

/// A duration in which something can be done: not zero.
pub fn parse_timeout(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err(format!("`{text}` leaves no time at all")),
        duration => Ok(duration),
    }
}
