//! Which endpoint a method and a path mean.

use serde_json::Value;

use crate::http::error::ApiError;
use crate::http::forms::Params;
use crate::objects::{customers, invoice_items, invoices, prices, products, subscriptions};
use crate::state::Tx;

/// Calls the endpoint; `None` when there is none.
pub(crate) fn call(
    tx: &mut Tx<'_>,
    method: &str,
    path: &str,
    params: Params,
) -> Option<Result<Value, ApiError>> {
    let path: Vec<&str> = path.strip_prefix("/v1/")?.split('/').collect();
    Some(match (method, path.as_slice()) {
        ("POST", ["customers"]) => customers::create(tx, params),
        ("GET", ["customers"]) => customers::list(tx, params),
        ("GET", ["customers", id]) => customers::retrieve(tx, id, params),
        ("POST", ["customers", id]) => customers::update(tx, id, params),
        ("DELETE", ["customers", id]) => customers::delete(tx, id, params),

        ("POST", ["products"]) => products::create(tx, params),
        ("GET", ["products"]) => products::list(tx, params),
        ("GET", ["products", id]) => products::retrieve(tx, id, params),
        ("POST", ["products", id]) => products::update(tx, id, params),

        ("POST", ["prices"]) => prices::create(tx, params),
        ("GET", ["prices"]) => prices::list(tx, params),
        ("GET", ["prices", id]) => prices::retrieve(tx, id, params),
        ("POST", ["prices", id]) => prices::update(tx, id, params),

        ("POST", ["subscriptions"]) => subscriptions::create(tx, params),
        ("GET", ["subscriptions"]) => subscriptions::list(tx, params),
        ("GET", ["subscriptions", id]) => subscriptions::retrieve(tx, id, params),
        ("POST", ["subscriptions", id]) => subscriptions::update(tx, id, params),
        ("DELETE", ["subscriptions", id]) => subscriptions::cancel(tx, id, params),

        ("POST", ["invoiceitems"]) => invoice_items::create(tx, params),
        ("GET", ["invoiceitems"]) => invoice_items::list(tx, params),
        ("GET", ["invoiceitems", id]) => invoice_items::retrieve(tx, id, params),
        ("POST", ["invoiceitems", id]) => invoice_items::update(tx, id, params),
        ("DELETE", ["invoiceitems", id]) => invoice_items::delete(tx, id, params),

        ("POST", ["invoices"]) => invoices::create(tx, params),
        ("GET", ["invoices"]) => invoices::list(tx, params),
        ("GET", ["invoices", id]) => invoices::retrieve(tx, id, params),
        ("POST", ["invoices", id]) => invoices::update(tx, id, params),
        ("GET", ["invoices", id, "lines"]) => invoices::lines(tx, id, params),
        ("POST", ["invoices", id, "add_lines"]) => invoices::add_lines(tx, id, params),
        ("POST", ["invoices", id, "finalize"]) => invoices::finalize(tx, id, params),
        ("POST", ["invoices", id, "pay"]) => invoices::pay(tx, id, params),
        ("POST", ["invoices", id, "void"]) => invoices::void(tx, id, params),

        _ => return None,
    })
}
