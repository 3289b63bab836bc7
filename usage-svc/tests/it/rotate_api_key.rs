//! RotateApiKey.

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use futures::future::try_join_all;
use nexus_client::CallOptions;
use nexus_core::plan::Plan;
use nexus_kit::{auth::Scope, convert::datetime};
use nexus_proto::usage::v1::{
    CreateApiKeyResponse, RevokeApiKeyRequest, RotateApiKeyRequest, RotateApiKeyResponse,
};
use nexus_testkit::{db::TestDb, settings::ADMIN};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::support::*;

const HOUR_MS: i64 = 3_600_000;

async fn rotate(
    server: &Server,
    options: CallOptions,
    request: RotateApiKeyRequest,
) -> Result<Result<RotateApiKeyResponse, Status>> {
    Ok(server.client()?.rotate_api_key(options.request(request)).await.map(|r| r.into_inner()))
}

fn with_grace(made: &CreateApiKeyResponse, grace_ms: impl Into<Option<i64>>) -> RotateApiKeyRequest {
    RotateApiKeyRequest { key_id: key_id(made), grace_period_ms: grace_ms.into(), request_id: String::new() }
}

fn repeatable(made: &CreateApiKeyResponse, grace_ms: impl Into<Option<i64>>) -> RotateApiKeyRequest {
    RotateApiKeyRequest { request_id: Uuid::new_v4().to_string(), ..with_grace(made, grace_ms) }
}

fn previous_expires(rotated: &RotateApiKeyResponse) -> Result<DateTime<Utc>> {
    datetime(&rotated.previous_expire_time.context("the answer has the time")?).map_err(anyhow::Error::msg)
}

async fn is_good(server: &Server, key: &str) -> Result<bool> {
    match verify(server, key).await? {
        Ok(_) => Ok(true),
        Err(status) => {
            refused::<()>(Err(status), Code::Unauthenticated, "INVALID_API_KEY");
            Ok(false)
        }
    }
}

/// Lets the database's clock pass so much of all grace periods.
async fn pass(db: &TestDb, ms: i64) -> Result<()> {
    let passed = "update eco_api_key_rotations
                  set previous_expire_time = previous_expire_time - $1 * interval '1 millisecond'";
    sqlx::query(passed).bind(ms).execute(&db.pool).await?;
    Ok(())
}

#[tokio::test]
async fn a_key_is_rotated_a_hundred_times_within_a_day_and_no_more() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let made = make_key(&server, "eco_a", false).await?;
    let rotated = "insert into eco_api_key_rotations
                          (key_id, secret_sha256, previous_secret_sha256, previous_expire_time, grace_period_ms, rotated_time)
                   select $1, sha256(n::text::bytea), sha256(n::text::bytea), now(), 0, now() - interval '23 hours'
                   from generate_series(1, 99) as n";
    sqlx::query(rotated).bind(key_id(&made)).execute(&db.pool).await?;
    let last = repeatable(&made, 0);
    let first = rotate(&server, user("eco_a")?, last.clone()).await??;
    let more = rotate(&server, user("eco_a")?, repeatable(&made, 0)).await?;
    let more = refused(more, Code::FailedPrecondition, "TOO_MANY_ROTATIONS");
    assert_eq!(more.message(), "the key was rotated 100 times within 24 hours: not again for now");
    assert!(is_good(&server, &first.key).await?);
    assert_eq!(rotate(&server, user("eco_a")?, last).await??.key, first.key);
    Ok(())
}

#[tokio::test]
async fn without_grace_the_old_secret_ends_at_once_and_at_every_replica_once_it_is_heard() -> Result<()> {
    let (db, here) = server().await?;
    let there = Server::start(db.args()).await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let made = make_key(&here, "eco_a", true).await?;
    let rotated = rotate(&here, user("eco_a")?, with_grace(&made, 0)).await??;
    let (old, new) =
        (made.api_key.clone().context("the made key")?, rotated.api_key.clone().context("the rotated key")?);
    assert_eq!((&new, new.test_mode), (&old, true), "all but the secret stays");
    assert!(is_good(&here, &rotated.key).await? && !is_good(&here, &made.key).await?);
    is_refused(&there, &made.key).await?;
    assert!(is_good(&there, &rotated.key).await?);
    let expires = previous_expires(&rotated)?;
    let ended: bool = sqlx::query_scalar("select rotated_time = $1 from eco_api_key_rotations")
        .bind(expires)
        .fetch_one(&db.pool)
        .await?;
    assert!(ended);
    Ok(())
}

#[tokio::test]
async fn through_its_grace_the_old_secret_is_good_by_the_clock_of_the_database() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    for (grace, lasts) in [(None, 24 * HOUR_MS), (Some(HOUR_MS), HOUR_MS)] {
        let made = make_key(&server, "eco_a", false).await?;
        let rotated = rotate(&server, user("eco_a")?, with_grace(&made, grace)).await??;
        let expires = previous_expires(&rotated)?;
        let exact: bool = sqlx::query_scalar(
            "select previous_expire_time = $2 and rotated_time + $3 * interval '1 millisecond' = $2
             from eco_api_key_rotations where key_id = $1",
        )
        .bind(key_id(&made))
        .bind(expires)
        .bind(lasts)
        .fetch_one(&db.pool)
        .await?;
        assert!(exact, "{grace:?}");
        pass(&db, lasts - HOUR_MS / 2).await?;
        assert!(is_good(&server, &made.key).await? && is_good(&server, &rotated.key).await?);
        pass(&db, HOUR_MS / 2).await?;
        is_refused(&server, &made.key).await?;
        assert!(is_good(&server, &rotated.key).await?);
    }
    Ok(())
}

#[tokio::test]
async fn a_revoked_key_has_no_grace_and_no_new_secret() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let made = make_key(&server, "eco_a", false).await?;
    let request = repeatable(&made, HOUR_MS);
    let rotated = rotate(&server, user("eco_a")?, request.clone()).await??;
    let revoke = RevokeApiKeyRequest { key_id: key_id(&made) };
    server.client()?.revoke_api_key(user("eco_a")?.request(revoke)).await?;
    assert!(!is_good(&server, &made.key).await? && !is_good(&server, &rotated.key).await?);
    let refusal = rotate(&server, user("eco_a")?, with_grace(&made, HOUR_MS)).await?;
    refused(refusal, Code::FailedPrecondition, "API_KEY_REVOKED");
    // Its repeat is answered, and brings nothing back.
    assert_eq!(rotate(&server, user("eco_a")?, request).await??.key, rotated.key);
    assert!(!is_good(&server, &rotated.key).await?);
    Ok(())
}

#[tokio::test]
async fn a_repeat_has_the_first_answer_and_brings_no_replaced_secret_back() -> Result<()> {
    let (db, server) = server().await?;
    let other_server = Server::start(db.args()).await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let (made, other) = (make_key(&server, "eco_a", false).await?, make_key(&server, "eco_a", false).await?);
    let request = repeatable(&made, HOUR_MS);
    let first = rotate(&server, user("eco_a")?, request.clone()).await??;
    assert_eq!(rotate(&other_server, user("eco_a")?, request.clone()).await??, first);
    let changed = RotateApiKeyRequest { grace_period_ms: Some(0), ..request.clone() };
    let refusal = rotate(&server, user("eco_a")?, changed).await?;
    assert_eq!(fields(&refused(refusal, Code::InvalidArgument, "INVALID_ARGUMENT")), ["request_id"]);
    assert!(is_good(&server, &made.key).await?, "nothing was rotated by that");
    // Of another key it is another request.
    let of_other = RotateApiKeyRequest { key_id: key_id(&other), ..request.clone() };
    let of_other = rotate(&server, user("eco_a")?, of_other).await??;
    assert_ne!(of_other.key.split_once('.').map(|k| k.1), first.key.split_once('.').map(|k| k.1));

    let second = rotate(&server, user("eco_a")?, with_grace(&made, 0)).await??;
    assert_eq!(rotate(&server, user("eco_a")?, request).await??.key, first.key);
    assert!(!is_good(&server, &first.key).await? && is_good(&server, &second.key).await?);
    Ok(())
}

#[tokio::test]
async fn concurrent_repeats_rotate_once() -> Result<()> {
    let (db, here) = server().await?;
    let there = Server::start(db.args()).await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let made = make_key(&here, "eco_a", false).await?;
    let request = repeatable(&made, HOUR_MS);
    let answers = try_join_all((0..8).map(async |i| {
        let server = if i % 2 == 0 { &here } else { &there };
        anyhow::Ok(rotate(server, user("eco_a")?, request.clone()).await??)
    }))
    .await?;
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    let rotations: i64 =
        sqlx::query_scalar("select count(*) from eco_api_key_rotations").fetch_one(&db.pool).await?;
    assert_eq!(rotations, 1);
    assert!(is_good(&there, &made.key).await? && is_good(&here, &answers[0].key).await?);
    Ok(())
}

/// Each of them was promised that the secret it replaced stays valid.
#[tokio::test]
async fn concurrent_rotations_keep_the_grace_of_each_up_to_a_bound() -> Result<()> {
    let (db, here) = server().await?;
    let there = Server::start(db.args()).await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let made = make_key(&here, "eco_a", false).await?;
    let answers = try_join_all((0..6).map(async |i| {
        let server = if i % 2 == 0 { &here } else { &there };
        rotate(server, user("eco_a")?, with_grace(&made, HOUR_MS)).await
    }))
    .await?;
    let mut keys = vec![made.key.clone()];
    let mut refusals = 0;
    for answer in answers {
        match answer {
            Ok(answer) => keys.push(answer.key),
            Err(status) => {
                refused::<()>(Err(status), Code::FailedPrecondition, "TOO_MANY_SECRETS");
                refusals += 1;
            }
        }
    }
    assert_eq!((keys.len(), refusals), (5, 2));
    for key in &keys {
        assert!(is_good(&here, key).await? && is_good(&there, key).await?);
    }
    // The way out, and what a leak asks for: none but the newest.
    let last = rotate(&here, user("eco_a")?, with_grace(&made, 0)).await??;
    for key in &keys {
        assert!(!is_good(&here, key).await?);
        is_refused(&there, key).await?;
    }
    assert!(is_good(&there, &last.key).await?);
    rotate(&here, user("eco_a")?, with_grace(&made, HOUR_MS)).await??;
    Ok(())
}

#[tokio::test]
async fn a_user_rotates_keys_of_the_own_open_account_only() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    account(&db, "eco_b", Plan::Pro).await?;
    account(&db, "eco_gone", Plan::Pro).await?;
    let made = make_key(&server, "eco_a", false).await?;
    let mut unknown = with_grace(&made, 0);
    unknown.key_id = format!("eco_api_{}", "0".repeat(22));
    let foreign = rotate(&server, user("eco_b")?, with_grace(&made, 0)).await?;
    let foreign = refused(foreign, Code::NotFound, "API_KEY_NOT_FOUND");
    let missing =
        refused(rotate(&server, user("eco_b")?, unknown).await?, Code::NotFound, "API_KEY_NOT_FOUND");
    assert_eq!((foreign.message(), foreign.details()), (missing.message(), missing.details()));
    for options in [service()?, api_key(&made.key)?] {
        let refusal = rotate(&server, options, with_grace(&made, 0)).await?;
        refused(refusal, Code::PermissionDenied, "PERMISSION_DENIED");
    }
    for grace in [-1, 30 * 24 * HOUR_MS + 1] {
        let bad = RotateApiKeyRequest {
            key_id: "x".to_owned(),
            grace_period_ms: Some(grace),
            request_id: "1".to_owned(),
        };
        let refusal = rotate(&server, user("eco_a")?, bad).await?;
        let status = refused(refusal, Code::InvalidArgument, "INVALID_ARGUMENT");
        assert_eq!(fields(&status), ["request_id", "key_id", "grace_period_ms"]);
    }
    assert!(is_good(&server, &made.key).await?);

    for options in [user(ADMIN)?, with_scopes(&[Scope::AccountsWrite])?] {
        let made = make_key(&server, "eco_a", false).await?;
        let rotated = rotate(&server, options, with_grace(&made, 0)).await??;
        assert!(is_good(&server, &rotated.key).await? && !is_good(&server, &made.key).await?);
    }
    let gone = make_key(&server, "eco_gone", false).await?;
    close(&db, "eco_gone").await?;
    let refusal = rotate(&server, user("eco_gone")?, with_grace(&gone, 0)).await?;
    refused(refusal, Code::FailedPrecondition, "ACCOUNT_CLOSED");
    Ok(())
}
