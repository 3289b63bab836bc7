//! The client against the real usage-svc and a real database: what is delivered, whatever breaks on the way,
//! and what an axum or tonic service within the layer does.

mod delivery;
mod disk;
mod guard;
mod hostile;
mod http_layer;
mod queue;
mod rpc_layer;
mod support;
