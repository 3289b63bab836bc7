//! What every server shares. A service brings its configuration, its use cases and its gRPC
//! implementations; this crate does the rest in one way for all.
//!
//! | module | what it does |
//! |---|---|
//! | [`config`] | settings from flags and environment that all servers have |
//! | [`telemetry`] | logs, traces, W3C trace context in and out |
//! | `log` | the log as JSON |
//! | [`metrics`] | the Prometheus registry of one server and the RPC metrics |
//! | [`auth`] | who is calling: JWTs, service tokens, API keys; what a caller may do |
//! | `good_tokens` | tokens that were found good, so that they are not verified anew |
//! | [`background`] | what a server does beside its calls; it stops when that panics |
//! | [`arriving`] | how much of messages that are not complete is held |
//! | [`leaving`] | how much of answers that are not taken is held |
//! | [`layer`] | around every RPC: span, log line, metrics, authentication, load limit |
//! | `connection` | ends connections whose other end is silent |
//! | [`descriptors`] | how many connections a server has |
//! | [`serve`] | listeners, reflection, health, drain; the operations port |
//! | [`share`] | how much of what a server has one account may have |
//! | [`turn`] | how many calls of one account are at work at once |
//! | `rpc` | the RPCs by their paths; which of them are in turn |
//! | [`tls`] | the certificate and key of a server |
//! | [`db`] | migrations, pools that act as one database role, what an error of the database means |
//! | [`status`] | gRPC statuses with `google.rpc` details |
//! | [`validate`] | collects every violation of a request |
//! | [`page`] | page sizes and page tokens bound to their filter |
//! | [`convert`] | between the contract's types and the core's |

pub mod arriving;
pub mod auth;
pub mod background;
pub mod config;
mod connection;
pub mod convert;
pub mod db;
pub mod descriptors;
mod good_tokens;
pub mod layer;
pub mod leaving;
mod log;
pub mod metrics;
pub mod page;
pub mod rpc;
pub mod serve;
pub mod share;
pub mod status;
pub mod telemetry;
pub mod tls;
pub mod turn;
pub mod validate;
