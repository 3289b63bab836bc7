//! Pages for people: what there is, an object, and the checkout where a customer pays.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{Html, IntoResponse as _, Redirect, Response};
use axum::routing::get;
use axum::{Form, Router};
use chrono::DateTime;
use serde::Deserialize;
use serde_json::Value;

use crate::http::App;
use crate::objects::checkout::{self, CheckoutSession};
use crate::objects::customers::Customer;
use crate::objects::events::Event;
use crate::objects::invoice_items::InvoiceItem;
use crate::objects::invoices::Invoice;
use crate::objects::subscriptions::Subscription;
use crate::objects::{Kind, Resource};
use crate::state::State as Objects;

/// How many of each kind are shown.
const SHOWN: usize = 50;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;\
    color:#222;background:#fff}table{border-collapse:collapse;width:100%}\
    th,td{text-align:left;padding:.25rem .75rem .25rem 0;border-bottom:1px solid #ddd;vertical-align:top}\
    td.n{text-align:right;font-variant-numeric:tabular-nums}h2{margin-top:2rem}a{color:#0b57d0}\
    pre{background:#f6f6f6;padding:1rem;overflow:auto}.note{color:#555}\
    button{font:inherit;padding:.5rem 1rem;margin-right:.5rem}\
    @media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}th,td{border-color:#444}\
    a{color:#8ab4f8}pre{background:#222}.note{color:#aaa}}";

pub(crate) fn router() -> Router<Arc<App>> {
    Router::new()
        .route("/", get(overview))
        .route("/object/{id}", get(object))
        .route("/checkout/{id}", get(show_checkout).post(answer_checkout))
}

fn page(title: &str, content: &str) -> Response {
    let html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{title} – stripe-sim</title><style>{STYLE}</style></head><body>{content}</body></html>",
        title = escape(title),
    );
    // Nothing is loaded from elsewhere, and nothing runs.
    let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";
    let headers: [(HeaderName, &str); 2] =
        [(header::CONTENT_SECURITY_POLICY, policy), (header::CACHE_CONTROL, "no-store")];
    (headers, Html(html)).into_response()
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            letter => escaped.push(letter),
        }
    }
    escaped
}

fn time(seconds: Option<i64>) -> String {
    let time = seconds.and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    time.map(|time| time.format("%Y-%m-%d %H:%M:%S").to_string()).unwrap_or_default()
}

/// A value of an object's form as text.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// An amount in the currency's minor units, as the API has it.
fn amount(object: &Value, field: &str) -> String {
    format!("{} {}", text(&object[field]), text(&object["currency"]))
}

enum Cell {
    Text(String),
    Number(String),
    /// The id of an object, which has a page; empty, if there is none.
    Id(String),
}

fn cell(cell: &Cell) -> String {
    match cell {
        Cell::Text(text) => format!("<td>{}</td>", escape(text)),
        Cell::Number(text) => format!("<td class=\"n\">{}</td>", escape(text)),
        Cell::Id(id) if id.is_empty() => "<td></td>".to_owned(),
        Cell::Id(id) => format!("<td><a href=\"/object/{0}\">{0}</a></td>", escape(id)),
    }
}

/// The newest objects of a kind, as a table.
fn table<T: Resource>(
    state: &Objects,
    customer: Option<&str>,
    title: &str,
    columns: &[&str],
    row: impl Fn(&Value) -> Vec<Cell>,
) -> String {
    let all: Box<dyn Iterator<Item = &T>> = match customer {
        Some(customer) => Box::new(state.of_customer::<T>(customer).rev()),
        None => Box::new(state.all::<T>().rev()),
    };
    let rows: Vec<String> = all
        .take(SHOWN)
        .map(|object| row(&object.render(state)).iter().map(cell).collect::<String>())
        .collect();
    let mut html = format!("<h2>{title}</h2>");
    if rows.is_empty() {
        html.push_str("<p class=\"note\">None.</p>");
        return html;
    }
    let head: String = columns.iter().map(|column| format!("<th scope=\"col\">{column}</th>")).collect();
    let body: String = rows.iter().map(|row| format!("<tr>{row}</tr>")).collect();
    // Writing to a string does not fail.
    write!(html, "<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>").unwrap_or_default();
    html
}

#[derive(Deserialize)]
struct Overview {
    /// Only what is of this customer.
    customer: Option<String>,
}

async fn overview(State(app): State<Arc<App>>, Query(query): Query<Overview>) -> Response {
    let store = app.store.lock().await;
    let now = app.now(&store);
    let state = &store.state;
    let customer = query.customer.as_deref();
    let mut html = format!(
        "<h1>stripe-sim</h1><p>It is {} UTC here. Of each kind the newest {SHOWN} are shown; amounts are in \
         minor units.</p>",
        time(Some(now))
    );
    match customer {
        Some(id) => {
            let id = escape(id);
            write!(html, "<p>Customer <a href=\"/object/{id}\">{id}</a> only. <a href=\"/\">All</a></p>")
                .unwrap_or_default();
        }
        None => html.push_str(&table::<Customer>(
            state,
            None,
            "Customers",
            &["Id", "Email", "Currency", "Balance", "Created"],
            |it| {
                vec![
                    Cell::Id(text(&it["id"])),
                    Cell::Text(text(&it["email"])),
                    Cell::Text(text(&it["currency"])),
                    Cell::Number(text(&it["balance"])),
                    Cell::Text(time(it["created"].as_i64())),
                ]
            },
        )),
    }
    html.push_str(&table::<Subscription>(
        state,
        customer,
        "Subscriptions",
        &["Id", "Customer", "Status", "Period", "Latest invoice"],
        |it| {
            let item = &it["items"]["data"][0];
            let bound = |field: &str| time(item[field].as_i64());
            vec![
                Cell::Id(text(&it["id"])),
                Cell::Id(text(&it["customer"])),
                Cell::Text(text(&it["status"])),
                Cell::Text(format!("{} – {}", bound("current_period_start"), bound("current_period_end"))),
                Cell::Id(text(&it["latest_invoice"])),
            ]
        },
    ));
    html.push_str(&table::<InvoiceItem>(
        state,
        customer,
        "Invoice items",
        &["Id", "Customer", "Amount", "Description", "Invoice", "Created"],
        |it| {
            vec![
                Cell::Id(text(&it["id"])),
                Cell::Id(text(&it["customer"])),
                Cell::Number(amount(it, "amount")),
                Cell::Text(text(&it["description"])),
                if it["invoice"].is_null() {
                    Cell::Text("pending".to_owned())
                } else {
                    Cell::Id(text(&it["invoice"]))
                },
                Cell::Text(time(it["date"].as_i64())),
            ]
        },
    ));
    html.push_str(&table::<Invoice>(
        state,
        customer,
        "Invoices",
        &["Id", "Customer", "Status", "Reason", "Total", "Due", "Created"],
        |it| {
            vec![
                Cell::Id(text(&it["id"])),
                Cell::Id(text(&it["customer"])),
                Cell::Text(text(&it["status"])),
                Cell::Text(text(&it["billing_reason"])),
                Cell::Number(amount(it, "total")),
                Cell::Number(amount(it, "amount_remaining")),
                Cell::Text(time(it["created"].as_i64())),
            ]
        },
    ));
    html.push_str(&table::<CheckoutSession>(
        state,
        customer,
        "Checkout sessions",
        &["Id", "Status", "Customer", "Subscription", "Expires"],
        |it| {
            vec![
                Cell::Id(text(&it["id"])),
                Cell::Text(text(&it["status"])),
                Cell::Id(text(&it["customer"])),
                Cell::Id(text(&it["subscription"])),
                Cell::Text(time(it["expires_at"].as_i64())),
            ]
        },
    ));
    if customer.is_none() {
        html.push_str(&table::<Event>(
            state,
            None,
            "Events",
            &["Id", "Type", "Object", "Webhooks to send", "Created"],
            |it| {
                vec![
                    Cell::Id(text(&it["id"])),
                    Cell::Text(text(&it["type"])),
                    Cell::Id(text(&it["data"]["object"]["id"])),
                    Cell::Number(text(&it["pending_webhooks"])),
                    Cell::Text(time(it["created"].as_i64())),
                ]
            },
        ));
    }
    page("Overview", &html)
}

async fn object(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    let store = app.store.lock().await;
    let state = &store.state;
    let Some(form) = state.render_by_id(&id) else {
        let html = format!("<h1>Nothing here</h1><p>There is no object {}.</p>", escape(&id));
        return (StatusCode::NOT_FOUND, page("Nothing here", &html)).into_response();
    };
    let mut links = "<a href=\"/\">Overview</a>".to_owned();
    if store.state.object(Kind::Customer, &id).is_some() {
        let id = escape(&id);
        write!(links, " · <a href=\"/?customer={id}\">Everything of this customer</a>").unwrap_or_default();
    }
    let json = serde_json::to_string_pretty(&form).unwrap_or_default();
    page(&id, &format!("<p>{links}</p><h1>{}</h1><pre>{}</pre>", escape(&id), escape(&json)))
}

async fn show_checkout(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    let store = app.store.lock().await;
    let state = &store.state;
    checkout_page(state, &id, "")
}

fn checkout_page(state: &Objects, id: &str, notice: &str) -> Response {
    let Some(session) = state.get::<CheckoutSession>(id) else {
        return (StatusCode::NOT_FOUND, page("Checkout", "<h1>There is no such session</h1>"))
            .into_response();
    };
    let form = session.render(state);
    let mut html = format!(
        "<h1>Checkout</h1><p>Subscribe for {}. No money moves: this is a stand-in.</p>",
        escape(&amount(&form, "amount_total"))
    );
    if !notice.is_empty() {
        write!(html, "<p role=\"alert\"><strong>{}</strong></p>", escape(notice)).unwrap_or_default();
    }
    if session.is_open() {
        html.push_str(
            "<form method=\"post\"><p><label>Email <input type=\"email\" name=\"email\" \
             placeholder=\"customer@example.com\"></label></p>\
             <button name=\"answer\" value=\"pay\">Subscribe</button>\
             <button name=\"answer\" value=\"decline\">Pay with a card that is declined</button>\
             <button name=\"answer\" value=\"leave\">Leave</button></form>",
        );
    } else {
        write!(html, "<p>The session is {}.</p>", escape(&text(&form["status"]))).unwrap_or_default();
    }
    page("Checkout", &html)
}

#[derive(Deserialize)]
struct CheckoutAnswer {
    answer: String,
    #[serde(default)]
    email: String,
}

async fn answer_checkout(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Form(given): Form<CheckoutAnswer>,
) -> Response {
    let declined = given.answer == "decline";
    let email = Some(given.email).filter(|email| !email.is_empty());
    let completed = if given.answer == "leave" {
        Ok(Ok(Value::Null))
    } else {
        app.change(Some(&id), |tx| checkout::complete(tx, &id, email, declined)).await
    };
    let store = app.store.lock().await;
    let state = &store.state;
    match completed {
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        Ok(Err(error)) => checkout_page(state, &id, &error.message),
        Ok(Ok(_)) => match state.get::<CheckoutSession>(&id).and_then(CheckoutSession::next_url) {
            Some(url) => Redirect::to(&url).into_response(),
            None => checkout_page(state, &id, ""),
        },
    }
}
