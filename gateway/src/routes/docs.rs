//! `/docs`: a page that shows the document and tries its routes. All of it is in this program: nothing is fetched from
//! another host, and the policy allows none.

use std::sync::Arc;

use axum::{
    Router,
    http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use utoipa_swagger_ui::{Config, serve};

use crate::{App, error::Error, pages::session::Anybody, query::Named};

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

/// The page and its files.
pub(super) fn router() -> Router<App> {
    Router::new().route("/docs", get(page)).route("/docs/{file}", get(file))
}

async fn page(_: Anybody) -> Result<Response, Error> {
    Ok(answer("text/html; charset=utf-8", PAGE))
}

async fn file(_: Anybody, Named(name): Named) -> Result<Response, Error> {
    if name == "start.js" {
        return Ok(answer("text/javascript; charset=utf-8", START));
    }
    if !FILES.contains(&name.as_str()) {
        return Err(Error::NotFound("Not found"));
    }
    let file = serve(&name, Arc::new(Config::from("/openapi.json")));
    let file = file.map_err(|e| Error::Internal(format!("{name}: {e}")))?;
    let file = file.ok_or(Error::NotFound("Not found"))?;
    Ok(answer(&file.content_type, file.bytes.into_owned()))
}

fn answer(content_type: &str, body: impl IntoResponse) -> Response {
    let headers = [(CONTENT_TYPE, content_type), (CACHE_CONTROL, HOUR), (CONTENT_SECURITY_POLICY, POLICY)];
    (headers, body).into_response()
}
