//! The web pages: rendered here, from the answers of the services to the user's own token.
//!
//! | module | what it does |
//! |---|---|
//! | [`session`] | who looks: the user's token in a cookie; sign-in and sign-out |
//! | [`oidc`] | the same at an identity provider |
//! | [`form`] | what was posted, once it is known that a page of ours posted it |
//! | [`layout`] | what every page has around it |
//! | [`failure`] | what went wrong, as a page |
//! | [`show`], [`part`] | numbers, money and times for people; tables, meters and other parts |
//! | [`chart`] | charts as SVG |
//! | [`assets`] | style sheet, script and icon |
//! | [`usage`], [`standing`] | where an account stands, its calls |
//! | [`keys`] | its API keys |
//! | [`billing`], [`plan`], [`charges`], [`invoices`] | its plan, and what it is charged |
//! | [`admin`] | the business |
//! | [`live`] | figures that a page keeps up to date |
//!
//! Everything works without the script. Nothing is inline: the policy of each page allows only what comes from here.

use axum::{
    Router,
    extract::DefaultBodyLimit,
    routing::{get, post},
};
use tokio_util::sync::CancellationToken;

use crate::{App, Config, StartError, places::Few};

pub mod admin;
pub mod assets;
pub mod billing;
pub mod charges;
pub mod chart;
pub mod config;
pub mod failure;
pub mod form;
pub mod invoices;
pub mod keys;
pub mod layout;
pub mod live;
pub mod oidc;
pub mod part;
pub mod plan;
pub mod session;
pub mod show;
pub mod standing;
pub mod usage;

/// What the pages need beside the services.
pub struct Pages {
    seal: session::Seal,
    public_url: Option<config::Origin>,
    /// Cookies travel over TLS only.
    secure: bool,
    oidc: Option<oidc::Oidc>,
    /// Streams of figures.
    streams: Few,
    /// Ends the streams, which would hold up a server that stops.
    stopping: CancellationToken,
}

impl Pages {
    /// Whether browsers come over TLS.
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// By the configuration; `stopping` ends what is open.
    pub fn new(config: &Config, stopping: CancellationToken) -> Result<Self, StartError> {
        let public_url = config.pages.public_url.clone();
        let secure =
            config.serve.tls_cert.is_some() || public_url.as_ref().is_some_and(config::Origin::is_tls);
        Ok(Self {
            oidc: oidc::Oidc::new(&config.pages.oidc, public_url.as_ref())?,
            seal: session::Seal::new(&config.auth.service_token_secret),
            secure,
            public_url,
            streams: live::places(),
            stopping,
        })
    }
}

/// All pages.
pub fn router() -> Router<App> {
    let visitors = DefaultBodyLimit::max(form::MAX_VISITORS_BYTES);
    Router::new()
        .route("/", get(session::home))
        .route("/assets/{file}", get(assets::serve))
        .route("/sign-in", get(session::form).post(session::sign_in).layer(visitors))
        .route("/sign-in/oidc", get(oidc::leave))
        .route("/sign-in/oidc/callback", get(oidc::come_back))
        .route("/sign-out", post(session::sign_out))
        .route("/dashboard", get(usage::page))
        .route("/dashboard/usage", get(usage::page))
        .route("/dashboard/spend-cap", post(usage::set_spend_cap))
        .route("/dashboard/live", get(usage::live))
        .route("/dashboard/keys", get(keys::list).post(keys::create))
        .route("/dashboard/keys/{key_id}", get(keys::one))
        .route("/dashboard/keys/{key_id}/rotate", post(keys::rotate))
        .route("/dashboard/keys/{key_id}/revoke", post(keys::revoke))
        .route("/dashboard/billing", get(billing::page))
        .route("/dashboard/billing/plan", get(plan::confirm).post(plan::change))
        .route("/dashboard/billing/charges/{charge_id}", get(charges::one))
        .merge(admin::router())
}
