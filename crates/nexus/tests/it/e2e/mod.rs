//! End to end: the real processes on free ports, a private database, stripe-sim over HTTP.

mod banner;
mod drain;
mod envoy;
mod line;
mod reflection;
mod suite;
mod trace;
