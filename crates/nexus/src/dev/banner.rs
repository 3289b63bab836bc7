//! What a person sees when everything is ready.

use super::{database::Database, folder::Folder, ports::Addresses, ready_file::Ready};

/// A new UUID and the time, by the shell.
const NEW_ID: &str = "$(cat /proc/sys/kernel/random/uuid)";
const FIRST_ACCOUNT: &str = "00000000-0000-4000-8000-000000000001";
const NOW: &str = "$(date -u +%FT%TZ)";

/// The banner: where everything is, and lines to copy.
pub(crate) fn text(ready: &Ready, addresses: &Addresses, database: &Database, folder: &Folder) -> String {
    let mut text = String::from("\nNexus metering is ready.\n\n");
    let mut row = |what: &str, value: &str| text.push_str(&format!("  {what:<12} {value}\n"));
    row("pages", &format!("{}/ (sign in with a token below)", ready.gateway_url));
    row("REST", &ready.gateway_url);
    row("usage-svc", &ready.usage_addr);
    row("billing-svc", &ready.billing_addr);
    row("analytics", &ready.analytics_addr);
    row("metrics", &format!("http://{}/metrics (and of each service)", addresses.gateway.operations));
    row("Stripe", &ready.stripe_url);
    match database.cluster() {
        Some(cluster) => {
            row("PostgreSQL", &format!("{} (private, {})", ready.database_url, cluster.version()))
        }
        None => row("PostgreSQL", "the one that DATABASE_URL names"),
    }
    match folder.root() {
        Some(root) => row("data", &root.display().to_string()),
        None => row("data", "thrown away at the end"),
    }
    text.push_str("\nTokens (good for 30 days)\n");
    let t = &ready.tokens;
    for (who, token) in [
        ("admin", &t.admin),
        ("free", &t.free),
        ("pro", &t.pro),
        ("enterprise", &t.enterprise),
        ("service", &t.service),
    ] {
        text.push_str(&format!("  {who:<12} {:<20} {}\n", token.eco_id, token.token));
    }
    text.push_str(&format!("  {:<12} {:<20} {}\n", "scheduler", "", ready.cron_secret));
    let k = &ready.api_keys;
    if k.free.is_some() {
        text.push_str("\nAPI keys\n");
    }
    for (who, key) in [("free", &k.free), ("pro", &k.pro), ("enterprise", &k.enterprise)] {
        if let Some(key) = key {
            text.push_str(&format!("  {who:<12} {:<20} {}\n", key.eco_id, key.key));
        }
    }
    text.push_str("\nTry\n");
    for (what, line) in examples(ready) {
        text.push_str(&format!("# {what}\n{line}\n"));
    }
    text.push_str("\nCtrl-C stops everything.\n");
    text
}

/// Lines that work as they stand, in this order and as often as they are run: the shell fills in an event's
/// id and time. Each with what it is for.
fn examples(ready: &Ready) -> Vec<(&'static str, String)> {
    let t = &ready.tokens;
    let rest = &ready.gateway_url;
    let get = |token: &str, path: &str| format!("curl -H 'Authorization: Bearer {token}' {rest}{path}");
    let rpc = |token: &str, address: &str, body: &str, method: &str| {
        format!("grpcurl -plaintext -H 'authorization: Bearer {token}' -d '{body}' {address} {method}")
    };
    let mut lines = Vec::new();
    if let Some(key) = &ready.api_keys.free {
        let ping = format!("curl -i -H 'Authorization: ApiKey {}' {rest}/api/secure/ping", key.key);
        lines.push((
            "a metered call, its limit in the headers; 429 once the 1,000 of its account are used",
            ping,
        ));
        lines.push(("where an account stands", get(&t.pro.token, "/api/usage/current")));
    } else {
        // The id makes a repeat return the account.
        let body =
            format!(r#"{{"eco_id":"{}","plan":"PLAN_PRO","request_id":"{FIRST_ACCOUNT}"}}"#, t.pro.eco_id);
        let method = "nexus.billing.v1.BillingService/CreateAccount";
        lines.push(("a first account", rpc(&t.service.token, &ready.billing_addr, &body, method)));
    }
    let event = format!(
        r#"{{"event":{{"eco_id":"{}","event_id":"'{NEW_ID}'","event_time":"'{NOW}'","endpoint":"/v1/search","method":"GET","status_code":200}}}}"#,
        t.pro.eco_id
    );
    let record = "nexus.usage.v1.UsageService/RecordUsage";
    lines.push(("record a call", rpc(&t.service.token, &ready.usage_addr, &event, record)));
    lines.push(("the business at a glance", get(&t.admin.token, "/api/admin/analytics/overview")));
    let list = "nexus.analytics.v1.AnalyticsService/ListUsers";
    let users = rpc(&t.admin.token, &ready.analytics_addr, r#"{"plan":"PLAN_PRO"}"#, list);
    lines.push(("who uses the most", users));
    let process = "nexus.billing.v1.BillingService/ProcessOverage";
    let preview = rpc(&t.service.token, &ready.billing_addr, r#"{"dry_run":true}"#, process);
    lines.push(("what overage would be charged, and why", preview));
    let secret = &ready.cron_secret;
    let charge = format!("curl -X POST -H 'Authorization: Bearer {secret}' {rest}/api/cron/process-overage");
    lines.push(("charge it, as a scheduler does", charge));
    lines
}
