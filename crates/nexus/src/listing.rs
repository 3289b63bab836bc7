//! Lists that come page by page and are printed as they come: a table for people, one JSON document for scripts.

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use crate::{
    call::Account,
    table::{Column, Table},
    text::{print, thousands},
};

/// Rows a page at most, where the service takes so many.
pub(crate) const PAGE: u32 = 100;

/// How much of a list.
#[derive(Args)]
pub(crate) struct Paging {
    /// How many at most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    limit: u32,
    /// All, however many there are
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    /// Whether the command has these options, or a limit alone.
    #[arg(skip = true)]
    has_all: bool,
}

impl Paging {
    /// As many as this at most.
    pub(crate) fn first(limit: u32) -> Self {
        Self { limit, all: false, has_all: false }
    }
}

/// What of an account is listed, and by which service.
#[derive(Args)]
pub(crate) struct OfAccount<S: Args> {
    #[command(flatten)]
    pub(crate) account: Account,
    #[command(flatten)]
    paging: Paging,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(crate) server: S,
}

impl<S: Args> OfAccount<S> {
    /// Asks for page after page; `ask` also takes the account.
    pub(crate) async fn list<R: Row>(
        &self,
        mut ask: impl AsyncFnMut(String, i32, String) -> Result<Page<R>>,
    ) -> Result<()> {
        list(&self.paging, self.json, PAGE, async |page_size, page_token| {
            ask(self.account.id(), page_size, page_token).await
        })
        .await
    }
}

/// What is listed.
pub(crate) trait Row {
    /// What such rows are called; the name of their list in JSON.
    const NAME: &'static str;
    const COLUMNS: &'static [Column];

    /// One text a column.
    fn cells(&self) -> Vec<String>;

    fn json(&self) -> Value;
}

/// Some rows.
pub(crate) struct Page<R> {
    pub(crate) rows: Vec<R>,
    /// Leads to the next one; empty: it is the last.
    pub(crate) next: String,
    /// How many there are, where that is told.
    pub(crate) total: Option<i64>,
}

/// Asks for page after page, of `most` rows at most, and prints each as it comes. `ask` takes how many rows are wanted
/// and which page, by its token. JSON is cut off where a later page fails: then the command fails.
pub(crate) async fn list<R: Row>(
    paging: &Paging,
    json: bool,
    most: u32,
    mut ask: impl AsyncFnMut(i32, String) -> Result<Page<R>>,
) -> Result<()> {
    let mut form =
        if json { Form::Json { begun: false, rows: false } } else { Form::Table(Table::new(R::COLUMNS)) };
    let (mut wanted, mut printed) = (if paging.all { u32::MAX } else { paging.limit }, 0_u64);
    let mut token = String::new();
    loop {
        let page = ask(wanted.min(most).try_into()?, token).await?;
        print(&form.page(&page.rows))?;
        printed += page.rows.len() as u64;
        if !paging.all {
            wanted = wanted.saturating_sub(page.rows.len().try_into()?);
        }
        if page.next.is_empty() || wanted == 0 {
            return form.end::<R>(printed, !page.next.is_empty(), page.total, paging.has_all);
        }
        token = page.next;
    }
}

enum Form {
    Json {
        begun: bool,
        /// Whether there was one already.
        rows: bool,
    },
    Table(Table),
}

impl Form {
    fn page<R: Row>(&mut self, rows: &[R]) -> String {
        match self {
            Self::Table(_) if rows.is_empty() => String::new(),
            Self::Table(table) => table.lines(rows.iter().map(Row::cells)),
            Self::Json { begun, rows: any } => {
                let mut text = String::new();
                if !*begun {
                    text.push_str(&format!("{{\"{}\": [", R::NAME));
                    *begun = true;
                }
                for row in rows {
                    text.push_str(if *any { ",\n  " } else { "\n  " });
                    text.push_str(&row.json().to_string());
                    *any = true;
                }
                text
            }
        }
    }

    /// What follows the last row. Beside a table it goes to standard error, so that what is piped on is rows.
    fn end<R: Row>(self, printed: u64, more: bool, total: Option<i64>, has_all: bool) -> Result<()> {
        let table = match self {
            Self::Json { .. } => {
                let total = total.map(|total| format!(", \"total\": {total}")).unwrap_or_default();
                return print(&format!("\n], \"more\": {more}{total}}}\n"));
            }
            Self::Table(table) => table,
        };
        let help =
            if has_all { "--all or a higher --limit lists more" } else { "a higher --limit lists more" };
        match (printed, more, total) {
            (0, ..) => eprintln!("No {}.", R::NAME),
            (_, true, Some(total)) => {
                eprintln!("{} of {} {}; {help}.", thousands(printed), thousands(total), R::NAME);
            }
            (_, true, None) => eprintln!("The first {} {}; {help}.", thousands(printed), R::NAME),
            _ => {}
        }
        let left_out = table.left_out();
        if !left_out.is_empty() {
            eprintln!("Left out for want of width: {}.", left_out.join(", "));
        }
        Ok(())
    }
}
