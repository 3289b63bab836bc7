//! The one binary, as its users run it.

mod e2e;
