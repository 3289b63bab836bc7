//! The pure rules, as properties.

mod id;
mod money;
mod period;
mod quota;
mod route;
mod sketch;
mod spend_cap;
