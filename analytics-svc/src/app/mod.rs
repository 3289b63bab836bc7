//! Use cases, one a file; each owns its transaction.

pub mod export_usage;
pub mod forecast_usage;
pub mod get_overview;
pub mod get_revenue_history;
pub mod get_total_usage_history;
pub mod get_usage_history;
pub mod list_endpoint_stats;
pub mod list_top_users;
pub mod list_users;

use nexus_core::id::EcoId;
use sqlx::PgConnection;

use crate::{error::Error, store};

/// Refuses an account that does not exist. A closed one still has its history.
async fn require_account(connection: &mut PgConnection, eco_id: &EcoId) -> Result<(), Error> {
    if store::accounts::exists(connection, eco_id).await? {
        Ok(())
    } else {
        Err(Error::AccountNotFound(eco_id.clone()))
    }
}
