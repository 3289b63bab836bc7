//! `/docs`: a page that shows the document and tries its routes. All of it is in this program: nothing is fetched from
//! another host, and the policy allows none.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use axum::{
    Router,
    http::{
        HeaderMap,
        header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use utoipa_swagger_ui::{Config, serve};

use crate::{App, error::Error, fixed::Fixed, pages::session::Anybody, query::Named};

/// Scripts, styles and calls of this server; images that the style has in itself.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const HOUR: &str = "public, max-age=3600";

const PAGE: &str = r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Nexus metering: the API</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="icon" href="/docs/favicon-32x32.png">
</head>
<body>
<noscript>The API is described in <a href="/openapi.json">openapi.json</a>. To show it, this page needs JavaScript.</noscript>
<div id="docs"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"#;
const START: &str = r##"SwaggerUIBundle({ url: "/openapi.json", dom_id: "#docs", deepLinking: true, validatorUrl: null });
"##;
/// What the page needs of the library.
const FILES: [&str; 3] = ["swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png"];

/// These files by their names.
static LIBRARY: LazyLock<HashMap<&str, Fixed>> = LazyLock::new(|| {
    let config = Arc::new(Config::from("/openapi.json"));
    let file = |name| {
        let file = serve(name, config.clone()).ok().flatten().expect("a file that is built in");
        (name, Fixed::new(&file.content_type, file.bytes.into_owned()))
    };
    FILES.into_iter().map(file).collect()
});

/// The page and its files.
pub(super) fn router() -> Router<App> {
    Router::new().route("/docs", get(page)).route("/docs/{file}", get(file))
}

async fn page(_: Anybody) -> Result<Response, Error> {
    Ok(answer(([(CONTENT_TYPE, "text/html; charset=utf-8")], PAGE)))
}

async fn file(_: Anybody, Named(name): Named, headers: HeaderMap) -> Result<Response, Error> {
    if name == "start.js" {
        return Ok(answer(([(CONTENT_TYPE, "text/javascript; charset=utf-8")], START)));
    }
    of_library(&name, &headers).await
}

async fn of_library(name: &str, asked: &HeaderMap) -> Result<Response, Error> {
    let file = LIBRARY.get(name).ok_or(Error::NotFound("Not found"))?;
    Ok(answer(file.answer(asked).await?))
}

fn answer(file: impl IntoResponse) -> Response {
    let headers =
        [(CACHE_CONTROL, HOUR), (CONTENT_SECURITY_POLICY, POLICY), (REFERRER_POLICY, "no-referrer")];
    (headers, file).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    #[tokio::test]
    async fn however_many_have_a_file_it_is_in_memory_once() -> anyhow::Result<()> {
        let asked = HeaderMap::new();
        let bytes = async || {
            let answer = of_library("swagger-ui-bundle.js", &asked).await?;
            anyhow::Ok(to_bytes(answer.into_body(), usize::MAX).await?)
        };
        let (one, another) = (bytes().await?, bytes().await?);
        assert!(one.len() > 1_000_000 && one.as_ptr() == another.as_ptr());
        Ok(())
    }
}
