use anyhow::Result;
use nexus_core::id::EcoId;
use nexus_kit::auth::{Authenticator, Caller, Scope};
use nexus_testkit::settings::{self, JWT_SECRET, SERVICE_TOKEN_SECRET};

use crate::support::{nexus, text};

async fn token(arguments: &[&str]) -> Result<std::process::Output> {
    let mut command = nexus();
    command.arg("token").args(arguments);
    command.env("JWT_SECRET", JWT_SECRET).env("SERVICE_TOKEN_SECRET", SERVICE_TOKEN_SECRET);
    Ok(command.output().await?)
}

#[tokio::test]
async fn a_users_token_is_printed_alone_and_accepted() -> Result<()> {
    let output = token(&["user", "--eco-id", "eco_ann", "--email", "ann@mail.example"]).await?;
    assert!(output.status.success(), "{}", text(&output.stderr));
    let printed = text(&output.stdout);
    let line = printed.strip_suffix('\n').expect("one line");
    let caller = Authenticator::new(&settings::auth_args())?.authenticate(Some(&format!("Bearer {line}")))?;
    let Caller::User { eco_id, email, admin } = caller else { panic!("not a user: {caller:?}") };
    assert_eq!(
        (eco_id, email.as_deref(), admin),
        (EcoId::parse("eco_ann")?, Some("ann@mail.example"), false)
    );
    Ok(())
}

#[tokio::test]
async fn a_service_token_has_its_scopes() -> Result<()> {
    let output = token(&["service", "--scopes", "usage.write,billing.run", "--name", "cron"]).await?;
    let line = text(&output.stdout);
    let caller =
        Authenticator::new(&settings::auth_args())?.authenticate(Some(&format!("Bearer {}", line.trim())))?;
    let Caller::Service { name, scopes } = caller else { panic!("not a service: {caller:?}") };
    assert_eq!(
        (name.as_str(), scopes.as_slice()),
        ("cron", [Scope::UsageWrite, Scope::BillingRun].as_slice())
    );
    Ok(())
}

#[tokio::test]
async fn bad_values_are_named() -> Result<()> {
    for (arguments, named) in [
        (&["user", "--eco-id", "nobody"][..], "--eco-id"),
        (&["user", "--eco-id", "eco_a", "--ttl", "soon"], "--ttl"),
        (&["user", "--eco-id", "eco_a", "--ttl", "0s"], "--ttl"),
        (&["user", "--eco-id", "eco_a", "--jwt-secret", "short"], "JWT_SECRET"),
        (&["service", "--scopes", "root"], "--scopes"),
        (&["service", "--scopes", "admin", "--service-token-secret", "short"], "SERVICE_TOKEN_SECRET"),
    ] {
        let output = token(arguments).await?;
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains(named), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty());
    }
    Ok(())
}
