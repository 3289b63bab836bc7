//! Settings of the pages.

use std::str::FromStr;

use clap::Args;
use http::Uri;
use secrecy::SecretString;

/// Settings of the pages.
#[derive(Args, Debug, Clone, Default)]
pub struct PagesArgs {
    /// Where browsers reach the gateway, such as `https://metering.example.com`; with https, cookies travel over TLS only.
    /// Unset: as it serves itself
    #[arg(long, env = "PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<Origin>,
    #[command(flatten)]
    pub oidc: OidcArgs,
}

/// An identity provider whose id tokens are users' tokens (JWT_JWKS, JWT_ISSUER) with the claim `ecoId`. It leads back to
/// PUBLIC_URL/sign-in/oidc/callback.
#[derive(Args, Debug, Clone, Default)]
pub struct OidcArgs {
    /// Where people sign in at an identity provider (OpenID Connect, code flow); unset: they paste a token
    #[arg(long = "oidc-authorize-url", env = "OIDC_AUTHORIZE_URL", requires_all = ["token_url", "client_id"], value_name = "URL")]
    pub authorize_url: Option<String>,
    /// Where the provider gives tokens for codes
    #[arg(long = "oidc-token-url", env = "OIDC_TOKEN_URL", value_name = "URL")]
    pub token_url: Option<String>,
    /// Who the pages are at the provider
    #[arg(long = "oidc-client-id", env = "OIDC_CLIENT_ID", value_name = "ID")]
    pub client_id: Option<String>,
    /// Secret of the pages at the provider; unset: it wants none
    #[arg(
        long = "oidc-client-secret",
        env = "OIDC_CLIENT_SECRET",
        hide_env_values = true,
        value_name = "SECRET"
    )]
    pub client_secret: Option<SecretString>,
    /// Scopes that are asked for
    #[arg(long = "oidc-scopes", env = "OIDC_SCOPES", default_value = "openid email", value_name = "SCOPES")]
    pub scopes: String,
}

/// Scheme and authority of a URL without more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(String);

impl Origin {
    /// As browsers write it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is reached over TLS.
    pub fn is_tls(&self) -> bool {
        self.0.starts_with("https://")
    }
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("`{text}` is not an http:// or https:// URL without a path");
        let uri: Uri = text.parse().map_err(|_| expected())?;
        let scheme = uri.scheme_str().filter(|s| ["http", "https"].contains(s)).ok_or_else(expected)?;
        let authority = uri.authority().filter(|a| !a.as_str().contains('@')).ok_or_else(expected)?;
        if uri.path_and_query().is_some_and(|path| path.as_str() != "/") {
            return Err(expected());
        }
        let default_port = if scheme == "https" { ":443" } else { ":80" };
        let authority = authority.as_str().to_ascii_lowercase();
        let authority = authority.strip_suffix(default_port).unwrap_or(&authority);
        Ok(Self(format!("{scheme}://{authority}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_and_an_authority() {
        for (text, origin) in [
            ("https://Metering.example.com", "https://metering.example.com"),
            ("https://metering.example.com:443/", "https://metering.example.com"),
            ("http://localhost:8080", "http://localhost:8080"),
        ] {
            assert_eq!(text.parse::<Origin>().as_ref().map(Origin::as_str), Ok(origin));
        }
        for bad in [
            "",
            "metering.example.com",
            "ftp://x",
            "https://x/path",
            "https://x/?q",
            "https://a@x",
            "https://",
        ] {
            assert!(bad.parse::<Origin>().is_err(), "{bad}");
        }
    }
}
