//! The pages in a real browser: what people do on them, and that nothing goes wrong beside it. Without Chromium and its
//! driver these are left out, which `./test` says.

mod customer;
mod driver;
mod looks;
mod operator;
