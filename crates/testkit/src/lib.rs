//! Test support: a private database per test, applications on free ports, tokens
