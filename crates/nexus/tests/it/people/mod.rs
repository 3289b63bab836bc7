//! The commands for people, against the three services.

mod accounts;
mod charges;
mod errors;
mod keys;
mod servers;
mod usage;
