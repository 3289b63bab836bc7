//! `nexus charges list`.

use anyhow::{Result, anyhow};
use nexus_proto::billing::v1::{Charge, ListChargesRequest};
use serde_json::Value;

use super::{charge_json, status_word};
use crate::{
    call::Billing,
    listing::{OfAccount, Page, Row},
    table::Column,
    text::{day, money, thousands, utc},
};

pub(super) const HELP: &str = "\
Examples:
  nexus charges list
  nexus charges list --account eco_acme --limit 10
  nexus charges list --account eco_acme --all --json | jq '[.charges[] | select(.status == \"succeeded\").amount_micros] | add'
A user sees the own account's; admins and service tokens with the scope billing.run any account's.
Exit code: 0 they were listed, 1 it failed.";

pub(crate) type ListArgs = OfAccount<Billing>;

pub(super) async fn run(args: &ListArgs) -> Result<()> {
    let mut billing = args.server.client()?;
    args.list(async |eco_id, page_size, page_token| {
        let request = args.server.request(ListChargesRequest { eco_id, page_size, page_token })?;
        let page = billing.list_charges(request).await;
        let refused = |status| {
            let failed = args.server.refused("ListCharges", &status);
            anyhow!(args.account.if_missing(failed, &args.server.credentials, &status))
        };
        let page = page.map_err(refused)?.into_inner();
        Ok(Page { rows: page.charges, next: page.next_page_token, total: None })
    })
    .await
}

impl Row for Charge {
    const NAME: &'static str = "charges";
    const COLUMNS: &'static [Column] = &[
        Column::text("charge"),
        Column::text("made").spare(1),
        Column::text("period from").spare(2),
        Column::number("to calls").spare(3),
        Column::number("amount"),
        Column::text("status"),
        Column::text("item at Stripe").spare(4),
        Column::text("failure").spare(5),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.charge_id.clone(),
            utc(self.create_time.as_ref()),
            day(self.period_start_time.as_ref()),
            thousands(self.to_count),
            money(self.amount_micros, &self.currency_code),
            status_word(self).to_owned(),
            self.stripe_invoice_item_id.clone(),
            self.failure_reason.clone(),
        ]
    }

    fn json(&self) -> Value {
        charge_json(self)
    }
}
