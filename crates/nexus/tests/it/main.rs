//! The real binary, run as its users run it.

mod support;

mod completions;
mod curl;
mod demo;
mod dev;
mod e2e;
mod import;
mod links;
mod maintenance;
mod overage;
mod people;
mod reconcile;
mod token;
