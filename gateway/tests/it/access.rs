//! A user sees only their own account, whatever the request says.

use anyhow::Result;
use nexus_core::plan::Plan;
use nexus_testkit::settings::user_token;

use crate::{
    answer::Answer,
    suite::{Suite, event},
};

#[tokio::test]
async fn whatever_a_request_says_it_is_answered_for_the_account_of_its_token() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Free).await?;
    suite.account("eco_b", Plan::Pro).await?;
    suite.record(vec![event("eco_a", "/v1/a", 200, 3), event("eco_b", "/v1/b", 200, 100_077)]).await?;
    let token = user_token("eco_a")?;
    for path in ["/api/usage/current", "/api/usage/history", "/api/usage/endpoints", "/api/usage/overage"] {
        let own = suite.get_as("eco_a", path).await?;
        assert_eq!(own.status, 200, "{path}");
        let foreign = suite.get_as("eco_b", path).await?;
        assert_ne!(own.body, foreign.body, "{path} tells the accounts apart");
        for name in ["eco_id", "ecoId", "account", "user", "id", "eco_id[]"] {
            let answer = suite.get_as("eco_a", &format!("{path}?{name}=eco_b")).await?;
            assert_eq!(answer.body, own.body, "{path} with the parameter {name}");
        }
        for name in ["x-eco-id", "x-user-id", "x-forwarded-user", "eco_id", "grpc-metadata-eco-id"] {
            let asked = suite.request("GET", path)?.bearer_auth(&token).header(name, "eco_b");
            assert_eq!(Answer::of(asked).await?.body, own.body, "{path} with the header {name}");
        }
        let asked =
            suite.request("GET", path)?.bearer_auth(&token).json(&serde_json::json!({"eco_id": "eco_b"}));
        assert_eq!(Answer::of(asked).await?.body, own.body, "{path} with a body");
        let two = suite.request("GET", path)?.bearer_auth(&token).bearer_auth(user_token("eco_b")?);
        assert_eq!(Answer::of(two).await?.status, 401, "{path} with two tokens");
    }
    Ok(())
}

#[tokio::test]
async fn the_business_is_shown_to_admins_alone() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Enterprise).await?;
    for path in ["/api/admin/analytics/overview", "/api/admin/analytics/users?page=0"] {
        for name in ["admin=true", "eco_id=eco_admin"] {
            let separator = if path.contains('?') { '&' } else { '?' };
            let answer = suite.get_as("eco_a", &format!("{path}{separator}{name}")).await?;
            assert_eq!((answer.status.as_u16(), &answer.body["error"]), (403, &"Forbidden".into()), "{path}");
        }
    }
    Ok(())
}
