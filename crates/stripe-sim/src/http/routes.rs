//! Which endpoint a method and a path mean.

use serde_json::Value;

use crate::http::error::ApiError;
use crate::http::forms::Params;
use crate::objects::{
    Kind, checkout, customers, events, invoice_items, invoices, prices, products, subscriptions, test_clocks,
    webhooks,
};
use crate::tx::Tx;

/// Calls the endpoint; `None` when there is none.
pub(crate) fn call(
    tx: &mut Tx<'_>,
    method: &str,
    path: &str,
    params: Params,
) -> Option<Result<Value, ApiError>> {
    let path: Vec<&str> = path.strip_prefix("/v1/")?.split('/').collect();
    let clock = clock_of(tx, &path, &params);
    tx.go_by(clock.as_deref());
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
        ("POST", ["subscriptions", id, "resume"]) => subscriptions::resume(tx, id, params),

        ("POST", ["invoiceitems"]) => invoice_items::create(tx, params),
        ("GET", ["invoiceitems"]) => invoice_items::list(tx, params),
        ("GET", ["invoiceitems", id]) => invoice_items::retrieve(tx, id, params),
        ("POST", ["invoiceitems", id]) => invoice_items::update(tx, id, params),
        ("DELETE", ["invoiceitems", id]) => invoice_items::delete(tx, id, params),

        ("POST", ["invoices"]) => invoices::create(tx, params),
        ("GET", ["invoices"]) => invoices::list(tx, params),
        ("GET", ["invoices", id]) => invoices::retrieve(tx, id, params),
        ("POST", ["invoices", id]) => invoices::update(tx, id, params),
        ("DELETE", ["invoices", id]) => invoices::delete(tx, id, params),
        ("GET", ["invoices", id, "lines"]) => invoices::lines(tx, id, params),
        ("POST", ["invoices", id, "add_lines"]) => invoices::add_lines(tx, id, params),
        ("POST", ["invoices", id, "finalize"]) => invoices::finalize(tx, id, params),
        ("POST", ["invoices", id, "pay"]) => invoices::pay(tx, id, params),
        ("POST", ["invoices", id, "void"]) => invoices::void(tx, id, params),
        ("POST", ["invoices", id, "mark_uncollectible"]) => invoices::mark_uncollectible(tx, id, params),

        ("POST", ["checkout", "sessions"]) => checkout::create(tx, params),
        ("GET", ["checkout", "sessions"]) => checkout::list(tx, params),
        ("GET", ["checkout", "sessions", id]) => checkout::retrieve(tx, id, params),
        ("POST", ["checkout", "sessions", id]) => checkout::update(tx, id, params),
        ("POST", ["checkout", "sessions", id, "expire"]) => checkout::expire(tx, id, params),
        ("GET", ["checkout", "sessions", id, "line_items"]) => checkout::line_items(tx, id, params),

        ("GET", ["events"]) => events::list(tx, params),
        ("GET", ["events", id]) => events::retrieve(tx, id, params),

        ("POST", ["webhook_endpoints"]) => webhooks::create(tx, params),
        ("GET", ["webhook_endpoints"]) => webhooks::list(tx, params),
        ("GET", ["webhook_endpoints", id]) => webhooks::retrieve(tx, id, params),
        ("POST", ["webhook_endpoints", id]) => webhooks::update(tx, id, params),
        ("DELETE", ["webhook_endpoints", id]) => webhooks::delete(tx, id, params),

        ("POST", ["test_helpers", "test_clocks"]) => test_clocks::create(tx, params),
        ("GET", ["test_helpers", "test_clocks"]) => test_clocks::list(tx, params),
        ("GET", ["test_helpers", "test_clocks", id]) => test_clocks::retrieve(tx, id, params),
        ("DELETE", ["test_helpers", "test_clocks", id]) => test_clocks::delete(tx, id, params),
        ("POST", ["test_helpers", "test_clocks", id, "advance"]) => test_clocks::advance(tx, id, params),

        _ => return None,
    })
}

/// What of a URL names no object.
const WORDS: &str = "v1 customers products prices subscriptions resume invoiceitems invoices lines finalize add_lines \
    pay void mark_uncollectible checkout sessions expire line_items events webhook_endpoints test_helpers \
    test_clocks advance";

/// The endpoint of a method and a path, whatever object it names: `POST /v1/invoices/{id}/pay`.
pub(crate) fn endpoint(method: &str, path: &str) -> String {
    let parts = path.split('/').map(|part| {
        let known = part.is_empty() || WORDS.split_whitespace().any(|word| word == part);
        if known { part } else { "{id}" }
    });
    format!("{method} {}", parts.collect::<Vec<_>>().join("/"))
}

/// The test clock a request goes by: that of the object its URL names, or of the customer or
/// test clock in its parameters.
fn clock_of(tx: &Tx<'_>, path: &[&str], params: &Params) -> Option<String> {
    let state = tx.state();
    let named = path.iter().find_map(|id| state.find(id));
    let given = params.peek("customer").and_then(|id| state.object(Kind::Customer, id));
    match named.or(given) {
        Some(object) => state.clock_of(object),
        None => params.peek("test_clock").map(str::to_owned),
    }
}
