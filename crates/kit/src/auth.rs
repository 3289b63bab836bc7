//! Who is calling, and what a caller may do.
//!
//! * A *user* shows a JWT: HS256 by the shared secret, or RS256, ES256 or EdDSA by a public key. A key
//!   verifies the one algorithm it was made for, so that a public key cannot pass for a shared secret.
//! * A *service* shows a JWT of type `nexus-service+jwt` under a secret of its own, with scopes.
//! * An *API client* shows an API key, which usage-svc looks up; here it is only read.

use std::{collections::HashSet, fmt, fs, str::FromStr, sync::Arc};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode,
    get_current_timestamp,
    jwk::{AlgorithmParameters, EllipticCurve, JwkSet, KeyAlgorithm},
};
use nexus_core::id::{ApiKeyText, EcoId};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tonic::{Request, Status};

use crate::{config::AuthArgs, good_tokens::GoodTokens, status, validate::Violations};

const SERVICE_TOKEN_TYPE: &str = "nexus-service+jwt";
const SERVICE_TOKEN_ISSUER: &str = "nexus-service";
/// RFC 7518, section 3.2: a key of the hash's size or larger.
const MIN_SECRET_BYTES: usize = 32;

/// What a service token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Record usage.
    UsageWrite,
    /// Check and lease quota, verify API keys.
    UsageCheck,
    /// Manage accounts and API keys.
    AccountsWrite,
    /// Run billing.
    BillingRun,
    /// Everything.
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: [Scope; 5] =
        [Scope::UsageWrite, Scope::UsageCheck, Scope::AccountsWrite, Scope::BillingRun, Scope::Admin];

    /// The word in a token.
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::UsageWrite => "usage.write",
            Scope::UsageCheck => "usage.check",
            Scope::AccountsWrite => "accounts.write",
            Scope::BillingRun => "billing.run",
            Scope::Admin => "admin",
        }
    }

    /// Whether an API key with these scopes has this one; none at all: everything a key may.
    pub fn is_in(self, key_scopes: &[String]) -> bool {
        key_scopes.is_empty() || key_scopes.iter().any(|scope| scope == self.as_str())
    }
}

impl FromStr for Scope {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|s| s.as_str() == text).ok_or_else(|| {
            format!("unknown scope `{text}`, expected one of usage.write, usage.check, accounts.write, billing.run, admin")
        })
    }
}

/// Who is calling.
#[derive(Debug, Clone)]
pub enum Caller {
    /// A person, by JWT.
    User {
        /// Own account.
        eco_id: EcoId,
        /// Email, if the token says it.
        email: Option<String>,
        /// Whether the account is listed as an admin's.
        admin: bool,
    },
    /// A program of ours, by service token.
    Service {
        /// Its name.
        name: String,
        /// What it may do.
        scopes: Vec<Scope>,
    },
    /// A customer's program, by API key. Read only: where a server takes keys, its layer verifies them
    /// ([`KeyVerifier`]).
    ApiKey(ApiKeyText),
}

/// An API key that opens its account.
#[derive(Debug, Clone)]
pub struct VerifiedKey {
    /// Its public id.
    pub key_id: String,
    /// Account it belongs to.
    pub eco_id: EcoId,
    /// What it may do; empty: everything a key may.
    pub scopes: Vec<String>,
    /// Metered apart.
    pub test_mode: bool,
}

/// Verifies API keys before a call's message is read: what somebody made up must not have the server build what
/// comes with it.
pub type KeyVerifier =
    Arc<dyn Fn(ApiKeyText) -> BoxFuture<'static, Result<VerifiedKey, Status>> + Send + Sync>;

impl VerifiedKey {
    /// The key a call was made with, where it was made with one.
    pub fn of<T>(request: &Request<T>) -> Option<&Self> {
        request.extensions().get()
    }

    /// The account a call is about: the key's own, named or not.
    pub fn account(&self, requested: &str) -> Result<EcoId, Status> {
        if requested.is_empty() || requested == self.eco_id.as_str() {
            Ok(self.eco_id.clone())
        } else {
            Err(status::permission_denied("an API key is for its own account only"))
        }
    }

    /// Demands that the key may do this.
    pub fn require_scope(&self, scope: Scope) -> Result<(), Status> {
        if scope.is_in(&self.scopes) {
            return Ok(());
        }
        Err(status::permission_denied(format!("the API key lacks the scope {}", scope.as_str())))
    }
}

impl Caller {
    /// The caller that the layer found; the layer refuses RPCs without one.
    pub fn of<T>(request: &Request<T>) -> Result<Caller, Status> {
        request
            .extensions()
            .get::<Caller>()
            .cloned()
            .ok_or_else(|| status::unauthenticated("credentials are missing"))
    }

    /// Who it is, for the audit log.
    pub fn subject(&self) -> String {
        match self {
            Caller::User { eco_id, .. } => format!("user:{eco_id}"),
            Caller::Service { name, .. } => format!("service:{name}"),
            Caller::ApiKey(text) => format!("api_key:{}", text.key_id()),
        }
    }

    /// Whether the caller sees every account: an admin, or a service with the scope `admin`.
    pub fn is_admin(&self) -> bool {
        match self {
            Caller::User { admin, .. } => *admin,
            Caller::Service { scopes, .. } => scopes.contains(&Scope::Admin),
            Caller::ApiKey(_) => false,
        }
    }

    /// Whether the caller is a service with this scope (or `admin`).
    pub fn has_scope(&self, scope: Scope) -> bool {
        matches!(self, Caller::Service { scopes, .. } if scopes.contains(&scope) || scopes.contains(&Scope::Admin))
    }

    /// Demands a scope of a service.
    pub fn require_scope(&self, scope: Scope) -> Result<(), Status> {
        if self.has_scope(scope) {
            return Ok(());
        }
        Err(status::permission_denied(format!(
            "this call needs a service token with the scope {}",
            scope.as_str()
        )))
    }

    /// Demands an admin, or a service with one of the scopes.
    pub fn require_admin_or(&self, scopes: &[Scope]) -> Result<(), Status> {
        if self.is_admin() || scopes.iter().any(|s| self.has_scope(*s)) {
            return Ok(());
        }
        Err(status::permission_denied("this call is for admins"))
    }

    /// The account a call is about: a user's own, whatever admins and services with one of the scopes ask
    /// for. `requested` is empty where the request names none.
    pub fn account(&self, requested: &str, scopes: &[Scope]) -> Result<EcoId, Status> {
        let mut violations = Violations::new();
        let eco_id = self.account_among(requested, scopes, &mut violations)?;
        eco_id.ok_or_else(|| status::invalid(&violations))
    }

    /// The same for a request with more fields: a malformed id is one violation among others.
    pub fn account_among(
        &self,
        requested: &str,
        scopes: &[Scope],
        violations: &mut Violations,
    ) -> Result<Option<EcoId>, Status> {
        let any_account = self.is_admin() || scopes.iter().any(|s| self.has_scope(*s));
        match self {
            Caller::User { eco_id, .. } if requested.is_empty() || requested == eco_id.as_str() => {
                Ok(Some(eco_id.clone()))
            }
            _ if any_account => Ok(violations.eco_id("eco_id", requested)),
            _ => Err(status::permission_denied("this call is for the own account only")),
        }
    }
}

/// Why credentials do not hold; never says more to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// There are none.
    #[error("credentials are missing")]
    Missing,
    /// They are malformed, expired, from elsewhere, or signed with another key.
    #[error("credentials are invalid")]
    Invalid,
}

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthConfigError {
    /// A secret is too short.
    #[error("{0} must have at least 32 bytes (RFC 7518, section 3.2)")]
    ShortSecret(&'static str),
    /// One secret would serve two purposes.
    #[error(
        "SERVICE_TOKEN_SECRET must differ from JWT_SECRET: whoever signs users' tokens could else sign service tokens"
    )]
    SameSecret,
    /// Users could not be verified.
    #[error("one of JWT_SECRET, JWT_JWKS, JWT_PUBLIC_KEY must be set to verify users")]
    NoUserKey,
    /// A key cannot be read.
    #[error("{name}: {message}")]
    BadKey {
        /// Setting.
        name: &'static str,
        /// What is wrong.
        message: String,
    },
    /// An admin id is none.
    #[error("ADMIN_ECO_IDS: `{0}` is not an account id")]
    BadAdmin(String),
}

struct UserKey {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// Verifies credentials.
pub struct Authenticator {
    user_keys: Vec<UserKey>,
    issuer: String,
    service_key: DecodingKey,
    admins: HashSet<EcoId>,
    good_tokens: GoodTokens,
    pub(crate) open_reflection: bool,
    pub(crate) open_health: bool,
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct UserClaims {
    eco_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<String>,
    iss: String,
    exp: i64,
}

#[derive(Serialize, Deserialize)]
struct ServiceClaims {
    sub: String,
    scope: String,
    iss: String,
    exp: i64,
}

impl Authenticator {
    /// Reads the settings.
    pub fn new(args: &AuthArgs) -> Result<Self, AuthConfigError> {
        let service_secret = args.service_token_secret.expose_secret();
        check_length("SERVICE_TOKEN_SECRET", service_secret)?;
        let mut user_keys = Vec::new();
        if let Some(secret) = &args.jwt_secret {
            let secret = secret.expose_secret();
            check_length("JWT_SECRET", secret)?;
            if secret == service_secret {
                return Err(AuthConfigError::SameSecret);
            }
            let key = DecodingKey::from_secret(secret.as_bytes());
            user_keys.push(UserKey { id: None, algorithm: Algorithm::HS256, key });
        }
        if let Some(source) = &args.jwt_jwks {
            user_keys.extend(jwks("JWT_JWKS", &inline_or_file("JWT_JWKS", source, '{')?)?);
        }
        if let Some(source) = &args.jwt_public_key {
            user_keys.push(pem("JWT_PUBLIC_KEY", &inline_or_file("JWT_PUBLIC_KEY", source, '-')?)?);
        }
        if user_keys.is_empty() {
            return Err(AuthConfigError::NoUserKey);
        }
        let admins = args.admin_eco_ids.split(',').map(str::trim).filter(|id| !id.is_empty());
        let admins = admins.map(|id| EcoId::parse(id).map_err(|_| AuthConfigError::BadAdmin(id.to_owned())));
        Ok(Self {
            user_keys,
            issuer: args.jwt_issuer.clone(),
            service_key: DecodingKey::from_secret(service_secret.as_bytes()),
            admins: admins.collect::<Result<_, _>>()?,
            good_tokens: GoodTokens::default(),
            open_reflection: args.open_reflection,
            open_health: args.open_health,
        })
    }

    /// Reads an `authorization` header.
    pub fn authenticate(&self, authorization: Option<&str>) -> Result<Caller, AuthError> {
        let (scheme, credentials) =
            authorization.ok_or(AuthError::Missing)?.trim().split_once(' ').ok_or(AuthError::Invalid)?;
        let credentials = credentials.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            self.token(credentials, get_current_timestamp())
        } else if scheme.eq_ignore_ascii_case("apikey") {
            ApiKeyText::parse(credentials).map(Caller::ApiKey).map_err(|_| AuthError::Invalid)
        } else {
            Err(AuthError::Invalid)
        }
    }

    /// Whose a token is, and when it ends: for who keeps one, as a session does.
    pub fn session(&self, token: &str) -> Result<(Caller, DateTime<Utc>), AuthError> {
        let (caller, expires) = self.verify(token)?;
        let expires = DateTime::from_timestamp(expires, 0).ok_or(AuthError::Invalid)?;
        Ok((caller, expires))
    }

    fn token(&self, token: &str, now: u64) -> Result<Caller, AuthError> {
        if let Some(caller) = self.good_tokens.caller(token, now) {
            return Ok(caller);
        }
        let (caller, expires) = self.verify(token)?;
        let expires = u64::try_from(expires).map_err(|_| AuthError::Invalid)?;
        self.good_tokens.remember(token, caller.clone(), expires);
        Ok(caller)
    }

    /// Whose a token is, and the last second that it is good in.
    fn verify(&self, token: &str) -> Result<(Caller, i64), AuthError> {
        let header = decode_header(token).map_err(|_| AuthError::Invalid)?;
        if names_critical_extensions(token) {
            return Err(AuthError::Invalid);
        }
        if header.typ.as_deref() == Some(SERVICE_TOKEN_TYPE) {
            return self.service_token(token);
        }
        let fitting = |k: &&UserKey| {
            k.algorithm == header.alg && (header.kid.is_none() || k.id.is_none() || k.id == header.kid)
        };
        let claims: UserClaims = self
            .user_keys
            .iter()
            .filter(fitting)
            .find_map(|k| decode(token, &k.key, &validation(k.algorithm, &self.issuer)).ok())
            .ok_or(AuthError::Invalid)?
            .claims;
        let eco_id = EcoId::parse(&claims.eco_id).map_err(|_| AuthError::Invalid)?;
        let admin = self.admins.contains(&eco_id);
        Ok((Caller::User { admin, eco_id, email: claims.email }, claims.exp))
    }

    fn service_token(&self, token: &str) -> Result<(Caller, i64), AuthError> {
        let rules = validation(Algorithm::HS256, SERVICE_TOKEN_ISSUER);
        let claims: ServiceClaims =
            decode(token, &self.service_key, &rules).map_err(|_| AuthError::Invalid)?.claims;
        let scopes: Result<Vec<Scope>, _> = claims.scope.split_whitespace().map(str::parse).collect();
        let scopes = scopes.map_err(|_| AuthError::Invalid)?;
        Ok((Caller::Service { name: claims.sub, scopes }, claims.exp))
    }
}

/// A user's token, as an identity provider would issue it.
pub fn user_token(
    secret: &SecretString,
    issuer: &str,
    eco_id: &EcoId,
    email: Option<&str>,
    expires: DateTime<Utc>,
) -> Result<String, jsonwebtoken::errors::Error> {
    let claims = UserClaims {
        eco_id: eco_id.as_str().to_owned(),
        email: email.map(str::to_owned),
        iss: issuer.to_owned(),
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
fn names_critical_extensions(token: &str) -> bool {
    let header = token.split('.').next().and_then(|part| BASE64.decode(part).ok());
    header
        .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok())
        .is_none_or(|header| header.get("crit").is_some())
}

fn validation(algorithm: Algorithm, issuer: &str) -> Validation {
    let mut rules = Validation::new(algorithm);
    rules.set_issuer(&[issuer]);
    rules.set_required_spec_claims(&["exp", "iss"]);
    rules.leeway = 0;
    rules.validate_nbf = true;
    rules.validate_aud = false;
    rules
}

/// Checks that a secret is long enough to sign tokens with; `name` is the setting at fault if not.
pub fn check_secret(name: &'static str, secret: &SecretString) -> Result<(), AuthConfigError> {
    check_length(name, secret.expose_secret())
}

fn check_length(name: &'static str, secret: &str) -> Result<(), AuthConfigError> {
    if secret.len() < MIN_SECRET_BYTES { Err(AuthConfigError::ShortSecret(name)) } else { Ok(()) }
}

fn inline_or_file(name: &'static str, source: &str, inline_start: char) -> Result<String, AuthConfigError> {
    if source.trim_start().starts_with(inline_start) {
        return Ok(source.to_owned());
    }
    fs::read_to_string(source)
        .map_err(|e| AuthConfigError::BadKey { name, message: format!("{source}: {e}") })
}

fn jwks(name: &'static str, json: &str) -> Result<Vec<UserKey>, AuthConfigError> {
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

fn pem(name: &'static str, text: &str) -> Result<UserKey, AuthConfigError> {
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
