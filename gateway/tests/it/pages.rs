//! The pages as they are sent: who sees them, what forms are taken, what headers they have. What a browser makes of them
//! is tested in `browser`.

use anyhow::{Context, Result};
use futures::StreamExt;
use nexus_core::{id::EcoId, plan::Plan};
use nexus_testkit::settings::{ADMIN, JWT_SECRET, user_token};
use serde_json::Value;

use crate::{
    suite::{Suite, event},
    visitor::{Seen, Visitor},
};

const OWN: [&str; 5] = [
    "/dashboard",
    "/dashboard/usage",
    "/dashboard/keys",
    "/dashboard/billing",
    "/dashboard/billing/plan?plan=pro",
];
const ADMINS: [&str; 4] = ["/admin", "/admin/users", "/admin/billing", "/admin/accounts/eco_a"];
const FORMS: [&str; 5] = [
    "/sign-out",
    "/dashboard/spend-cap",
    "/dashboard/keys",
    "/dashboard/keys/eco_api_0123456789012345678901/revoke",
    "/dashboard/billing/plan",
];
const ADMIN_FORMS: [&str; 4] = [
    "/admin/billing/dry-run",
    "/admin/billing/compare",
    "/admin/accounts/eco_a/plan",
    "/admin/accounts/eco_a/spend-cap",
];

async fn suite() -> Result<Suite> {
    let suite = Suite::start().await?;
    for (eco_id, plan) in [("eco_a", Plan::Free), ("eco_b", Plan::Pro), (ADMIN, Plan::Enterprise)] {
        suite.account(eco_id, plan).await?;
    }
    Ok(suite)
}

#[tokio::test]
async fn a_token_is_pasted_and_leads_back_to_the_page_that_was_asked_for() -> Result<()> {
    let suite = suite().await?;
    let mut visitor = Visitor::new(&suite)?;
    assert_eq!(visitor.get("/").await?.header("location"), "/sign-in");
    for (eco_id, home) in [("eco_a", "/dashboard"), (ADMIN, "/admin")] {
        assert_eq!(Visitor::of(&suite, eco_id)?.get("/").await?.header("location"), home);
    }
    let led = visitor.get("/dashboard/keys?page_token=x").await?;
    assert_eq!(
        (led.status.as_u16(), led.header("location")),
        (303, "/sign-in?next=%2Fdashboard%2Fkeys%3Fpage_token%3Dx")
    );
    let form = visitor.get("/sign-in?next=/dashboard/keys").await?;
    let cookie = form.header("set-cookie").to_owned();
    assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{cookie}");
    visitor.cookie = cookie.split(';').next().context("a cookie")?.to_owned();
    let (csrf, next) = (form.field("csrf")?, form.field("next")?);
    let token = user_token("eco_a")?;
    let sign_in = async |token: &str, next: &str| {
        visitor.post("/sign-in", &[("csrf", &csrf), ("next", next), ("token", token)]).await
    };
    for (bad, says) in [
        ("", "Paste a token"),
        ("x.y.z", "is not accepted"),
        (&nexus_testkit::settings::service_token(&[])?, "a service"),
        (&"x".repeat(3_901), "too long"),
    ] {
        let refused = sign_in(bad, &next).await?;
        assert_eq!(refused.status, 400);
        assert!(refused.says(says) && refused.header("set-cookie").is_empty(), "{}", refused.html);
    }
    for (next, led_to) in
        [(next.as_str(), "/dashboard/keys"), ("https://evil.example", "/"), ("//evil.example", "/")]
    {
        let signed_in = sign_in(&format!(" Bearer {token}\n"), next).await?;
        assert_eq!((signed_in.status.as_u16(), signed_in.header("location")), (303, led_to));
        let cookie = signed_in.header("set-cookie");
        assert!(
            cookie.starts_with(&format!("nexus_session={token}; Path=/; HttpOnly; SameSite=Lax; Max-Age=")),
            "{cookie}"
        );
    }
    visitor.cookie = format!("nexus_session={token}");
    let page = visitor.get("/dashboard").await?;
    assert!(page.says("eco_a"), "{}", page.html);
    let out = visitor.post("/sign-out", &[("csrf", &page.field("csrf")?)]).await?;
    assert_eq!(out.header("location"), "/sign-in?done=signed-out");
    assert!(
        out.header("set-cookie").starts_with("nexus_session=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0")
    );
    Ok(())
}

#[tokio::test]
async fn cookies_are_for_tls_alone_where_browsers_come_by_tls() -> Result<()> {
    let suite = Suite::start_with(|config| {
        config.pages.public_url = "https://metering.example.com".parse().ok();
    })
    .await?;
    let form = Visitor::new(&suite)?.get("/sign-in").await?;
    let cookie = form.header("set-cookie");
    assert!(
        cookie.starts_with("__Host-nexus_visit=") && cookie.ends_with("; SameSite=Lax; Secure"),
        "{cookie}"
    );
    Ok(())
}

#[tokio::test]
async fn nobody_sees_a_page_without_a_session_or_with_a_bad_one() -> Result<()> {
    let suite = suite().await?;
    let expired = nexus_kit::auth::user_token(
        &JWT_SECRET.into(),
        "nexus",
        None,
        &EcoId::parse("eco_a")?,
        None,
        chrono::Utc::now() - chrono::TimeDelta::seconds(1),
    )?;
    let service = nexus_testkit::settings::service_token(&nexus_kit::auth::Scope::ALL)?;
    let mut visitor = Visitor::new(&suite)?;
    for token in ["", "x", &expired, &service] {
        visitor.cookie = format!("nexus_session={token}");
        for path in OWN.iter().chain(&ADMINS).chain(&["/dashboard/live", "/admin/live"]) {
            let led = visitor.get(path).await?;
            assert_eq!(led.status, 303, "{path}");
            assert!(led.header("location").starts_with("/sign-in"), "{path}");
        }
        for path in FORMS.iter().chain(&ADMIN_FORMS) {
            let led = visitor.post(path, &[]).await?;
            assert_eq!((led.status.as_u16(), led.header("location")), (303, "/sign-in"), "{path}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn only_admins_see_the_business() -> Result<()> {
    let suite = suite().await?;
    let (user, admin) = (Visitor::of(&suite, "eco_b")?, Visitor::of(&suite, ADMIN)?);
    let csrf = user.get("/dashboard").await?.field("csrf")?;
    for path in ADMINS.iter().chain(&["/admin/live", "/admin/billing/runs/x", "/admin/billing/runs/x/live"]) {
        let refused = user.get(path).await?;
        assert_eq!(refused.status, 403, "{path}");
        assert!(refused.says("Only administrators"), "{path}: {}", refused.html);
    }
    for path in ADMIN_FORMS {
        let fields = [("csrf", csrf.as_str()), ("plan", "enterprise"), ("spend_cap", "1")];
        assert_eq!(user.post(path, &fields).await?.status, 403, "{path}");
    }
    for path in ADMINS {
        let page = admin.get(path).await?;
        assert_eq!(page.status, 200, "{path}: {}", page.html);
    }
    let page = user.get("/dashboard").await?;
    assert!(!page.says("/admin"), "{}", page.html);
    Ok(())
}

#[tokio::test]
async fn a_form_is_taken_from_our_own_pages_of_the_same_session_alone() -> Result<()> {
    let suite = suite().await?;
    let (user, other, admin) =
        (Visitor::of(&suite, "eco_a")?, Visitor::of(&suite, "eco_b")?, Visitor::of(&suite, ADMIN)?);
    let csrf = |page: Seen| page.field("csrf");
    let (own, others, admins) = (
        csrf(user.get("/dashboard").await?)?,
        csrf(other.get("/dashboard").await?)?,
        csrf(admin.get("/admin/billing").await?)?,
    );
    let ours = [("sec-fetch-site", "same-origin")];
    let foreign = [("sec-fetch-site", "cross-site")];
    let elsewhere = [("origin", "https://evil.example")];
    for (path, visitor, own) in FORMS
        .iter()
        .map(|path| (path, &user, &own))
        .chain(ADMIN_FORMS.iter().map(|path| (path, &admin, &admins)))
    {
        let cases: [(&[(&str, &str)], &str); 6] =
            [(&ours, ""), (&ours, &others), (&ours, "0000"), (&foreign, own), (&elsewhere, own), (&[], own)];
        for (headers, csrf) in cases {
            let fields =
                [("csrf", csrf), ("name", "stolen"), ("spend_cap", "1"), ("action", "set"), ("plan", "free")];
            let refused = visitor.post_from(path, &fields, headers).await?;
            assert_eq!(refused.status, 400, "{path} {headers:?} {csrf}: {}", refused.html);
            assert!(refused.says("is not of this session"), "{path}: {}", refused.html);
        }
    }
    // Not even JSON with the session's own words.
    let json = user.request("POST", "/dashboard/keys")?.header("sec-fetch-site", "same-origin");
    assert_eq!(json.json(&serde_json::json!({"csrf": own, "name": "stolen"})).send().await?.status(), 400);
    assert_eq!(suite.get_as("eco_a", "/api/keys/list").await?.body["keys"], serde_json::json!([]));
    assert_eq!(suite.get_as("eco_a", "/api/usage/spend-cap").await?.body["spend_cap_usd"], Value::Null);
    let made = user.post("/dashboard/keys", &[("csrf", &own), ("name", "mine")]).await?;
    assert_eq!(made.status, 200, "{}", made.html);
    Ok(())
}

#[tokio::test]
async fn a_page_has_nothing_inline_and_allows_nothing_from_elsewhere() -> Result<()> {
    let suite = suite().await?;
    suite.record(vec![event("eco_b", "/v1/<b>&\"", 200, 105_000), event(ADMIN, "/v1/x", 500, 7)]).await?;
    let admin = Visitor::of(&suite, ADMIN)?;
    let user = Visitor::of(&suite, "eco_b")?;
    let nobody = Visitor::new(&suite)?;
    let mut seen = vec![nobody.get("/sign-in").await?, nobody.get("/nowhere").await?];
    for path in OWN.iter().chain(&ADMINS) {
        seen.push(admin.get(path).await?);
    }
    seen.push(admin.get("/admin/accounts/eco_b").await?);
    let usage = user.get("/dashboard").await?;
    for page in seen.iter().chain([&usage]) {
        let policy = page.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(page.header("cache-control"), "no-store");
        for inline in
            [" style=", "<style", "<script>", " onclick=", " onload=", "javascript:", "http://", "https://"]
        {
            let html = page.html.replace("http://www.w3.org/2000/svg", "");
            assert!(!html.contains(inline), "{inline}: {html}");
        }
        assert!(page.says("<html lang=\"en\">") && page.html.matches("<h1").count() == 1, "{}", page.html);
    }
    assert!(usage.says("105,000") && usage.says("/v1/&lt;b&gt;&amp;&quot;"), "{}", usage.html);
    Ok(())
}

#[tokio::test]
async fn files_are_kept_for_ever_under_the_hash_of_what_is_in_them() -> Result<()> {
    let suite = suite().await?;
    let visitor = Visitor::new(&suite)?;
    let page = visitor.get("/sign-in").await?;
    let mut files = page.html.split('"').filter(|text| text.starts_with("/assets/")).collect::<Vec<_>>();
    files.sort_unstable_by_key(|file| file.rsplit('.').next());
    assert_eq!(files.len(), 3, "{files:?}");
    for (file, kind) in
        files.iter().zip(["text/css; charset=utf-8", "text/javascript; charset=utf-8", "image/svg+xml"])
    {
        let served = visitor.get(file).await?;
        assert_eq!((served.status.as_u16(), served.header("content-type")), (200, kind), "{file}");
        assert_eq!(served.header("cache-control"), "public, max-age=31536000, immutable");
    }
    assert_eq!(visitor.get("/assets/pages-0000000000000000.css").await?.status, 404);
    Ok(())
}

#[tokio::test]
async fn what_goes_wrong_is_a_page_for_people_and_json_for_programs() -> Result<()> {
    let mut suite = suite().await?;
    let visitor = Visitor::of(&suite, "eco_a")?;
    for (path, status, says) in [
        ("/nowhere", 404, "There is no page at this address"),
        ("/dashboard/keys/eco_api_0123456789012345678901", 404, "does not exist, or is not yours"),
        ("/dashboard/billing/charges/x", 404, "does not exist, or is not yours"),
        ("/dashboard?days=x", 400, "days must be a whole number"),
        ("/dashboard/keys/%FF", 400, "key id must be UTF-8 text"),
        ("/dashboard/billing/charges/%FF", 400, "charge id must be UTF-8 text"),
        ("/assets/%FF", 400, "file must be UTF-8 text"),
        ("/dashboard/billing/plan?plan=gold", 400, "plan must be one of"),
    ] {
        let page = visitor.get(path).await?;
        assert_eq!(page.status.as_u16(), status, "{path}");
        assert!(
            page.header("content-type").starts_with("text/html") && page.says(says),
            "{path}: {}",
            page.html
        );
    }
    let admin = Visitor::of(&suite, ADMIN)?;
    for (path, says) in [
        ("/admin/accounts/%FF", "eco id must be UTF-8 text"),
        ("/admin/billing/runs/%FF", "run id must be UTF-8 text"),
    ] {
        let page = admin.get(path).await?;
        assert!(page.status == 400 && page.says(says), "{path}: {} {}", page.status, page.html);
    }
    let json = visitor.get("/api/nowhere").await?;
    assert_eq!(
        (json.header("content-type"), json.html.as_str()),
        ("application/json", r#"{"error":"Not found"}"#)
    );
    drop((visitor, admin));
    suite.stop_usage().await?;
    let away = Visitor::of(&suite, "eco_a")?.get("/dashboard").await?;
    assert_eq!((away.status.as_u16(), away.header("retry-after").is_empty()), (503, false), "{}", away.html);
    assert!(away.says("Not available right now"), "{}", away.html);
    Ok(())
}

#[tokio::test]
async fn nobody_reaches_another_accounts_key_or_charge_by_a_page() -> Result<()> {
    let suite = suite().await?;
    let (user, other) = (Visitor::of(&suite, "eco_a")?, Visitor::of(&suite, "eco_b")?);
    let key = suite.api_key("eco_b", false).await?;
    let key_id = key.strip_prefix("ApiKey ").and_then(|key| key.split('.').next()).context("a key")?;
    suite.stripe_customer("eco_b").await?;
    suite.record(vec![event("eco_b", "/v1/x", 200, 105_000)]).await?;
    suite.until(async |suite| suite.run_overage().await, |run| run.body["results"]["charged"] == 1).await?;
    let charge: String = sqlx::query_scalar("select charge_id::text from eco_overage_charges")
        .fetch_one(&suite.db.pool)
        .await?;
    let charge = format!("/dashboard/billing/charges/{charge}");
    assert!(other.get(&charge).await?.says("Why $5.00"));
    assert_eq!(user.get(&charge).await?.status, 404);
    let path = format!("/dashboard/keys/{key_id}");
    assert_eq!(other.get(&path).await?.status, 200);
    assert_eq!(user.get(&path).await?.status, 404);
    let csrf = user.get("/dashboard").await?.field("csrf")?;
    for (what, fields) in [("revoke", vec![]), ("rotate", vec![("grace_period_ms", "0")])] {
        let fields = [vec![("csrf", csrf.as_str())], fields].concat();
        assert_eq!(user.post(&format!("{path}/{what}"), &fields).await?.status, 404, "{what}");
    }
    assert_eq!(suite.get("/api/secure/ping", &key).await?.status, 200);
    Ok(())
}

async fn next_event(
    events: &mut (impl StreamExt<Item = reqwest::Result<axum::body::Bytes>> + Unpin),
) -> Result<Option<Value>> {
    let mut text = String::new();
    while let Some(chunk) = events.next().await {
        text.push_str(std::str::from_utf8(&chunk?)?);
        if let Some((event, _)) = text.split_once("\n\n") {
            let data = event.lines().find_map(|line| line.strip_prefix("data: "));
            match data {
                Some(data) => return Ok(Some(serde_json::from_str(data)?)),
                None => text.clear(),
            }
        }
    }
    Ok(None)
}

#[tokio::test]
async fn figures_follow_what_is_recorded_until_the_session_ends() -> Result<()> {
    let suite = suite().await?;
    let expires = chrono::Utc::now() + chrono::TimeDelta::seconds(12);
    let token = nexus_kit::auth::user_token(
        &JWT_SECRET.into(),
        "nexus",
        None,
        &EcoId::parse("eco_b")?,
        None,
        expires,
    )?;
    let mut visitor = Visitor::new(&suite)?;
    visitor.cookie = format!("nexus_session={token}");
    let response = visitor.request("GET", "/dashboard/live")?.send().await?;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut events = Box::pin(response.bytes_stream());
    let first = next_event(&mut events).await?.context("a first event")?;
    assert_eq!(first["texts"]["calls"], "0");
    suite.record(vec![event("eco_b", "/v1/x", 200, 105_000)]).await?;
    let second = next_event(&mut events).await?.context("an event of the change")?;
    assert_eq!(
        (&second["texts"]["calls"], &second["texts"]["overage"]),
        (&"105,000".into(), &"$5.00".into())
    );
    assert_eq!(next_event(&mut events).await?, None, "nothing has changed since, and the session has ended");
    assert!(chrono::Utc::now() >= expires - chrono::TimeDelta::seconds(1));
    Ok(())
}

#[tokio::test]
async fn an_account_has_so_many_streams_and_a_drain_waits_for_none() -> Result<()> {
    let suite = suite().await?;
    let visitor = Visitor::of(&suite, "eco_a")?;
    let mut open = Vec::new();
    for _ in 0..8 {
        let response = visitor.request("GET", "/dashboard/live")?.send().await?;
        assert_eq!(response.status(), 200);
        open.push(response);
    }
    assert_eq!(visitor.get("/dashboard/live").await?.status, 503);
    assert_eq!(Visitor::of(&suite, "eco_b")?.request("GET", "/dashboard/live")?.send().await?.status(), 200);
    let began = std::time::Instant::now();
    suite.drain_gateway().await?;
    assert!(began.elapsed() < std::time::Duration::from_secs(8), "the grace is 10 s");
    Ok(())
}
