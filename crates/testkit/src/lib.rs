//! Test support, a dev-dependency only: a private database per test, settings and tokens, seeds.
//!
//! | module | what it gives |
//! |---|---|
//! | [`db`] | [`db::TestDb`]: a fresh migrated database on the server that `./test` starts |
//! | [`disk`] | a disk for a store, that fails and tears |
//! | [`proxy`] | a proxy before the database that cuts or silences its connections |
//! | [`http`] | an HTTP client |
//! | [`settings`] | settings of a server under test, tokens that it accepts |
//! | [`seed`] | accounts |

pub mod db;
pub mod disk;
pub mod http;
pub mod proxy;
pub mod seed;
pub mod settings;
