//! `/admin`: the business, for admins. The services judge whether the user is one; the pages only spare others the way.

use axum::{
    Router,
    routing::{get, post},
};

use crate::App;

mod account;
mod overview;
mod reconciliations;
mod runs;
mod users;

/// The admin's pages.
pub(super) fn router() -> Router<App> {
    Router::new()
        .route("/admin", get(overview::page))
        .route("/admin/live", get(overview::live))
        .route("/admin/users", get(users::page))
        .route("/admin/accounts/{eco_id}", get(account::page))
        .route("/admin/accounts/{eco_id}/plan", post(account::change_plan))
        .route("/admin/accounts/{eco_id}/spend-cap", post(account::set_spend_cap))
        .route("/admin/billing", get(runs::page))
        .route("/admin/billing/dry-run", post(runs::dry_run))
        .route("/admin/billing/compare", post(runs::compare))
        .route("/admin/billing/runs/{run_id}", get(runs::run))
        .route("/admin/billing/runs/{run_id}/live", get(runs::live))
}
