//! What servers share.

mod auth;
mod config;
mod db;
mod layer;
mod page;
mod server;
mod status;
mod tls;
