//! Changes of API keys are in the audit log with whoever made them; that a key was used is not.

use anyhow::{Result, ensure};
use nexus_core::plan::Plan;
use nexus_proto::usage::v1::{RevokeApiKeyRequest, RotateApiKeyRequest};
use nexus_testkit::settings;
use serde_json::{Value, json};

use crate::support::*;

type Entry = (String, String, String, Option<Value>, Option<Value>);

#[tokio::test]
async fn changes_of_keys_are_kept_with_whoever_made_them_and_no_secret() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let made = make_key(&server, "eco_a", false).await?;
    verify(&server, &made.key).await??;
    let rotate = RotateApiKeyRequest { key_id: key_id(&made), ..RotateApiKeyRequest::default() };
    server.client()?.rotate_api_key(user("eco_a")?.request(rotate)).await?;
    let revoke = RevokeApiKeyRequest { key_id: key_id(&made) };
    server.client()?.revoke_api_key(user(settings::ADMIN)?.request(revoke)).await?;

    let entries: Vec<Entry> = sqlx::query_as(
        "select actor, subject, action, before, after from eco_audit_log
         where eco_id = 'eco_a' and subject like 'api_key%' and subject_id = $1 order by audit_id",
    )
    .bind(key_id(&made))
    .fetch_all(&db.pool)
    .await?;
    let told: Vec<_> = entries
        .iter()
        .map(|(actor, subject, action, ..)| (actor.as_str(), subject.as_str(), action.as_str()))
        .collect();
    let admin = format!("user:{}", settings::ADMIN);
    assert_eq!(
        told,
        [
            ("user:eco_a", "api_key", "created"),
            ("user:eco_a", "api_key_rotation", "created"),
            (admin.as_str(), "api_key", "changed"),
        ]
    );
    assert_eq!(entries[2].3, Some(json!({ "status": "active" })));
    assert_eq!(entries[2].4, Some(json!({ "status": "revoked" })));
    ensure!(!format!("{entries:?}").contains("sha256"), "{entries:?}");
    Ok(())
}
