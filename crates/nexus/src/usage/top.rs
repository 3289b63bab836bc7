//! `nexus usage top`.

use anyhow::{Result, anyhow};
use clap::Args;
use nexus_proto::analytics::v1::{ListTopUsersRequest, TopUser};
use serde_json::{Value, json};

use crate::{
    call::Analytics,
    listing::{PAGE, Page, Paging, Row, list},
    table::Column,
    text::{self, thousands},
};

pub(super) const HELP: &str = "\
Examples:
  nexus usage top
  nexus usage top --limit 100 --json
The most usage first, ties by id; accounts without usage are not in it. For admins.
Exit code: 0 they were listed, 1 it failed.";

#[derive(Args)]
pub(crate) struct TopArgs {
    /// Accounts at most
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    limit: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Analytics,
}

pub(super) async fn run(args: &TopArgs) -> Result<()> {
    let mut analytics = args.server.client()?;
    list(&Paging::first(args.limit), args.json, PAGE, async |page_size, page_token| {
        let request = args.server.request(ListTopUsersRequest { page_size, page_token })?;
        let page = analytics.list_top_users(request).await;
        let page = page.map_err(|status| anyhow!(args.server.refused("ListTopUsers", &status)))?.into_inner();
        Ok(Page { rows: page.users, next: page.next_page_token, total: None })
    })
    .await
}

impl Row for TopUser {
    const NAME: &'static str = "accounts";
    const COLUMNS: &'static [Column] =
        &[Column::text("account"), Column::text("plan"), Column::number("calls")];

    fn cells(&self) -> Vec<String> {
        vec![self.eco_id.clone(), text::plan(self.plan).to_owned(), thousands(self.api_calls_count)]
    }

    fn json(&self) -> Value {
        json!({"eco_id": self.eco_id, "plan": text::plan(self.plan), "api_calls": self.api_calls_count})
    }
}
