//! An export as a stream. The transport asks for a message once there is room for it, so that a page is read from the
//! database when the one before has gone out: a slow reader holds a page at most, and no connection.

use std::pin::Pin;

use futures::{Stream, stream};
use nexus_kit::status::{self, RETRY_SOON};
use nexus_proto::analytics::v1::ExportUsageResponse;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::answer;
use crate::app::export_usage::Export;

/// The messages.
pub(super) type Pages = Pin<Box<dyn Stream<Item = Result<ExportUsageResponse, Status>> + Send>>;

/// Ends after the last row, or with the status of what failed; `UNAVAILABLE` when the server stops.
pub(super) fn pages(export: Export, stop: CancellationToken) -> Pages {
    Box::pin(stream::try_unfold((export, stop), |(mut export, stop)| async move {
        let rows = tokio::select! {
            rows = export.page() => rows?,
            () = stop.cancelled() => return Err(stopping()),
        };
        if rows.is_empty() {
            return Ok(None);
        }
        let message = answer::exported(export.eco_id(), rows);
        Ok(Some((message, (export, stop))))
    }))
}

fn stopping() -> Status {
    status::unavailable("STOPPING", "the server is stopping; export again", RETRY_SOON)
}
