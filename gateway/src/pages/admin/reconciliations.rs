//! The last reconciliations, and what each left.

use maud::{Markup, html};
use nexus_core::text::thousands;
use nexus_proto::billing::v1::{Reconciliation, ReconciliationStatus};

use crate::{
    convert,
    error::Error,
    pages::{
        part::{self, Column},
        show,
    },
};

/// The newest, newest first.
pub(super) fn list(all: &[Reconciliation]) -> Result<Markup, Error> {
    let table = part::table(
        "Reconciliations, newest first",
        &[
            Column::Text("Begun"),
            Column::Text("State"),
            Column::Text("Compared"),
            Column::Number("Periods"),
            Column::Number("Items"),
            Column::Number("Repaired"),
            Column::Text("Differences that are left"),
        ],
        &html! {
            @for one in all {
                tr {
                    th scope="row" { (show::moment(convert::required_time("start_time", one.start_time.as_ref())?)) }
                    td { (state(one)) }
                    td { (thousands(one.accounts_count)) " accounts" @if one.limited { span class="id" { "A part of the books" } } }
                    td class="number" { (thousands(one.periods_count)) }
                    td class="number" { (thousands(one.items_count)) }
                    td class="number" { (thousands(one.repaired_count)) }
                    td { (left(one)) }
                }
            }
        },
    );
    Ok(html! {
        section aria-labelledby="reconciliations" {
            h2 id="reconciliations" { "Reconciliations" }
            @if all.is_empty() { (part::empty("The records were not compared yet.")) }
            @else { (part::scroll("Reconciliations", &table)) }
        }
    })
}

fn state(one: &Reconciliation) -> Markup {
    match one.status() {
        ReconciliationStatus::Running => part::badge("At work", "plain"),
        ReconciliationStatus::Finished if one.left.is_empty() => part::badge("They agree", "good"),
        ReconciliationStatus::Finished => part::badge("They differ", "bad"),
        ReconciliationStatus::Failed => part::badge("Cut short", "bad"),
        ReconciliationStatus::Unspecified => part::badge("Unknown", "plain"),
    }
}

fn left(one: &Reconciliation) -> Markup {
    html! {
        @if one.status() == ReconciliationStatus::Running { "–" }
        @else if one.left.is_empty() { "None" }
        @else {
            ul class="code" { @for kind in &one.left { li { (thousands(kind.differences_count)) " " (kind.kind) } } }
        }
    }
}
