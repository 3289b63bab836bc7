//! Tokens: what is in them, how they are made, and what each must have.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use chrono::{DateTime, Utc};
use jsonwebtoken::{Algorithm, EncodingKey, Header, Validation, encode};
use nexus_core::id::EcoId;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::Scope;

pub(super) const SERVICE_TOKEN_TYPE: &str = "nexus-service+jwt";
pub(super) const SERVICE_TOKEN_ISSUER: &str = "nexus-service";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct UserClaims {
    pub(super) eco_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) email: Option<String>,
    iss: String,
    /// One or several, which the rules read.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    aud: Option<String>,
    pub(super) exp: i64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct ServiceClaims {
    pub(super) sub: String,
    pub(super) scope: String,
    iss: String,
    pub(super) exp: i64,
}

/// A user's token, as an identity provider would issue it.
pub fn user_token(
    secret: &SecretString,
    issuer: &str,
    audience: Option<&str>,
    eco_id: &EcoId,
    email: Option<&str>,
    expires: DateTime<Utc>,
) -> Result<String, jsonwebtoken::errors::Error> {
    let claims = UserClaims {
        eco_id: eco_id.as_str().to_owned(),
        email: email.map(str::to_owned),
        iss: issuer.to_owned(),
        aud: audience.map(str::to_owned),
        exp: expires.timestamp(),
    };
    encode(
        &Header::new(Algorithm::HS256),
        &claims,
        &EncodingKey::from_secret(secret.expose_secret().as_bytes()),
    )
}

/// A service token.
pub fn service_token(
    secret: &SecretString,
    name: &str,
    scopes: &[Scope],
    expires: DateTime<Utc>,
) -> Result<String, jsonwebtoken::errors::Error> {
    let claims = ServiceClaims {
        sub: name.to_owned(),
        scope: scopes.iter().map(|s| s.as_str()).collect::<Vec<_>>().join(" "),
        iss: SERVICE_TOKEN_ISSUER.to_owned(),
        exp: expires.timestamp(),
    };
    let header = Header { typ: Some(SERVICE_TOKEN_TYPE.to_owned()), ..Header::new(Algorithm::HS256) };
    encode(&header, &claims, &EncodingKey::from_secret(secret.expose_secret().as_bytes()))
}

/// RFC 7515, section 4.1.11: a token that names extensions which must be understood is refused by whoever
/// does not understand them. We know none.
pub(super) fn names_critical_extensions(token: &str) -> bool {
    let header = token.split('.').next().and_then(|part| BASE64.decode(part).ok());
    header
        .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok())
        .is_none_or(|header| header.get("crit").is_some())
}

/// Whether a user's token may say that it is of this type: one of another is good for something else, such as a sign-out.
pub(super) fn is_users_type(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["jwt", "at+jwt"].contains(&text.strip_prefix("application/").unwrap_or(&text))
}

pub(super) fn validation(algorithm: Algorithm, issuer: &str, audience: Option<&str>) -> Validation {
    let mut rules = Validation::new(algorithm);
    rules.set_issuer(&[issuer]);
    rules.set_required_spec_claims(&["exp", "iss"]);
    rules.leeway = 0;
    rules.validate_nbf = true;
    rules.validate_aud = audience.is_some();
    if let Some(audience) = audience {
        rules.set_audience(&[audience]);
        rules.set_required_spec_claims(&["exp", "iss", "aud"]);
    }
    rules
}
