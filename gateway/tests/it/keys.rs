//! `/api/keys/*`.

use anyhow::{Context, Result};
use nexus_core::plan::Plan;
use nexus_testkit::settings::{ADMIN, user_token};
use serde_json::{Value, json};

use crate::{
    answer::{Answer, assert_answer},
    suite::Suite,
};

const GENERATE: &str = "/api/keys/generate";
const LIST: &str = "/api/keys/list";
const REVOKE: &str = "/api/keys/revoke";
const ROTATE: &str = "/api/keys/rotate";
const UNKNOWN: &str = "eco_api_0123456789012345678901";

impl Suite {
    /// A new key of an account: its id, and the key as a client sends it.
    async fn generate(&self, eco_id: &str) -> Result<(String, String)> {
        let made = self.post_as(eco_id, GENERATE, &json!({"name": "tests", "scopes": []})).await?;
        Ok((text(&made, "key_id")?, text(&made, "key")?))
    }

    /// Whether a key opens the tracked endpoint; 401 where it does not.
    async fn opens(&self, key: &str) -> Result<bool> {
        let answer = self.get("/api/secure/ping", &format!("ApiKey {key}")).await?;
        if answer.status == 200 {
            return Ok(true);
        }
        assert_eq!((answer.status.as_u16(), &answer.body), (401, &json!({"error": "Invalid API key"})));
        Ok(false)
    }
}

fn text(answer: &Answer, name: &str) -> Result<String> {
    answer.body[name].as_str().map(str::to_owned).with_context(|| format!("{name} in {answer:?}"))
}

#[tokio::test]
async fn a_generated_key_is_shown_once_opens_and_is_listed() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    assert_answer!(suite.get_as("eco_a", LIST).await?);
    let first = json!({"name": "Production", "scopes": ["usage.check", "usage.write"]});
    let made = suite.post_as("eco_a", GENERATE, &first).await?;
    assert_answer!(made);
    let key = text(&made, "key")?;
    assert!(key.starts_with(&format!("{}.", text(&made, "key_id")?)));
    let second = json!({"name": "Büro", "scopes": [], "testMode": true, "other": 1});
    assert_answer!(suite.post_as("eco_a", GENERATE, &second).await?);
    assert!(suite.opens(&key).await?);
    // Nobody waits until its use is noted.
    let list = async |suite: &Suite| suite.get_as("eco_a", LIST).await;
    let listed = suite.until(list, |answer| answer.body["keys"][1]["last_used_at"].is_string()).await?;
    let mut shown = listed.shown();
    let used = shown["body"]["keys"][1]["last_used_at"].take();
    assert!(used.as_str().is_some_and(|at| at.parse::<chrono::DateTime<chrono::Utc>>().is_ok()), "{used}");
    insta::assert_json_snapshot!(shown, {
        ".body.keys[].id" => crate::answer::key_id(),
        ".body.keys[].created_at" => crate::answer::time(),
    });
    assert!(!listed.body.to_string().contains(&key[key.len() - 22..]));
    Ok(())
}

#[tokio::test]
async fn a_list_has_all_keys_up_to_a_thousand_and_then_goes_on() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    let many = "insert into eco_api_keys (key_id, eco_id, secret_sha256, name)
                select 'eco_api_' || lpad(i::text, 22, '0'), 'eco_a', sha256('x'), 'k' || i
                from generate_series(1, 1002) i";
    sqlx::query(many).execute(&suite.db.pool).await?;
    let names = |answer: &Answer| -> Result<Vec<Value>> {
        let keys = answer.body["keys"].as_array().context("keys")?;
        Ok(keys.iter().map(|key| key["name"].clone()).collect())
    };
    let first = suite.get_as("eco_a", LIST).await?;
    let token = text(&first, "next_page_token")?;
    let rest = suite.get_as("eco_a", &format!("{LIST}?page_token={token}")).await?;
    let all = [names(&first)?, names(&rest)?];
    assert_eq!((all[0].len(), all[1].len(), &rest.body["next_page_token"]), (1_000, 2, &Value::Null));
    let wanted: Vec<Value> = (1..=1_002).rev().map(|i| format!("k{i}").into()).collect();
    assert_eq!(all.concat(), wanted);
    assert_answer!(suite.get_as("eco_a", &format!("{LIST}?page_token=x")).await?);
    Ok(())
}

#[tokio::test]
async fn a_revoked_key_opens_nothing_and_stays_listed() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    let (id, key) = suite.generate("eco_a").await?;
    assert!(suite.opens(&key).await?);
    let revoked = suite.post_as("eco_a", REVOKE, &json!({"key_id": id})).await?;
    assert_answer!(revoked);
    assert_eq!(revoked.body["key_id"], id.as_str());
    assert!(!suite.opens(&key).await?);
    let again = suite.post_as("eco_a", REVOKE, &json!({"key_id": id})).await?;
    assert_eq!((again.status.as_u16(), &again.body), (200, &revoked.body));
    assert_eq!(suite.get_as("eco_a", LIST).await?.body["keys"][0]["status"], "revoked");
    assert_answer!(suite.post_as("eco_a", ROTATE, &json!({"key_id": id})).await?);
    Ok(())
}

#[tokio::test]
async fn a_rotated_key_has_a_new_secret_and_the_old_one_for_as_long_as_was_asked() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    let (id, key) = suite.generate("eco_a").await?;
    let rotated = suite.post_as("eco_a", ROTATE, &json!({"key_id": id})).await?;
    assert_answer!(rotated);
    let second = text(&rotated, "key")?;
    let ends: chrono::DateTime<chrono::Utc> = text(&rotated, "previous_expires_at")?.parse()?;
    let minutes = (ends - chrono::Utc::now()).num_minutes();
    assert!((23 * 60..=24 * 60).contains(&minutes), "a day: {minutes} minutes");
    assert!(suite.opens(&key).await? && suite.opens(&second).await?);
    let last = suite.post_as("eco_a", ROTATE, &json!({"key_id": id, "grace_period_ms": 0})).await?;
    assert!(!suite.opens(&key).await? && !suite.opens(&second).await?);
    assert!(suite.opens(&text(&last, "key")?).await?);
    for _ in 0..4 {
        assert_eq!(suite.post_as("eco_a", ROTATE, &json!({"key_id": id})).await?.status, 200);
    }
    assert_answer!(suite.post_as("eco_a", ROTATE, &json!({"key_id": id})).await?);
    Ok(())
}

#[tokio::test]
async fn a_repeat_with_the_same_request_id_has_the_first_answer() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    let request_id = uuid::Uuid::new_v4().to_string();
    let new = json!({"name": "k", "request_id": request_id});
    let made = suite.post_as("eco_a", GENERATE, &new).await?;
    assert_eq!(suite.post_as("eco_a", GENERATE, &new).await?.body, made.body);
    let rotate = json!({"key_id": text(&made, "key_id")?, "request_id": request_id, "grace_period_ms": 0});
    let rotated = suite.post_as("eco_a", ROTATE, &rotate).await?;
    assert_ne!(rotated.body["key"], made.body["key"]);
    assert_eq!(suite.post_as("eco_a", ROTATE, &rotate).await?.body, rotated.body);
    Ok(())
}

#[tokio::test]
async fn another_accounts_key_is_not_there() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    suite.account("eco_b", Plan::Pro).await?;
    let (id, key) = suite.generate("eco_a").await?;
    for route in [REVOKE, ROTATE] {
        let of = async |id: &str| {
            suite
                .post_as("eco_b", route, &json!({"key_id": id, "eco_id": "eco_a", "grace_period_ms": 0}))
                .await
        };
        let (foreign, missing) = (of(&id).await?, of(UNKNOWN).await?);
        assert_answer!(foreign);
        assert_eq!((foreign.status, &foreign.body), (missing.status, &missing.body), "{route}");
        assert_eq!((foreign.status.as_u16(), &foreign.body), (404, &json!({"error": "API key not found"})));
    }
    for path in [LIST.to_owned(), format!("{LIST}?eco_id=eco_a")] {
        assert_eq!(suite.get_as("eco_b", &path).await?.body["keys"], json!([]));
    }
    assert!(suite.opens(&key).await?);
    assert_eq!(suite.get_as(ADMIN, LIST).await?.status, 404, "the admin's own account is not there");
    assert_eq!(suite.post_as(ADMIN, REVOKE, &json!({"key_id": id})).await?.status, 200);
    assert!(!suite.opens(&key).await?);
    Ok(())
}

#[tokio::test]
async fn what_is_malformed_is_named() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    let wrong = json!({"name": 1, "scopes": "x", "testMode": "no", "request_id": {}});
    assert_answer!(suite.post_as("eco_a", GENERATE, &wrong).await?);
    let bad = json!({"scopes": ["ok", "Not OK"], "request_id": "1"});
    assert_answer!(suite.post_as("eco_a", GENERATE, &bad).await?);
    assert_answer!(suite.post_as("eco_a", REVOKE, &json!({})).await?);
    let bad = json!({"key_id": "x", "grace_period_ms": -1, "request_id": "1"});
    assert_answer!(suite.post_as("eco_a", ROTATE, &bad).await?);
    let wrong = json!({"key_id": UNKNOWN, "grace_period_ms": "0"});
    assert_answer!(suite.post_as("eco_a", ROTATE, &wrong).await?);
    for route in [GENERATE, REVOKE, ROTATE] {
        for body in ["", "{", "[]"] {
            let request = suite.request("POST", route)?.bearer_auth(user_token("eco_a")?).body(body);
            let answer = Answer::of(request).await?;
            assert_eq!(
                (answer.status.as_u16(), &answer.body["field"]),
                (400, &"body".into()),
                "{route} {body}"
            );
        }
    }
    assert_eq!(suite.get_as("eco_a", LIST).await?.body["keys"], json!([]));
    Ok(())
}

#[tokio::test]
async fn only_users_of_open_accounts_change_keys() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    let (id, key) = suite.generate("eco_a").await?;
    for route in [GENERATE, REVOKE, ROTATE] {
        // Who is calling is asked before what is sent.
        for authorization in [String::new(), "Bearer x".to_owned(), format!("ApiKey {key}")] {
            let request = suite.request("POST", route)?.header("authorization", &authorization).body("{");
            let answer = Answer::of(request).await?;
            assert_eq!(
                (answer.status.as_u16(), &answer.body),
                (401, &json!({"error": "Unauthorized"})),
                "{route}"
            );
        }
    }
    assert_answer!(suite.post_as("eco_nobody", GENERATE, &json!({"name": "k"})).await?);
    let close = "update eco_identities set status = 'closed', closed_time = now() where eco_id = 'eco_a'";
    sqlx::query(close).execute(&suite.db.pool).await?;
    assert_answer!(suite.post_as("eco_a", GENERATE, &json!({"name": "k"})).await?);
    assert_eq!(suite.post_as("eco_a", ROTATE, &json!({"key_id": id})).await?.status, 403);
    assert_eq!(suite.get_as("eco_a", LIST).await?.body["keys"].as_array().map(Vec::len), Some(1));
    assert_eq!(suite.post_as("eco_a", REVOKE, &json!({"key_id": id})).await?.status, 200);
    Ok(())
}

/// Of all that a route may be sent, with each character escaped.
#[tokio::test]
async fn the_longest_body_that_is_good_is_taken() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    let name = r"\ud83d\ude80".repeat(100);
    let scopes = vec![format!("\"{}\"", r"\u0061".repeat(100)); 32].join(",");
    let id = "018f9d2c-7c1e-7000-8000-000000000001";
    let body = format!(r#"{{"name":"{name}","scopes":[{scopes}],"testMode":false,"request_id":"{id}"}}"#);
    assert!(body.len() > 20_000, "{}", body.len());
    let request = suite.request("POST", "/api/keys/generate")?.bearer_auth(user_token("eco_a")?);
    let made = Answer::of(request.body(body)).await?;
    assert_eq!(
        (made.status.as_u16(), &made.body["name"]),
        (200, &"\u{1f680}".repeat(100).into()),
        "{made:?}"
    );
    Ok(())
}
