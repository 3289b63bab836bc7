//! A private PostgreSQL: no installation to prepare, no port, no password, root or not.
//!
//! [`Cluster::start`] takes [`Options`] and goes this way:
//!
//! | module     | what it decides                                                                    |
//! |------------|------------------------------------------------------------------------------------|
//! | `options`  | what a caller may choose                                                           |
//! | `account`  | which operating-system user runs the server, and what that user can reach           |
//! | `folder`   | where the cluster lives, who may use it (a lock), where its socket goes             |
//! | `leftover` | stops the server that a killed run left on the same data                            |
//! | `binaries` | which server programs to use                                                        |
//! | `fetch`    | brings them into a cache folder when the machine has none                           |
//! | `server`   | `initdb`, the server process, readiness (`pidfile`), shutdown                       |
//! | `cluster`  | ties these together; the connection URL                                             |
//! | `error`    | everything that can go wrong, and what to do about it                               |
//!
//! The server listens on a Unix socket only and trusts whoever can reach it; the folder of the socket is open to
//! nobody but the server's own user (and root). Durability is PostgreSQL's default: `fsync` stays on.
//!
//! Finding a leftover server reads `/proc`, so that part works on Linux alone; elsewhere PostgreSQL's own interlock
//! refuses the start and its message is passed on.

mod account;
mod binaries;
mod cluster;
mod error;
mod fetch;
mod folder;
mod leftover;
mod options;
mod pidfile;
mod server;

pub use cluster::Cluster;
pub use error::Error;
pub use options::{Options, Storage};

/// Where progress a person should see is told, one sentence a call: a download, a folder that had to move, a server
/// that was left over.
pub type Report<'a> = &'a (dyn Fn(&str) + Sync);
