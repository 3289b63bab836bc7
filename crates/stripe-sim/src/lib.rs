//! A small stateful Stripe over HTTP, for development, demos and fault tests
