//! A running stand-in on a free port, and the two ways to talk to it.

use anyhow::{Context as _, Result, ensure};
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use stripe_sim::Config;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const KEY: &str = "sk_test_4eC39HqLyjWDarjtT1zdp7dc";

pub(crate) struct Sim {
    pub(crate) base: String,
    http: reqwest::Client,
    shutdown: CancellationToken,
    server: JoinHandle<Result<(), stripe_sim::Error>>,
}

impl Sim {
    pub(crate) async fn start() -> Result<Self> {
        Self::start_with(Config::default()).await
    }

    pub(crate) async fn start_with(config: Config) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let base = format!("http://{}", listener.local_addr()?);
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(stripe_sim::serve(config, listener, shutdown.clone()));
        let http = nexus_testkit::http::unpooled_client()?;
        Ok(Self { base, http, shutdown, server })
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.shutdown.cancel();
        self.server.await??;
        Ok(())
    }

    pub(crate) fn stripe(&self) -> Result<stripe::Client> {
        Ok(stripe::ClientBuilder::new(KEY).url(format!("{}/", self.base)).build()?)
    }

    pub(crate) fn bare(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.bare(Method::GET, path).bearer_auth(KEY)
    }

    pub(crate) fn post(&self, path: &str, form: &[(&str, &str)]) -> RequestBuilder {
        self.bare(Method::POST, path).bearer_auth(KEY).form(form)
    }

    pub(crate) fn delete(&self, path: &str) -> RequestBuilder {
        self.bare(Method::DELETE, path).bearer_auth(KEY)
    }

    /// Creates an object and returns it.
    pub(crate) async fn create(&self, path: &str, form: &[(&str, &str)]) -> Result<Value> {
        let (status, body) = read(self.post(path, form).send().await?).await?;
        ensure!(status == 200, "{path}: {status} {body}");
        Ok(body)
    }

    pub(crate) async fn customer(&self) -> Result<String> {
        id(&self.create("/v1/customers", &[("email", "a@example.com")]).await?)
    }

    pub(crate) async fn item(&self, customer: &str, amount: &str, more: &[(&str, &str)]) -> Result<Value> {
        let mut form = vec![("customer", customer), ("amount", amount), ("currency", "usd")];
        form.extend_from_slice(more);
        self.create("/v1/invoiceitems", &form).await
    }

    /// A recurring monthly price of 49 dollars.
    pub(crate) async fn price(&self) -> Result<String> {
        let form = [
            ("currency", "usd"),
            ("unit_amount", "4900"),
            ("recurring[interval]", "month"),
            ("product_data[name]", "Pro"),
        ];
        id(&self.create("/v1/prices", &form).await?)
    }

    pub(crate) async fn subscription(&self, customer: &str) -> Result<Value> {
        let price = self.price().await?;
        let form = [("customer", customer), ("items[0][price]", price.as_str())];
        self.create("/v1/subscriptions", &form).await
    }

    pub(crate) async fn read(&self, path: &str) -> Result<Value> {
        let (status, body) = read(self.get(path).send().await?).await?;
        ensure!(status == 200, "{path}: {status} {body}");
        Ok(body)
    }

    /// A call to the `/_sim` part.
    pub(crate) async fn admin(&self, path: &str, body: Value) -> Result<Value> {
        let (status, body) =
            read(self.bare(Method::POST, &format!("/_sim{path}")).json(&body).send().await?).await?;
        ensure!(status == 200, "{path}: {status} {body}");
        Ok(body)
    }

    pub(crate) async fn advance(&self, seconds: u32) -> Result<()> {
        self.admin("/clock", json!({ "advance_seconds": seconds })).await?;
        Ok(())
    }

    /// From now on its clock moves only when it is moved.
    pub(crate) async fn freeze(&self) -> Result<()> {
        self.admin("/clock", json!({ "scale": 0 })).await?;
        Ok(())
    }

    /// How many invoice items there are.
    pub(crate) async fn item_count(&self) -> Result<usize> {
        let state = self.read("/_sim/state").await?;
        Ok(state["invoiceitems"].as_array().context("invoiceitems")?.len())
    }
}

pub(crate) async fn read(response: Response) -> Result<(u16, Value)> {
    let status = response.status().as_u16();
    Ok((status, response.json().await?))
}

pub(crate) fn id(object: &Value) -> Result<String> {
    Ok(object["id"].as_str().context("an id")?.to_owned())
}

pub(crate) fn ids(list: &Value) -> Result<Vec<String>> {
    list["data"].as_array().context("data")?.iter().map(id).collect()
}

pub(crate) fn header(response: &Response, name: &str) -> Option<String> {
    Some(response.headers().get(name)?.to_str().ok()?.to_owned())
}
