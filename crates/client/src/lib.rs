//! Typed clients of the three services, with a token and a deadline on every call
