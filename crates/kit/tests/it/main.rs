//! What servers share.

mod auth;
mod config;
mod page;
mod status;
mod tls;
