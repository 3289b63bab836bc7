//! What is around all answers: tags, compression, pages of other origins, bounds of a request's head.

use anyhow::{Context, Result};
use nexus_core::plan::Plan;
use nexus_testkit::settings::{ADMIN, user_token};
use reqwest::Response;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    answer::{Answer, assert_answer},
    suite::{Suite, event},
};

const CURRENT: &str = "/api/usage/current";
const LONG: &str = "/openapi.json";
const APP: &str = "https://app.example.com";

impl Suite {
    async fn fetch(&self, path: &str, headers: &[(&str, &str)]) -> Result<Response> {
        let request = self.request("GET", path)?.bearer_auth(user_token("eco_a")?);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        Ok(request.send().await?)
    }
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

#[tokio::test]
async fn who_has_a_body_is_told_so_until_it_changes() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    let first = suite.fetch(CURRENT, &[]).await?;
    let tag = header(&first, "etag").context("a tag")?.to_owned();
    assert_eq!(header(&first, "vary"), Some("authorization, accept"));
    let kept = suite.fetch(CURRENT, &[("if-none-match", &tag)]).await?;
    assert_eq!(kept.status(), 304);
    assert_eq!(
        (header(&kept, "etag"), header(&kept, "cache-control")),
        (Some(tag.as_str()), Some("private, no-cache"))
    );
    assert_eq!((header(&kept, "content-type"), header(&kept, "vary")), (None, Some("authorization, accept")));
    assert_eq!(kept.bytes().await?.len(), 0);
    let other = suite.fetch(CURRENT, &[("if-none-match", "\"x\", W/\"y\"")]).await?;
    assert_eq!(other.status(), 200);
    suite.record(vec![event("eco_a", "/v1/x", 200, 1)]).await?;
    let changed = suite.fetch(CURRENT, &[("if-none-match", &tag)]).await?;
    assert_eq!(changed.status(), 200);
    assert_ne!(header(&changed, "etag"), Some(tag.as_str()));
    let head = suite.request("HEAD", CURRENT)?.bearer_auth(user_token("eco_a")?).send().await?;
    assert_eq!(header(&head, "etag"), header(&changed, "etag"));
    Ok(())
}

/// The overview and a forecast say when they were made, which is another time with each answer.
#[tokio::test]
async fn a_body_that_says_when_it_was_made_is_known_again_until_it_says_something_else() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    for (who, path) in [(ADMIN, "/api/admin/analytics/overview"), ("eco_a", "/api/usage/forecast")] {
        let ask = async |known: &str| {
            let request = suite.request("GET", path)?.bearer_auth(user_token(who)?);
            Ok::<_, anyhow::Error>(request.header("if-none-match", known).send().await?)
        };
        let first = ask("").await?;
        let tag = header(&first, "etag").context("a tag")?.to_owned();
        assert!(tag.starts_with("W/\""), "not the same byte for byte: {tag}");
        let first: serde_json::Value = first.json().await?;
        let again: serde_json::Value = ask("").await?.json().await?;
        assert_ne!(first["timestamp"], again["timestamp"], "{path}");
        let kept = ask(&tag).await?;
        assert_eq!((kept.status().as_u16(), header(&kept, "etag")), (304, Some(tag.as_str())), "{path}");
        suite.record(vec![event("eco_a", "/v1/x", 200, 1)]).await?;
        let changed = async {
            while ask(&tag).await?.status() != 200 {}
            anyhow::Ok(())
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), changed).await.context(path)??;
    }
    Ok(())
}

#[tokio::test]
async fn errors_writes_and_metered_answers_have_no_tag() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    let key = suite.api_key("eco_a", false).await?;
    let cap = suite.put_as("eco_a", r#"{"spend_cap_usd": 1}"#).await?;
    let answers = [
        suite.get_as("eco_nobody", CURRENT).await?,
        cap,
        suite.get("/api/secure/ping", &key).await?,
        suite.get("/healthz", "").await?,
    ];
    for answer in answers {
        assert!(
            answer.header("etag").is_none() && answer.header("cache-control") == Some("no-store"),
            "{answer:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn long_answers_are_compressed_for_who_takes_it_and_have_a_tag_of_their_own() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    let plain = suite.fetch(LONG, &[]).await?;
    assert_eq!(header(&plain, "content-encoding"), None);
    let length = plain.bytes().await?.len();
    for encoding in ["gzip", "zstd"] {
        let packed = suite.fetch(LONG, &[("accept-encoding", encoding)]).await?;
        assert_eq!(header(&packed, "content-encoding"), Some(encoding));
        assert!(header(&packed, "vary").is_some_and(|vary| vary.contains("accept-encoding")), "{packed:?}");
        let packed = packed.bytes().await?.len();
        assert!(packed < length / 2, "{packed} of {length}");
    }
    let short = suite.fetch(CURRENT, &[("accept-encoding", "gzip")]).await?;
    assert_eq!(header(&short, "content-encoding"), None);

    for number in 0..20 {
        suite.record(vec![event("eco_a", &format!("/v1/endpoint-{number}"), 200, 1)]).await?;
    }
    let path = "/api/usage/endpoints";
    let plain = suite.fetch(path, &[]).await?;
    let packed = suite.fetch(path, &[("accept-encoding", "gzip")]).await?;
    let (tag, packed_tag) =
        (header(&plain, "etag").context("a tag")?, header(&packed, "etag").context("a tag")?);
    assert_eq!(packed_tag, format!("{}-gzip\"", tag.trim_end_matches('"')));
    for held in [tag, packed_tag] {
        let headers = [("accept-encoding", "gzip"), ("if-none-match", held)];
        let kept = suite.fetch(path, &headers).await?;
        assert_eq!((kept.status().as_u16(), header(&kept, "etag")), (304, Some(held)));
    }
    Ok(())
}

/// Whoever asks for it has nothing done for it.
#[tokio::test]
async fn what_is_the_same_for_everybody_is_packed_once_or_not_at_all() -> Result<()> {
    let suite = Suite::start().await?;
    for path in [LONG, "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"] {
        let forms =
            [("gzip, zstd", Some("zstd")), ("gzip;q=0.5", Some("gzip")), ("x-gzip", None), ("", None)];
        for (accept, told) in forms {
            let answer = suite.fetch(path, &[("accept-encoding", accept)]).await?;
            assert_eq!(header(&answer, "content-encoding"), told, "{path} {accept}");
            assert_eq!(header(&answer, "vary"), Some("accept-encoding"), "{path} {accept}");
            assert!(header(&answer, "content-length").is_some(), "{path} {accept}: {answer:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn pages_of_other_origins_may_call_where_they_are_named() -> Result<()> {
    let suite =
        Suite::start_with(|config| config.cors_allowed_origins = APP.parse().expect("an origin")).await?;
    suite.account("eco_a", Plan::Pro).await?;
    let asked = async |origin: &str| {
        let request = suite.request("OPTIONS", CURRENT)?.header("origin", origin);
        let request = request.header("access-control-request-method", "GET");
        anyhow::Ok(request.header("access-control-request-headers", "authorization").send().await?)
    };
    let allowed = asked(APP).await?;
    assert_eq!(
        (allowed.status().as_u16(), header(&allowed, "access-control-allow-origin")),
        (200, Some(APP))
    );
    assert!(
        header(&allowed, "access-control-allow-headers").is_some_and(|names| names.contains("authorization"))
    );
    assert_eq!(header(&allowed, "access-control-allow-credentials"), None);
    assert_eq!(header(&allowed, "x-content-type-options"), Some("nosniff"));
    assert!(header(&allowed, "x-request-id").is_some_and(|id| !id.is_empty()));
    let answered = suite.fetch(CURRENT, &[("origin", APP), ("x-request-id", "mine")]).await?;
    assert_eq!(header(&answered, "x-request-id"), Some("mine"));
    for other in
        ["https://evil.example", "https://app.example.com.evil.example", "null", "http://app.example.com"]
    {
        assert_eq!(header(&asked(other).await?, "access-control-allow-origin"), None, "{other}");
    }
    // Errors can be read, too.
    let answer = suite.fetch("/api/usage/history?days=0", &[("origin", APP)]).await?;
    assert_eq!((answer.status().as_u16(), header(&answer, "access-control-allow-origin")), (400, Some(APP)));
    let exposed = header(&answer, "access-control-expose-headers").unwrap_or_default();
    for name in ["etag", "retry-after", "x-ratelimit-remaining", "x-request-id", "grpc-status"] {
        assert!(exposed.contains(name), "{name} in {exposed}");
    }
    assert!(header(&answer, "vary").is_some_and(|vary| vary.contains("origin")));
    Ok(())
}

#[tokio::test]
async fn unless_the_settings_name_them_no_other_origin_may_call() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    let answer = suite.fetch(CURRENT, &[("origin", APP)]).await?;
    assert_eq!(answer.status(), 200);
    assert!(!answer.headers().keys().any(|name| name.as_str().starts_with("access-control-")), "{answer:?}");
    let preflight = suite.request("OPTIONS", CURRENT)?.header("origin", APP);
    let preflight = Answer::of(preflight.header("access-control-request-method", "GET")).await?;
    assert_eq!(preflight.status, 405);
    Ok(())
}

#[tokio::test]
async fn who_comes_over_tls_is_told_to_keep_to_it() -> Result<()> {
    for (public_url, told) in [("https://metering.example.com", Some("max-age=31536000")), ("http://x", None)]
    {
        let suite = Suite::start_with(|config| config.pages.public_url = public_url.parse().ok()).await?;
        for path in ["/sign-in", "/healthz", "/nothing", "/docs"] {
            let answer = suite.fetch(path, &[]).await?;
            assert_eq!(header(&answer, "strict-transport-security"), told, "{public_url} {path}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_head_that_is_too_large_is_told_what_it_may_have() -> Result<()> {
    let suite = Suite::start().await?;
    let long = "y".repeat(33 * 1024);
    assert_answer!(Answer::of(suite.request("GET", "/healthz")?.header("x-long", long)).await?);
    let many = (0..101).fold(suite.request("GET", "/healthz")?, |r, n| r.header(format!("x-{n}"), "y"));
    assert_eq!(Answer::of(many).await?.status, 431);
    let long = format!("/healthz?{}", "y".repeat(8 * 1024));
    assert_answer!(Answer::of(suite.request("GET", &long)?).await?);
    // Beyond twice of it nothing is read.
    let mut connection = TcpStream::connect(suite.gateway.trim_start_matches("http://")).await?;
    let head = format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "y".repeat(128 * 1024));
    connection.write_all(head.as_bytes()).await?;
    let mut answer = [0; 12];
    connection.read_exact(&mut answer).await?;
    assert_eq!(&answer, b"HTTP/1.1 431");
    Ok(())
}
