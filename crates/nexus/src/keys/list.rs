//! `nexus keys list`.

use anyhow::{Result, anyhow};
use nexus_proto::usage::v1::{ApiKey, ListApiKeysRequest};
use serde_json::Value;

use super::{key_json, status_word};
use crate::{
    call::Usage,
    listing::{OfAccount, Page, Row},
    table::Column,
    text::utc,
};

pub(super) const HELP: &str = "\
Examples:
  nexus keys list
  nexus keys list --account eco_acme --all --json | jq -r '.api_keys[] | select(.last_used_time == null).key_id'
A user sees the own account's; admins and service tokens with the scope accounts.write any account's.
Exit code: 0 they were listed, 1 it failed.";

pub(crate) type ListArgs = OfAccount<Usage>;

pub(super) async fn run(args: &ListArgs) -> Result<()> {
    let mut usage = args.server.client()?;
    args.list(async |eco_id, page_size, page_token| {
        let request = args.server.request(ListApiKeysRequest { eco_id, page_size, page_token })?;
        let page = usage.list_api_keys(request).await;
        let refused = |status| {
            let failed = args.server.refused("ListApiKeys", &status);
            anyhow!(args.account.if_missing(failed, &args.server.credentials, &status))
        };
        let page = page.map_err(refused)?.into_inner();
        Ok(Page { rows: page.api_keys, next: page.next_page_token, total: None })
    })
    .await
}

impl Row for ApiKey {
    const NAME: &'static str = "api_keys";
    const COLUMNS: &'static [Column] = &[
        Column::text("key"),
        Column::text("name"),
        Column::text("scopes").spare(2),
        Column::text("mode").spare(1),
        Column::text("status"),
        Column::text("created").spare(4),
        Column::text("last used").spare(3),
    ];

    fn cells(&self) -> Vec<String> {
        let scopes = if self.scopes.is_empty() { "all".to_owned() } else { self.scopes.join(", ") };
        vec![
            self.key_id.clone(),
            self.name.clone(),
            scopes,
            if self.test_mode { "test" } else { "live" }.to_owned(),
            status_word(self).to_owned(),
            utc(self.create_time.as_ref()),
            utc(self.last_used_time.as_ref()),
        ]
    }

    fn json(&self) -> Value {
        key_json(self)
    }
}
