//! Gives an API key a new secret. The old one is accepted through a grace period, by the database's clock.

use chrono::{DateTime, Utc};
use nexus_core::id::{ApiKeyText, EcoId};
use nexus_kit::{db, validate::Violations};
use sqlx::PgPool;

use crate::{
    domain::api_key::{ApiKey, Status},
    error::Error,
    store::{self, api_key_rotations},
};

/// Old secrets of a key that are valid at once, at most: a verification compares them all.
const MAX_IN_GRACE: i64 = 4;

/// Rotations of a key within a day, at most: they are kept for good.
const MAX_A_DAY: i64 = 100;

/// A rotation to do.
#[derive(Debug)]
pub struct Rotation {
    /// The key with its new secret: random, or derived from a request id so that a repeat has the same one.
    pub text: ApiKeyText,
    /// How long the old secret stays valid.
    pub grace_ms: i64,
}

/// Replaces the secret; returns the key, and until when the old secret is accepted. A secret that the key
/// was given before is the answer to a repeated request: it is not given again, but answered again.
/// `owner`: the only account whose keys count, where there is one.
pub async fn run(
    pool: &PgPool,
    rotation: &Rotation,
    owner: Option<&EcoId>,
    actor: &str,
) -> Result<(ApiKey, DateTime<Utc>), Error> {
    let (key_id, grace_ms) = (rotation.text.key_id(), rotation.grace_ms);
    let secret = rotation.text.secret_sha256();
    let mut transaction = db::begin(pool).await?;
    db::set_actor(&mut transaction, actor).await?;
    let key = store::api_keys::lock(&mut transaction, key_id, owner).await?.ok_or(Error::UnknownApiKey)?;
    if let Some(done) = api_key_rotations::find(&mut transaction, key_id, &secret).await? {
        if done.grace_ms != grace_ms {
            let message = "was used for a rotation with another grace period";
            return Err(Error::Invalid(Violations::one("request_id", message)));
        }
        return Ok((key, done.previous_expires));
    }
    if key.status == Status::Revoked {
        return Err(Error::RevokedApiKey);
    }
    if store::accounts::is_closed(&mut transaction, &key.eco_id).await? == Some(true) {
        return Err(Error::ClosedAccount);
    }
    if api_key_rotations::count_of_a_day(&mut transaction, key_id).await? >= MAX_A_DAY {
        return Err(Error::TooManyRotations(MAX_A_DAY));
    }
    if grace_ms == 0 {
        api_key_rotations::end_grace(&mut transaction, key_id).await?;
    } else {
        let valid = api_key_rotations::count_in_grace(&mut transaction, key_id).await?;
        if valid >= MAX_IN_GRACE {
            return Err(Error::TooManySecrets(valid));
        }
    }
    let expires = api_key_rotations::insert(&mut transaction, key_id, &secret, grace_ms).await?;
    store::api_keys::replace_secret(&mut transaction, key_id, &secret).await?;
    transaction.commit().await?;
    Ok((key, expires))
}
