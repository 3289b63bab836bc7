//! Webhook endpoints: who is told of which events.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::http::API_VERSION;
use crate::http::error::ApiError;
use crate::http::forms::{MetadataChange, Params};
use crate::http::lists::{Page, page_of};
use crate::objects::{Kind, Object, Resource, events, named, saved};
use crate::state::State;
use crate::tx::Tx;

const MAX_ENDPOINTS: usize = 16;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WebhookEndpoint {
    id: String,
    created: i64,
    pub(crate) url: String,
    pub(crate) secret: String,
    enabled_events: Vec<String>,
    description: Option<String>,
    metadata: BTreeMap<String, String>,
    disabled: bool,
    /// Whether it is the one of the configuration.
    #[serde(default)]
    configured: bool,
}

impl Resource for WebhookEndpoint {
    const KIND: Kind = Kind::WebhookEndpoint;

    fn from_object(object: &Object) -> Option<&Self> {
        Self::variant_of(object)
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn render(&self, _: &State) -> Value {
        json!({
            "id": self.id,
            "object": "webhook_endpoint",
            "api_version": API_VERSION,
            "application": null,
            "created": self.created,
            "description": self.description,
            "enabled_events": self.enabled_events,
            "livemode": false,
            "metadata": self.metadata,
            "status": if self.disabled { "disabled" } else { "enabled" },
            "url": self.url,
        })
    }
}

impl WebhookEndpoint {
    pub(crate) fn wants(&self, kind: &str) -> bool {
        !self.disabled && self.enabled_events.iter().any(|wanted| events::matches(wanted, kind))
    }

    /// The form with the secret, which only the answer to its creation has.
    fn render_with_secret(&self, state: &State) -> Value {
        let mut form = self.render(state);
        form["secret"] = json!(self.secret);
        form
    }
}

/// Plain HTTP only: whatever listens is on the same machine or network.
pub(crate) fn check_url(url: &str) -> Result<(), String> {
    match url.strip_prefix("http://") {
        Some(rest) if !rest.is_empty() && !rest.starts_with('/') => Ok(()),
        _ => Err(format!("Invalid URL: {url}. The stand-in sends webhooks to http:// URLs.")),
    }
}

struct Fields {
    url: Option<String>,
    enabled_events: Vec<String>,
    description: Option<Option<String>>,
    metadata: MetadataChange,
}

impl Fields {
    fn take(params: &mut Params) -> Result<Self, ApiError> {
        let fields = Self {
            url: params.text("url")?,
            enabled_events: params.texts("enabled_events")?,
            description: params.clearable("description")?,
            metadata: params.metadata()?,
        };
        if let Some(url) = &fields.url {
            check_url(url).map_err(|message| ApiError::invalid("url_invalid", "url", message))?;
        }
        Ok(fields)
    }
}

pub(crate) fn create(tx: &mut Tx<'_>, mut params: Params) -> Result<Value, ApiError> {
    let fields = Fields::take(&mut params)?;
    params.one_of("api_version", &[API_VERSION])?;
    let url = fields.url.ok_or_else(|| params.missing("url"))?;
    if fields.enabled_events.is_empty() {
        return Err(params.missing("enabled_events"));
    }
    params.finish()?;
    if tx.state().count::<WebhookEndpoint>() >= MAX_ENDPOINTS {
        let message = format!("There can be up to {MAX_ENDPOINTS} webhook endpoints.");
        return Err(ApiError::refused(message));
    }
    let mut endpoint = new(tx, url);
    endpoint.enabled_events = fields.enabled_events;
    endpoint.description = fields.description.flatten();
    fields.metadata.apply(&mut endpoint.metadata)?;
    tx.put(endpoint.clone());
    Ok(endpoint.render_with_secret(tx.state()))
}

/// An endpoint with a secret that its receiver knows already; the one of that URL, if it is there.
pub(crate) fn set(tx: &mut Tx<'_>, url: String, secret: String, enabled_events: Vec<String>) -> Value {
    let there = tx.state().all::<WebhookEndpoint>().find(|endpoint| endpoint.url == url).cloned();
    let endpoint = there.unwrap_or_else(|| new(tx, url));
    let endpoint = WebhookEndpoint { secret, enabled_events, disabled: false, ..endpoint };
    tx.put(endpoint.clone());
    endpoint.render_with_secret(tx.state())
}

/// The endpoint of the configuration; without types it takes all events.
pub(crate) fn configure(tx: &mut Tx<'_>, url: String, secret: String, mut enabled_events: Vec<String>) {
    if enabled_events.is_empty() {
        enabled_events.push("*".to_owned());
    }
    let there = tx.state().all::<WebhookEndpoint>().find(|it| it.configured || it.url == url).cloned();
    let endpoint = there.unwrap_or_else(|| new(tx, url.clone()));
    tx.put(WebhookEndpoint { url, secret, enabled_events, disabled: false, configured: true, ..endpoint });
}

fn new(tx: &mut Tx<'_>, url: String) -> WebhookEndpoint {
    WebhookEndpoint {
        id: tx.ids().next("we"),
        created: tx.now(),
        url,
        secret: format!("whsec_{}", tx.ids().letters(32)),
        enabled_events: Vec::new(),
        description: None,
        metadata: BTreeMap::new(),
        disabled: false,
        configured: false,
    }
}

pub(crate) fn retrieve(tx: &mut Tx<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish()?;
    Ok(named::<WebhookEndpoint>(tx, id)?.render(tx.state()))
}

pub(crate) fn update(tx: &mut Tx<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let fields = Fields::take(&mut params)?;
    let disabled = params.boolean("disabled")?;
    params.finish()?;
    let mut endpoint: WebhookEndpoint = named(tx, id)?;
    fields.metadata.apply(&mut endpoint.metadata)?;
    endpoint.url = fields.url.unwrap_or(endpoint.url);
    if !fields.enabled_events.is_empty() {
        endpoint.enabled_events = fields.enabled_events;
    }
    endpoint.description = fields.description.unwrap_or(endpoint.description);
    endpoint.disabled = disabled.unwrap_or(endpoint.disabled);
    if endpoint.disabled {
        events::drop_endpoint(tx, id);
    }
    Ok(saved(tx, endpoint))
}

pub(crate) fn delete(tx: &mut Tx<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish()?;
    named::<WebhookEndpoint>(tx, id)?;
    events::drop_endpoint(tx, id);
    tx.remove::<WebhookEndpoint>(id);
    Ok(json!({ "id": id, "object": "webhook_endpoint", "deleted": true }))
}

pub(crate) fn list(tx: &mut Tx<'_>, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::take(&mut params)?;
    params.finish()?;
    page_of::<WebhookEndpoint>(tx.state(), &page, None, |_| true)
}
