//! Secrets and signatures after Standard Webhooks: HMAC-SHA256 over `id.timestamp.body`, in base64, `v1,` before it.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, Mac};
use rand::RngCore;
use sha2::Sha256;

/// Bytes of a new secret; the specification asks for 24 to 64.
const SECRET_BYTES: usize = 32;
const PREFIX: &str = "whsec_";

/// How long the secret before goes on signing after a rotation, unless asked otherwise.
pub const DEFAULT_GRACE_MS: i64 = 24 * 3600 * 1_000;
/// And at most.
pub const MAX_GRACE_MS: i64 = 30 * DEFAULT_GRACE_MS;
/// Secrets that sign at once: the newest and those in grace.
pub const MAX_SECRETS: usize = 4;

/// What an endpoint's messages are signed with. Its `Debug` form hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("whsec_***")
    }
}

impl Secret {
    /// A new one.
    pub fn random(rng: &mut impl RngCore) -> Self {
        let mut bytes = vec![0; SECRET_BYTES];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// One that is kept.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// To be kept.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As its owner gets it: for nobody else.
    pub fn expose(&self) -> String {
        format!("{PREFIX}{}", BASE64.encode(&self.0))
    }

    fn sign(&self, id: &str, timestamp: i64, body: &str) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        mac.update(format!("{id}.{timestamp}.{body}").as_bytes());
        format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()))
    }
}

/// The header `webhook-signature`: one signature a secret, so that a receiver finds one it can verify while it changes
/// from one secret to the next.
pub fn header<'a>(
    secrets: impl IntoIterator<Item = &'a Secret>,
    id: &str,
    timestamp: i64,
    body: &str,
) -> String {
    let signatures: Vec<_> = secrets.into_iter().map(|secret| secret.sign(id, timestamp, body)).collect();
    signatures.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example that implementations of the specification are tested with.
    #[test]
    fn a_signature_is_that_of_standard_webhooks() {
        let secret = Secret(BASE64.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("base64"));
        assert_eq!(secret.expose(), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let body = r#"{"test": 2432232314}"#;
        let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        let signed = header([&secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        assert_eq!(signed, expected);
        let other = Secret::random(&mut rand::rng());
        let both = header([&other, &secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        assert_eq!(both.split_once(' ').map(|(_, second)| second), Some(expected));
        assert_eq!(format!("{secret:?}"), "whsec_***");
    }
}
