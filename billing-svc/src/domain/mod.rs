//! Types and rules; pure.
