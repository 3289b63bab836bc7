//! Keys that verify tokens, as they are configured.

use std::fs;

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, JwkSet, KeyAlgorithm},
};
use secrecy::{ExposeSecret, SecretString};

use super::AuthConfigError;

/// RFC 7518, section 3.2: a key of the hash's size or larger.
const MIN_SECRET_BYTES: usize = 32;

/// A key, and the one algorithm that it verifies.
pub(super) struct UserKey {
    pub(super) id: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
}

/// Checks that a secret is long enough to sign tokens with; `name` is the setting at fault if not.
pub fn check_secret(name: &'static str, secret: &SecretString) -> Result<(), AuthConfigError> {
    check_length(name, secret.expose_secret())
}

pub(super) fn check_length(name: &'static str, secret: &str) -> Result<(), AuthConfigError> {
    if secret.len() < MIN_SECRET_BYTES { Err(AuthConfigError::ShortSecret(name)) } else { Ok(()) }
}

pub(super) fn inline_or_file(
    name: &'static str,
    source: &str,
    inline_start: char,
) -> Result<String, AuthConfigError> {
    if source.trim_start().starts_with(inline_start) {
        return Ok(source.to_owned());
    }
    fs::read_to_string(source)
        .map_err(|e| AuthConfigError::BadKey { name, message: format!("{source}: {e}") })
}

pub(super) fn jwks(name: &'static str, json: &str) -> Result<Vec<UserKey>, AuthConfigError> {
    let bad = |message: String| AuthConfigError::BadKey { name, message };
    let set: JwkSet = serde_json::from_str(json).map_err(|e| bad(format!("not a JWK set: {e}")))?;
    let keys = set.keys.iter().map(|jwk| {
        let algorithm = match (&jwk.algorithm, jwk.common.key_algorithm) {
            (AlgorithmParameters::RSA(_), None | Some(KeyAlgorithm::RS256)) => Algorithm::RS256,
            (AlgorithmParameters::EllipticCurve(p), _) if p.curve == EllipticCurve::P256 => Algorithm::ES256,
            (AlgorithmParameters::OctetKeyPair(p), _) if p.curve == EllipticCurve::Ed25519 => {
                Algorithm::EdDSA
            }
            _ => return Err(bad("only RS256, ES256 and EdDSA (Ed25519) keys are taken".to_owned())),
        };
        let key = DecodingKey::from_jwk(jwk).map_err(|e| bad(e.to_string()))?;
        Ok(UserKey { id: jwk.common.key_id.clone(), algorithm, key })
    });
    keys.collect()
}

pub(super) fn pem(name: &'static str, text: &str) -> Result<UserKey, AuthConfigError> {
    let bytes = text.as_bytes();
    let (algorithm, key) = DecodingKey::from_rsa_pem(bytes)
        .map(|k| (Algorithm::RS256, k))
        .or_else(|_| DecodingKey::from_ec_pem(bytes).map(|k| (Algorithm::ES256, k)))
        .or_else(|_| DecodingKey::from_ed_pem(bytes).map(|k| (Algorithm::EdDSA, k)))
        .map_err(|_| AuthConfigError::BadKey {
            name,
            message: "not an RSA, P-256 or Ed25519 public key in PEM".into(),
        })?;
    Ok(UserKey { id: None, algorithm, key })
}
