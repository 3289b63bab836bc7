//! Who is calling a route, as extractors: a [`User`], an [`Admin`], an API client ([`ApiKey`]), the
//! [`Scheduler`]; and whose place a request takes ([`sender`]).

use axum::extract::{FromRequestParts, Request};
use http::{Extensions, HeaderMap, header::AUTHORIZATION, request::Parts};
use nexus_core::id::{ApiKeyText, EcoId};
use nexus_kit::auth::{AuthError, Caller};
use nexus_proto::usage::v1::VerifyApiKeyResponse;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tracing::Span;

use crate::{
    App, Gateway,
    address::Client,
    error::Error,
    pages::session,
    places::{Place, Sender},
};

/// Routes that verify a key before they read anything.
const TAKE_KEYS: [&str; 2] = ["/api/secure/", "/nexus."];

/// Routes that tell of our health.
const HEALTH: [&str; 2] = ["/healthz", "/readyz"];
/// Routes that verify what they are sent, by the secret that it was signed with.
const WEBHOOKS: &str = "/webhooks/";

/// Whom a request is from. A key counts where it is verified first; elsewhere it says nothing.
pub fn sender(app: &Gateway, request: &Request) -> Sender {
    let (path, headers) = (request.uri().path(), request.headers());
    let caller = match authorization(headers) {
        Ok(header) => app.auth.authenticate(Some(header)),
        Err(AuthError::Missing) => session::caller(app, headers),
        Err(AuthError::Invalid) => Err(AuthError::Invalid),
    };
    let known = match caller {
        Ok(Caller::User { eco_id, .. }) => Some(Sender::User(eco_id)),
        Ok(Caller::Service { .. }) => Some(Sender::Service),
        Ok(Caller::ApiKey(key)) if TAKE_KEYS.iter().any(|route| path.starts_with(route)) => {
            app.known_keys.account(&key).map(Sender::Key)
        }
        Ok(Caller::ApiKey(_)) => None,
        Err(_) => is_scheduler(app, headers).then_some(Sender::Service),
    };
    let address = request.extensions().get().map(|Client(address)| *address);
    known.unwrap_or_else(|| match path {
        path if HEALTH.contains(&path) => Sender::Service,
        path if path.starts_with(WEBHOOKS) => Sender::Webhook(address),
        _ => Sender::Stranger(address),
    })
}

/// A person with a valid JWT. The services verify it again: what a user may see is theirs to decide.
pub struct User {
    authorization: String,
    admin: bool,
    eco_id: EcoId,
}

impl User {
    /// Whom an `authorization` header names.
    pub fn enter(app: &App, header: &str) -> Result<Self, Error> {
        match app.auth.authenticate(Some(header)) {
            Ok(Caller::User { eco_id, admin, .. }) => {
                app.rates.account(&eco_id)?;
                Span::current().record("caller", eco_id.as_str());
                Ok(User { authorization: header.to_owned(), admin, eco_id })
            }
            Ok(Caller::Service { .. } | Caller::ApiKey(_)) | Err(_) => Err(Error::Unauthorized),
        }
    }

    /// The account.
    pub fn eco_id(&self) -> &EcoId {
        &self.eco_id
    }

    /// The header as the user sent it.
    pub fn authorization(&self) -> &str {
        &self.authorization
    }
}

impl FromRequestParts<App> for User {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        let entered = authorization(&parts.headers)
            .map_err(|_| Error::Unauthorized)
            .and_then(|header| User::enter(app, header));
        if matches!(entered, Err(Error::Unauthorized)) {
            app.rates.stranger(&parts.extensions)?;
        }
        entered
    }
}

/// A user whose account is listed as an admin's.
pub struct Admin(pub User);

impl FromRequestParts<App> for Admin {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        let user = User::from_request_parts(parts, app).await?;
        if user.admin { Ok(Admin(user)) } else { Err(Error::Forbidden) }
    }
}

/// Whose key this is, and one more request of that account, whose place it has from now on. Until it is verified, a key that
/// is not known is a stranger's: who makes keys up is held up before anybody is asked about them, and so is an account
/// whose key is known.
pub async fn verified(
    app: &Gateway,
    key: &ApiKeyText,
    extensions: &Extensions,
) -> Result<(EcoId, VerifyApiKeyResponse), Error> {
    let is_known = match app.known_keys.account(key) {
        Some(eco_id) => app.rates.account(&eco_id).map(|()| true)?,
        None => app.rates.stranger(extensions).map(|()| false)?,
    };
    let caller = match app.backend.verify_api_key(key).await {
        Err(Error::InvalidApiKey) if is_known => {
            app.known_keys.forget(key);
            app.rates.stranger(extensions)?;
            return Err(Error::InvalidApiKey);
        }
        Err(error @ Error::Unavailable { .. }) if !is_known => {
            // Nobody knows what the key is. A service that is overloaded may be so by made-up ones: these count.
            app.rates.no_stranger(extensions);
            return Err(error);
        }
        verified => verified?,
    };
    let eco_id = EcoId::parse(&caller.eco_id);
    let eco_id = eco_id.map_err(|e| Error::Internal(format!("the service sent a bad eco_id: {e}")))?;
    if !is_known {
        app.rates.no_stranger(extensions);
        app.known_keys.remember(key, eco_id.clone());
        app.rates.account(&eco_id)?;
    }
    if let Some(place) = extensions.get::<Place>() {
        place.with_key_of(&eco_id)?;
    }
    Ok((eco_id, caller))
}

/// A well-formed API key; whether it is good, usage-svc knows. Before that it is a stranger's.
pub struct ApiKey(pub ApiKeyText);

impl FromRequestParts<App> for ApiKey {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        let key = Self::shown(parts, app);
        if key.is_err() {
            app.rates.stranger(&parts.extensions)?;
        }
        key
    }
}

impl ApiKey {
    fn shown(parts: &Parts, app: &App) -> Result<Self, Error> {
        let header = authorization(&parts.headers).map_err(|error| match error {
            AuthError::Missing => Error::MissingApiKey,
            AuthError::Invalid => Error::InvalidApiKey,
        })?;
        match app.auth.authenticate(Some(header)) {
            Ok(Caller::ApiKey(key)) => {
                Span::current().record("caller", key.key_id());
                Ok(ApiKey(key))
            }
            // Other credentials are no API key; a bad API key is one.
            Ok(Caller::User { .. } | Caller::Service { .. }) => Err(Error::MissingApiKey),
            Err(_) if is_bearer(header) => Err(Error::MissingApiKey),
            Err(_) => Err(Error::InvalidApiKey),
        }
    }
}

/// The scheduler, by the secret it shares with the gateway.
pub struct Scheduler;

impl FromRequestParts<App> for Scheduler {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        if is_scheduler(app, &parts.headers) {
            Span::current().record("caller", "scheduler");
            return Ok(Scheduler);
        }
        app.rates.stranger(&parts.extensions)?;
        Err(if app.cron_secret.is_none() { Error::NoCronSecret } else { Error::Unauthorized })
    }
}

fn is_scheduler(app: &Gateway, headers: &HeaderMap) -> bool {
    let header = authorization(headers).ok().filter(|header| is_bearer(header));
    let shown = header.and_then(|header| header.split_once(' '));
    let secret = app.cron_secret.as_ref();
    secret.zip(shown).is_some_and(|(secret, (_, shown))| secret.matches(shown.trim()))
}

/// The digest of a secret: compared instead of it, so that the time tells neither content nor length.
pub struct SecretDigest([u8; 32]);

impl SecretDigest {
    /// Of a configured secret; an empty one is none.
    pub fn of(secret: &SecretString) -> Option<Self> {
        let secret = secret.expose_secret();
        (!secret.is_empty()).then(|| Self(Sha256::digest(secret.as_bytes()).into()))
    }

    fn matches(&self, shown: &str) -> bool {
        let shown: [u8; 32] = Sha256::digest(shown.as_bytes()).into();
        self.0.ct_eq(&shown).into()
    }
}

/// The one `authorization` header.
pub fn authorization(headers: &HeaderMap) -> Result<&str, AuthError> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let header = all.next().ok_or(AuthError::Missing)?;
    if all.next().is_some() {
        return Err(AuthError::Invalid);
    }
    header.to_str().map_err(|_| AuthError::Invalid)
}

fn is_bearer(header: &str) -> bool {
    header.split_once(' ').is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
}
