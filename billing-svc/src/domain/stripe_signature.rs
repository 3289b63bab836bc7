//! The signature of a webhook: whether a body comes from Stripe, and lately.
//!
//! The header is `t=<seconds>,v1=<hex>[,v1=…]`. A `v1` is the HMAC-SHA256 of `<seconds>.<body>` under one of the
//! endpoint's secrets; while Stripe rolls a secret it sends one under each. Other schemes (`v0`) are passed over.

use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

/// How far the time of a signature may be from ours: an older one may be a recording.
pub const TOLERANCE: TimeDelta = TimeDelta::seconds(300);

/// Why a body is not taken for Stripe's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The header is not of the form above.
    #[error("the signature header is missing or malformed")]
    Malformed,
    /// No signature is one under a secret of ours.
    #[error("no signature matches the body")]
    Mismatch,
    /// It was made too long ago, or will be.
    #[error("the signature is too old, or from the future")]
    OutOfTolerance,
}

/// The secrets that are good at present.
#[derive(Debug, Clone, Default)]
pub struct Secrets(Vec<SecretString>);

impl Secrets {
    /// Of a list separated by commas; blanks around a secret are none of it.
    pub fn parse(list: &SecretString) -> Self {
        let secrets = list.expose_secret().split(',').map(str::trim).filter(|secret| !secret.is_empty());
        Self(secrets.map(SecretString::from).collect())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// When the signature says it was made, if one of those in the header is under one of the secrets. All are
    /// compared, each in constant time.
    pub fn verify(&self, header: &str, body: &[u8]) -> Result<DateTime<Utc>, SignatureError> {
        let (seconds, time, given) = parse(header)?;
        let mut matches = false;
        for secret in &self.0 {
            let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes())
                .expect("HMAC takes keys of any length");
            mac.update(seconds.as_bytes());
            mac.update(b".");
            mac.update(body);
            for signature in &given {
                matches |= mac.clone().verify_slice(signature).is_ok();
            }
        }
        if matches { Ok(time) } else { Err(SignatureError::Mismatch) }
    }
}

/// Whether a signature of that time is still good.
pub fn check_time(signed: DateTime<Utc>, now: DateTime<Utc>) -> Result<(), SignatureError> {
    if (now - signed).abs() <= TOLERANCE { Ok(()) } else { Err(SignatureError::OutOfTolerance) }
}

/// The time as it is written, as it is meant, and the signatures.
type Parts<'h> = (&'h str, DateTime<Utc>, Vec<Vec<u8>>);

/// Reads a header. A signature that is no hex matches nothing.
fn parse(header: &str) -> Result<Parts<'_>, SignatureError> {
    let (mut seconds, mut given) = (None, Vec::new());
    for part in header.split(',') {
        let (scheme, value) = part.trim().split_once('=').ok_or(SignatureError::Malformed)?;
        match scheme {
            "t" if seconds.is_none() => seconds = Some(value),
            "t" => return Err(SignatureError::Malformed),
            "v1" => given.extend(hex::decode(value).ok()),
            _ => {}
        }
    }
    let seconds = seconds.ok_or(SignatureError::Malformed)?;
    let time = seconds.parse().ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    Ok((seconds, time.ok_or(SignatureError::Malformed)?, given))
}

#[cfg(test)]
mod tests {
    use stripe_webhook::Webhook;

    use super::*;

    const BODY: &str = r#"{"id":"evt_1","object":"event"}"#;
    const NOW: i64 = 1_800_000_000;

    fn secrets(list: &str) -> Secrets {
        Secrets::parse(&list.into())
    }

    fn signed(secret: &str) -> String {
        Webhook::generate_test_header(BODY, secret, Some(NOW))
    }

    #[test]
    fn what_another_implementation_signs_is_verified_and_nothing_else() {
        let good = signed("whsec_a");
        let time = DateTime::from_timestamp(NOW, 0);
        assert_eq!(secrets("whsec_a").verify(&good, BODY.as_bytes()).ok(), time);
        // Known from elsewhere, so that both cannot be wrong alike: printf '12345.hello' | openssl dgst -sha256 -hmac whsec_test
        let known = "t=12345,v1=256ccd23f002cacd575297423306f633c56065daa8735cfe7c59e3d217b4abb4";
        assert!(secrets("whsec_test").verify(known, b"hello").is_ok());

        let flipped = good.replace("v1=", "v1=0");
        let other_time = good.replacen(&NOW.to_string(), &(NOW + 1).to_string(), 1);
        for (header, body) in [
            (good.as_str(), r#"{"id":"evt_2","object":"event"}"#),
            (good.as_str(), ""),
            (&flipped, BODY),
            (&other_time, BODY),
            (&good[..good.len() - 2], BODY),
            (&signed("whsec_b"), BODY),
            (&good.replace("v1=", "v0="), BODY),
            (&format!("t={NOW}"), BODY),
            (&format!("t={NOW},v1="), BODY),
            (&format!("t={NOW},v1=zz"), BODY),
        ] {
            let verified = secrets("whsec_a").verify(header, body.as_bytes());
            assert_eq!(verified, Err(SignatureError::Mismatch), "{header} {body}");
        }
        for header in
            ["", "v1=00", "t=,v1=00", "t=x,v1=00", "t=99999999999999999,v1=00", "t=1,t=1,v1=00", "t"]
        {
            let verified = secrets("whsec_a").verify(header, BODY.as_bytes());
            assert_eq!(verified, Err(SignatureError::Malformed), "{header}");
        }
    }

    #[test]
    fn a_secret_is_rolled_without_a_gap() {
        let both = secrets(" whsec_new , whsec_old,");
        for secret in ["whsec_new", "whsec_old"] {
            assert!(both.verify(&signed(secret), BODY.as_bytes()).is_ok(), "{secret}");
        }
        let (old, new) = (signed("whsec_old"), signed("whsec_new"));
        let rolling = format!("{old},{}", new.split_once(',').expect("two parts").1);
        for list in ["whsec_new", "whsec_old"] {
            assert!(secrets(list).verify(&rolling, BODY.as_bytes()).is_ok(), "{list}");
        }
        assert!(both.verify(&signed("whsec_older"), BODY.as_bytes()).is_err());
        for none in ["", " ", ",, ,"] {
            assert!(secrets(none).is_empty(), "{none:?}");
            assert_eq!(secrets(none).verify(&signed(""), BODY.as_bytes()), Err(SignatureError::Mismatch));
        }
        assert!(!format!("{both:?}").contains("whsec"));
    }

    #[test]
    fn a_signature_is_good_for_five_minutes() {
        let now = DateTime::from_timestamp(NOW, 0).expect("a time");
        for seconds in [-300, -1, 0, 300] {
            assert_eq!(check_time(now + TimeDelta::seconds(seconds), now), Ok(()), "{seconds}");
        }
        for seconds in [-301, 301, 86_400] {
            let signed = now + TimeDelta::seconds(seconds);
            assert_eq!(check_time(signed, now), Err(SignatureError::OutOfTolerance), "{seconds}");
        }
    }
}
