//! The certificate and key that a server serves TLS with.

use std::{path::Path, sync::Arc};

use tokio_rustls::rustls::{
    self, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::config::ServeArgs;

/// A certificate or key that cannot be served with.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: {path}: {reason}")]
pub struct TlsError {
    setting: &'static str,
    path: String,
    reason: String,
}

const CERT: &str = "TLS_CERT (--tls-cert)";
const KEY: &str = "TLS_KEY (--tls-key)";

/// What the settings say: TLS with this chain and key, or none. Read before anything is served or begun, so that
/// what does not fit ends the start.
pub fn server_config(args: &ServeArgs) -> Result<Option<ServerConfig>, TlsError> {
    let (Some(certificates), Some(key)) = (&args.tls_cert, &args.tls_key) else {
        return Ok(None);
    };
    let unusable =
        |setting, path: &Path, reason: String| TlsError { setting, path: path.display().to_string(), reason };
    let chain: Vec<_> = CertificateDer::pem_file_iter(certificates)
        .and_then(Iterator::collect)
        .map_err(|e| unusable(CERT, certificates, e.to_string()))?;
    if chain.is_empty() {
        return Err(unusable(CERT, certificates, "it has no certificate".to_owned()));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| unusable(KEY, key, e.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private))
        .map(Some)
        .map_err(|e| unusable(KEY, key, e.to_string()))
}
