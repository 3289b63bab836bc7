//! An HTTP client for tests.

/// A client. It speaks plain HTTP only, but reqwest asks for a TLS provider all the same where another
/// crate of the build has turned its TLS on.
pub fn client() -> reqwest::Client {
    // Fails only where one is installed already, by a test of the same process.
    drop(tokio_rustls::rustls::crypto::ring::default_provider().install_default());
    reqwest::Client::new()
}
