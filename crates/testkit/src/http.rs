//! HTTP clients for tests.

/// A client.
pub fn client() -> reqwest::Client {
    install_provider();
    reqwest::Client::new()
}

/// A client that opens a connection for each request, so that a cut one does not disturb the next.
pub fn unpooled_client() -> reqwest::Result<reqwest::Client> {
    install_provider();
    reqwest::Client::builder().pool_max_idle_per_host(0).build()
}

/// Tests speak plain HTTP only, but reqwest asks for a TLS provider all the same where another crate of the
/// build has turned its TLS on.
fn install_provider() {
    // Fails only where one is installed already, by a test of the same process.
    drop(tokio_rustls::rustls::crypto::ring::default_provider().install_default());
}
