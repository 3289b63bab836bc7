//! Style sheet, script and icon: files compiled in, each under a name with the hash of what is in it, so that browsers
//! may keep them for ever.

use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, header::CACHE_CONTROL};
use sha2::{Digest, Sha256};

use super::session::Anybody;
use crate::{error::Error, fixed::Fixed, query::Named};

/// A file.
pub struct Asset {
    name: String,
    file: Fixed,
}

impl Asset {
    fn new(stem: &str, extension: &str, kind: &str, content: &'static str) -> Self {
        let hash = hex::encode(&Sha256::digest(content.as_bytes())[..8]);
        Self { name: format!("{stem}-{hash}.{extension}"), file: Fixed::new(kind, content) }
    }

    /// Where it is served.
    pub fn path(&self) -> String {
        format!("/assets/{}", self.name)
    }
}

/// How the pages look.
pub static STYLE: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("pages", "css", "text/css; charset=utf-8", include_str!("assets/pages.css")));
/// What they do beyond HTML.
pub static SCRIPT: LazyLock<Asset> = LazyLock::new(|| {
    Asset::new("pages", "js", "text/javascript; charset=utf-8", include_str!("assets/pages.js"))
});
/// In the browser's tab.
pub static ICON: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("icon", "svg", "image/svg+xml", include_str!("assets/icon.svg")));

/// Serves a file. One of another version is not there: its name would say what it is not.
pub async fn serve(_: Anybody, Named(file): Named, headers: HeaderMap) -> Result<Response, Error> {
    let all: [&'static Asset; 3] = [&STYLE, &SCRIPT, &ICON];
    let asset = all.into_iter().find(|asset| asset.name == file).ok_or(Error::NotFound("Not found"))?;
    let for_ever = [(CACHE_CONTROL, "public, max-age=31536000, immutable")];
    Ok((for_ever, asset.file.answer(&headers).await?).into_response())
}
