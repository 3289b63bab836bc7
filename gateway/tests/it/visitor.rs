//! Somebody who looks at the pages without a browser: cookies, forms and answers as they are.

use anyhow::{Context, Result};
use nexus_testkit::settings::user_token;
use reqwest::{Client, RequestBuilder, Response, StatusCode, header::HeaderMap};

use crate::suite::Suite;

/// A page, or where another one is.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) html: String,
}

impl Seen {
    async fn of(response: Response) -> Result<Self> {
        let (status, headers) = (response.status(), response.headers().clone());
        Ok(Self { status, headers, html: response.text().await? })
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The value of the first field of this name.
    pub(crate) fn field(&self, name: &str) -> Result<String> {
        let start = format!(r#"name="{name}" value=""#);
        let rest =
            self.html.split_once(&start).with_context(|| format!("no field {name} in {}", self.html))?.1;
        Ok(rest.split_once('"').context("the value's end")?.0.to_owned())
    }

    pub(crate) fn says(&self, text: &str) -> bool {
        self.html.contains(text)
    }
}

/// Sends what a browser sends.
pub(crate) struct Visitor<'s> {
    suite: &'s Suite,
    http: Client,
    pub(crate) cookie: String,
}

impl<'s> Visitor<'s> {
    /// Nobody yet.
    pub(crate) fn new(suite: &'s Suite) -> Result<Self> {
        // Installs what reqwest wants of a process.
        drop(nexus_testkit::http::client());
        let http = Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(Self { suite, http, cookie: String::new() })
    }

    /// An account's user, with the cookie that a sign-in sets.
    pub(crate) fn of(suite: &'s Suite, eco_id: &str) -> Result<Self> {
        let cookie = format!("nexus_session={}", user_token(eco_id)?);
        Ok(Self { cookie, ..Self::new(suite)? })
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> Result<RequestBuilder> {
        let request = self.http.request(method.parse()?, format!("{}{path}", self.suite.gateway));
        Ok(request
            .header("cookie", &self.cookie)
            .header("accept", "text/html,application/xhtml+xml,*/*;q=0.8"))
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Seen> {
        Seen::of(self.request("GET", path)?.send().await?).await
    }

    /// Sends a form as a page of ours does.
    pub(crate) async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Result<Seen> {
        self.post_from(path, fields, &[("sec-fetch-site", "same-origin")]).await
    }

    pub(crate) async fn post_from(
        &self,
        path: &str,
        fields: &[(&str, &str)],
        headers: &[(&str, &str)],
    ) -> Result<Seen> {
        let mut request = self.request("POST", path)?.form(fields);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Seen::of(request.send().await?).await
    }
}
