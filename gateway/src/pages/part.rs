//! Parts that several pages have.

use maud::{Markup, html};
use nexus_kit::validate::Violations;

/// A field that is not seen.
pub fn hidden(name: &str, value: &str) -> Markup {
    html! { input type="hidden" name=(name) value=(value); }
}

/// The fields that every form has: whose it is, and an id that makes a form that is sent twice count once.
pub fn form_fields(csrf: &str) -> Markup {
    html! {
        (hidden("csrf", csrf))
        (hidden("request_id", &uuid::Uuid::new_v4().to_string()))
    }
}

/// Something that was done.
pub fn notice(text: &str) -> Markup {
    html! { p class="notice" role="status" { (text) } }
}

/// Something that is wrong.
pub fn alert(text: &str) -> Markup {
    html! { p class="notice alert" role="alert" { (text) } }
}

/// What is wrong with a form, all of it.
pub fn violations(violations: &Violations) -> Markup {
    html! {
        div class="notice alert" role="alert" {
            p { "This was not saved:" }
            ul {
                @for violation in &violations.0 {
                    li { (violation.field.replace('_', " ")) " " (violation.message) }
                }
            }
        }
    }
}

/// A figure with its name; `key` names it for updates.
pub fn figure(name: &str, key: &str, value: &str, note: &Markup) -> Markup {
    html! {
        div class="figure" {
            dt { (name) }
            dd {
                span class="value" data-figure=(key) { (value) }
                span class="note" { (note) }
            }
        }
    }
}

/// How much of something is used, with the words that say so.
pub fn meter(label: &str, percent: f64, text: &str, alarming: bool) -> Markup {
    let shown = percent.clamp(0.0, 100.0);
    let state = if alarming { "meter full" } else { "meter" };
    html! {
        div class=(state) role="meter" aria-label=(label) aria-valuemin="0" aria-valuemax="100"
            aria-valuenow=(format!("{shown:.1}")) aria-valuetext=(text) data-meter {
            svg aria-hidden="true" focusable="false" {
                rect class="track" width="100%" height="100%" {}
                rect class="fill" width=(format!("{shown:.2}%")) height="100%" {}
            }
        }
    }
}

/// A bar beside a number, as long as the number is of the largest.
pub fn bar(of: i64, largest: i64) -> Markup {
    let share = if largest > 0 { of as f64 / largest as f64 * 100.0 } else { 0.0 };
    html! {
        svg class="bar-cell" aria-hidden="true" focusable="false" {
            rect class="fill" width=(format!("{share:.1}%")) height="100%" {}
        }
    }
}

/// A column's head.
pub enum Column<'a> {
    /// Of texts.
    Text(&'a str),
    /// Of numbers, which stand below each other.
    Number(&'a str),
    /// Whose head is only read out.
    Unseen(&'a str),
    /// The same, where there is room for the column.
    WideOnly(&'a str),
}

/// A table: what it is for who does not see it, its columns, and its rows.
pub fn table(caption: &str, columns: &[Column<'_>], rows: &Markup) -> Markup {
    html! {
        table {
            caption class="unseen" { (caption) }
            thead { tr {
                @for column in columns {
                    @match column {
                        Column::Text(name) => th scope="col" { (name) },
                        Column::Number(name) => th scope="col" class="number" { (name) },
                        Column::Unseen(name) => th scope="col" { span class="unseen" { (name) } },
                        Column::WideOnly(name) => th scope="col" class="wide-only" { span class="unseen" { (name) } },
                    }
                }
            } }
            tbody { (rows) }
        }
    }
}

/// A page of a table, and the way to the next one where there is one.
pub fn page_of(label: &str, table: &Markup, path: &str, next_page_token: &str, more: &str) -> Markup {
    html! {
        (scroll(label, table))
        @if !next_page_token.is_empty() {
            p { a href={ (path) "?" (query("page_token", next_page_token)) } { (more) } }
        }
    }
}

/// One parameter of a query.
pub fn query(name: &str, value: &str) -> String {
    form_urlencoded::Serializer::new(String::new()).append_pair(name, value).finish()
}

/// Around a table, which may be wider than a phone; it can be scrolled by keys.
pub fn scroll(label: &str, table: &Markup) -> Markup {
    html! { div class="scroll" role="region" aria-label={ "Table: " (label) } tabindex="0" { (table) } }
}

/// A word with a colour of its own, which the word alone tells, too.
pub fn badge(word: &str, tone: &str) -> Markup {
    html! { span class={ "badge " (tone) } { (word) } }
}

/// Said where a table would be empty.
pub fn empty(text: &str) -> Markup {
    html! { p class="empty" { (text) } }
}

/// A text that is to be copied; the button is for browsers with scripts.
pub fn copyable(label: &str, text: &str) -> Markup {
    html! {
        div class="copyable" {
            label for="secret" { (label) }
            div class="row" {
                input id="secret" type="text" readonly value=(text) data-copy-source;
                button type="button" class="quiet" data-copy="secret" hidden { "Copy" }
            }
            p class="hint" role="status" data-copied {}
        }
    }
}
