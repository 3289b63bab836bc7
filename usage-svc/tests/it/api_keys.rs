//! CreateApiKey, VerifyApiKey and RegisterImport.

use anyhow::{Context, Result};
use nexus_core::plan::Plan;
use nexus_kit::auth::Scope;
use nexus_proto::usage::v1::{
    ApiKeyStatus, CreateApiKeyRequest, CreateApiKeyResponse, EventOutcome, RecordUsageRequest,
    RegisterImportRequest, UsageEvent,
};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::support::*;

async fn create(
    server: &Server,
    options: nexus_client::CallOptions,
    request: CreateApiKeyRequest,
) -> Result<Result<CreateApiKeyResponse, Status>> {
    Ok(server.client()?.create_api_key(options.request(request)).await.map(|r| r.into_inner()))
}

fn named(name: &str) -> CreateApiKeyRequest {
    CreateApiKeyRequest { name: name.to_owned(), ..CreateApiKeyRequest::default() }
}

/// Whoever may make keys, of their own account even, fills no table.
#[tokio::test]
async fn an_account_makes_a_thousand_keys_within_a_day_and_no_more() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    account(&db, "eco_b", Plan::Pro).await?;
    let made = "insert into eco_api_keys (key_id, eco_id, secret_sha256, name, created_time)
                select 'eco_api_' || lpad(n::text, 22, '0'), 'eco_a', sha256(n::text::bytea), 'key', now() - interval '23 hours'
                from generate_series(1, 999) as n";
    sqlx::query(made).execute(&db.pool).await?;
    let last = CreateApiKeyRequest { request_id: Uuid::new_v4().to_string(), ..named("the last") };
    create(&server, user("eco_a")?, last.clone()).await??;
    let more = refused(
        create(&server, user("eco_a")?, named("one more")).await?,
        Code::FailedPrecondition,
        "TOO_MANY_API_KEYS",
    );
    assert_eq!(more.message(), "1000 API keys of the account were made within 24 hours: no more for now");
    // Neither a repeat nor another account's is one more.
    create(&server, user("eco_a")?, last).await??;
    create(&server, user("eco_b")?, named("another")).await??;
    sqlx::query("update eco_api_keys set created_time = now() - interval '25 hours' where key_id = 'eco_api_0000000000000000000001'")
        .execute(&db.pool)
        .await?;
    create(&server, user("eco_a")?, named("one more")).await??;
    Ok(())
}

#[tokio::test]
async fn a_key_is_made_verified_and_refused_when_wrong_or_revoked() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let request =
        CreateApiKeyRequest { scopes: vec!["usage.write".to_owned()], test_mode: true, ..named("Büro") };
    let made = create(&server, user("eco_a")?, request).await??;
    let key = made.api_key.context("the answer has the key")?;
    assert_eq!((key.eco_id.as_str(), key.name.as_str(), key.test_mode), ("eco_a", "Büro", true));
    assert_eq!((key.status(), key.last_used_time), (ApiKeyStatus::Active, None));

    let verified = verify(&server, &made.key).await??;
    assert_eq!((verified.eco_id.as_str(), verified.key_id.as_str()), ("eco_a", key.key_id.as_str()));
    assert_eq!((verified.scopes, verified.test_mode), (vec!["usage.write".to_owned()], true));
    let is = async |statement: &'static str| {
        Ok(sqlx::query_scalar::<_, bool>(statement).fetch_one(&db.pool).await?)
    };
    eventually(async || is("select last_used_time is not null from eco_api_keys").await).await?;
    // Within the minute a further use writes nothing.
    let version = "select xmin::text from eco_api_keys";
    let before: String = sqlx::query_scalar(version).fetch_one(&db.pool).await?;
    verify(&server, &made.key).await??;
    assert_eq!(sqlx::query_scalar::<_, String>(version).fetch_one(&db.pool).await?, before);
    sqlx::query("update eco_api_keys set last_used_time = now() - interval '2 minutes'")
        .execute(&db.pool)
        .await?;
    verify(&Server::start(db.args()).await?, &made.key).await??;
    let fresh = "select last_used_time > now() - interval '1 minute' from eco_api_keys";
    eventually(async || is(fresh).await).await?;

    let (id, secret) = made.key.split_once('.').context("id and secret")?;
    let wrong =
        if secret.starts_with('A') { secret.replacen('A', "B", 1) } else { format!("A{}", &secret[1..]) };
    let unknown = format!("eco_api_{}.{secret}", "0".repeat(22));
    for bad in [format!("{id}.{wrong}"), unknown, "nonsense".to_owned()] {
        refused(verify(&server, &bad).await?, Code::Unauthenticated, "INVALID_API_KEY");
    }
    let status = refused(verify(&server, "").await?, Code::InvalidArgument, "INVALID_ARGUMENT");
    assert_eq!(fields(&status), ["key"]);
    sqlx::query("update eco_api_keys set status = 'revoked'").execute(&db.pool).await?;
    is_refused(&server, &made.key).await
}

#[tokio::test]
async fn the_secret_is_nowhere_in_the_database() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let made = create(&server, user("eco_a")?, named("k")).await??;
    let (id, secret) = made.key.split_once('.').context("id and secret")?;
    let row: String = sqlx::query_scalar("select k::text from eco_api_keys k").fetch_one(&db.pool).await?;
    assert!(row.contains(id) && !row.contains(secret));
    let is_hash: bool =
        sqlx::query_scalar("select secret_sha256 = sha256(convert_to($1, 'UTF8')) from eco_api_keys")
            .bind(secret)
            .fetch_one(&db.pool)
            .await?;
    assert!(is_hash);
    Ok(())
}

#[tokio::test]
async fn a_repeated_creation_returns_the_first_answer() -> Result<()> {
    let (db, server) = server().await?;
    let other_server = Server::start(db.args()).await?;
    account(&db, "eco_a", Plan::Pro).await?;
    account(&db, "eco_b", Plan::Pro).await?;
    let request = CreateApiKeyRequest { request_id: Uuid::new_v4().to_string(), ..named("k") };
    let first = create(&server, user("eco_a")?, request.clone()).await??;
    assert_eq!(create(&other_server, user("eco_a")?, request.clone()).await??, first);
    let renamed = CreateApiKeyRequest { name: "l".to_owned(), ..request.clone() };
    let refusal = create(&server, user("eco_a")?, renamed).await?;
    let status = refused(refusal, Code::InvalidArgument, "INVALID_ARGUMENT");
    assert_eq!(fields(&status), ["request_id"]);
    // Another account's request of the same id is another request.
    assert_ne!(create(&server, user("eco_b")?, request).await??.key, first.key);
    // Without an id each is a new key.
    let (a, b) = (
        create(&server, user("eco_a")?, named("k")).await??,
        create(&server, user("eco_a")?, named("k")).await??,
    );
    assert_ne!(a.key, b.key);
    Ok(())
}

#[tokio::test]
async fn keys_are_made_for_accounts_that_may_have_them() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    account(&db, "eco_closed", Plan::Pro).await?;
    close(&db, "eco_closed").await?;
    let of = |eco_id: &str| CreateApiKeyRequest { eco_id: eco_id.to_owned(), ..named("k") };
    let denied = [
        create(&server, user("eco_b")?, of("eco_a")).await?,
        create(&server, service()?, of("eco_a")).await?,
        create(&server, api_key(&make_key(&server, "eco_a", false).await?.key)?, of("eco_a")).await?,
    ];
    for result in denied {
        refused(result, Code::PermissionDenied, "PERMISSION_DENIED");
    }
    create(&server, with_scopes(&[Scope::AccountsWrite])?, of("eco_a")).await??;
    create(&server, user(nexus_testkit::settings::ADMIN)?, of("eco_a")).await??;
    refused(create(&server, user("eco_nobody")?, of("")).await?, Code::NotFound, "ACCOUNT_NOT_FOUND");
    refused(create(&server, user("eco_closed")?, of("")).await?, Code::FailedPrecondition, "ACCOUNT_CLOSED");

    let mut scopes = vec!["Read it".to_owned()];
    scopes.resize(33, "ok".to_owned());
    let bad = CreateApiKeyRequest { scopes, request_id: "1".to_owned(), ..named(&"x".repeat(101)) };
    let status =
        refused(create(&server, user("eco_a")?, bad).await?, Code::InvalidArgument, "INVALID_ARGUMENT");
    assert_eq!(fields(&status), ["name", "scopes", "scopes[0]", "request_id"]);
    Ok(())
}

#[tokio::test]
async fn the_first_shift_of_a_file_is_kept() -> Result<()> {
    let (_db, server) = server().await?;
    let register = async |file_digest: &str, proposed_shift_ms: i64| {
        let request = RegisterImportRequest { file_digest: file_digest.to_owned(), proposed_shift_ms };
        anyhow::Ok(server.client()?.register_import(service()?.request(request)).await.map(|r| {
            let answer = r.into_inner();
            (answer.shift_ms, answer.already_registered)
        }))
    };
    let digest = "0a".repeat(32);
    assert_eq!(register(&digest, 5).await??, (5, false));
    assert_eq!(register(&digest, 7).await??, (5, true));
    let status = refused(register("0A", 5).await?, Code::InvalidArgument, "INVALID_ARGUMENT");
    assert_eq!(fields(&status), ["file_digest"]);
    Ok(())
}

/// Or a customer could book live calls on a key in test mode, which is neither limited nor billed.
#[tokio::test]
async fn a_calling_key_records_for_itself_and_for_no_other_key_of_its_account() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let (live, test) = (make_key(&server, "eco_a", false).await?, make_key(&server, "eco_a", true).await?);
    for (caller, named) in [(&live, &test), (&test, &live)] {
        let event = UsageEvent { api_key_id: key_id(named), ..event("eco_a") };
        let request = api_key(&caller.key)?.request(RecordUsageRequest { event: Some(event) });
        let refused = server.client()?.record_usage(request).await.map(|_| ()).map_err(|s| s.code());
        assert_eq!(refused, Err(Code::InvalidArgument));
    }
    let event = UsageEvent { api_key_id: key_id(&live), ..event("eco_a") };
    let request = api_key(&live.key)?.request(RecordUsageRequest { event: Some(event) });
    assert_eq!(server.client()?.record_usage(request).await?.into_inner().outcome(), EventOutcome::Accepted);
    Ok(())
}
