//! What every command for people says when it cannot do what it is asked to.

use anyhow::Result;
use nexus_testkit::settings::{self, nowhere};

use super::servers::Servers;
use crate::support::{nexus, run, text};

const CHARGE: &str = "0b9c0bd4-55a6-4a2e-8a3f-9d1d4c1a7f00";
const KEY: &str = "eco_api_4kQ0pX6mN2aVbT8sZr1cYd";

/// Each command as it is called, its RPC, and the flag of the server that it calls.
const ALL: [(&[&str], &str, &str); 12] = [
    (&["usage", "show"], "GetCurrentUsage", "--usage-addr"),
    (&["usage", "top"], "ListTopUsers", "--analytics-addr"),
    (&["usage", "endpoints"], "ListEndpointStats", "--analytics-addr"),
    (&["accounts", "list"], "ListUsers", "--analytics-addr"),
    (&["accounts", "create"], "CreateAccount", "--billing-addr"),
    (&["accounts", "plan", "pro"], "ChangePlan", "--billing-addr"),
    (&["keys", "create", "--name", "a"], "CreateApiKey", "--usage-addr"),
    (&["keys", "list"], "ListApiKeys", "--usage-addr"),
    (&["keys", "rotate", KEY], "RotateApiKey", "--usage-addr"),
    (&["keys", "revoke", KEY], "RevokeApiKey", "--usage-addr"),
    (&["charges", "list"], "ListCharges", "--billing-addr"),
    (&["charges", "explain", CHARGE], "ExplainCharge", "--billing-addr"),
];

#[tokio::test]
async fn a_wrong_token_is_refused_and_never_printed() -> Result<()> {
    let servers = Servers::start().await?;
    for wrong in ["a-token-that-nobody-made", "ünprintable\u{7}"] {
        for (command, rpc, _) in ALL {
            let said = servers.refuses(wrong, command).await?;
            assert!(!said.contains(wrong), "{said}");
            if wrong.is_ascii() {
                assert!(said.starts_with(&format!("nexus: {rpc} at http://127.0.0.1:")), "{said}");
                assert!(said.contains("Unauthenticated") && said.contains("--token (NEXUS_TOKEN)"), "{said}");
            } else {
                assert!(said.contains("characters that a header cannot carry"), "{said}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn without_a_token_or_with_a_bad_address_the_variable_is_named() -> Result<()> {
    for (command, _, flag) in ALL {
        let said = run(command).await?;
        assert_eq!((said.status.code(), said.stdout.len()), (Some(1), 0));
        assert!(text(&said.stderr).contains("NEXUS_TOKEN (--token)"), "{}", text(&said.stderr));
        let said =
            nexus().args(command).args([flag, "not an address"]).env("NEXUS_TOKEN", "t").output().await?;
        assert_eq!(said.status.code(), Some(1));
        let variable = flag.trim_start_matches("--").replace('-', "_").to_uppercase();
        let said = text(&said.stderr);
        assert!(said.contains(flag) && said.contains(&variable) && said.contains("not an address"), "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_named_and_a_change_may_be_repeated() -> Result<()> {
    let (token, nobody) = (settings::admin_token()?, nowhere()?.to_string());
    for (command, rpc, flag) in ALL {
        let output = nexus().args(command).args([flag, &nobody]).env("NEXUS_TOKEN", &token).output().await?;
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
        let said = text(&output.stderr);
        assert!(said.starts_with(&format!("nexus: {rpc} at http://{nobody}: Unavailable: ")), "{said}");
        assert!(said.contains("Connection refused") && said.contains(&format!("({flag}, ")), "{said}");
        assert!(!said.contains(&token), "{said}");
        let changes = ["CreateAccount", "ChangePlan", "CreateApiKey", "RotateApiKey"].contains(&rpc);
        assert_eq!(said.contains("the same with --request-id "), changes, "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn who_has_no_account_is_told_whose_is_missing_and_how_another_is_named() -> Result<()> {
    let servers = Servers::start().await?;
    let (admin, mut told) = (settings::admin_token()?, 0);
    for (command, rpc, _) in ALL {
        let named = [command, &["--account", "eco_nobody"]].concat();
        let help = text(&run(&[command, &["--help"]].concat()).await?.stdout);
        if !help.contains("default: that of the user whose token it is") {
            continue;
        }
        told += 1;
        let said = servers.refuses(&admin, command).await?;
        assert!(said.contains(rpc) && said.contains("(ACCOUNT_NOT_FOUND)"), "{said}");
        assert!(said.contains("the token's own, eco_admin. ") && said.contains("--account ID"), "{said}");
        let said = servers.refuses(&admin, &named).await?;
        assert!(said.contains("(ACCOUNT_NOT_FOUND)") && !said.contains("token's own"), "{said}");
    }
    assert_eq!(told, 6);
    Ok(())
}

#[tokio::test]
async fn every_command_helps_by_examples_and_tells_its_exit_codes() -> Result<()> {
    for (command, ..) in ALL {
        let help = run(&[command[0], command[1], "--help"]).await?;
        let said = text(&help.stdout);
        assert_eq!(help.status.code(), Some(0), "{said}");
        assert!(said.contains(&format!("\n  nexus {} {}", command[0], command[1])), "{said}");
        assert!(said.contains("Exit code: 0 "), "{said}");
    }
    Ok(())
}
