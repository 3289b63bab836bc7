//! `nexus accounts list`.

use anyhow::{Result, anyhow};
use clap::{Args, ValueEnum};
use nexus_core::plan::{Plan, SubscriptionStatus};
use nexus_kit::convert::{plan_to_proto, status_to_proto};
use nexus_proto::analytics::v1::{ListUsersRequest, User, UserSort};
use serde_json::{Value, json};

use crate::{
    call::Analytics,
    listing::{PAGE, Page, Paging, Row, list},
    table::Column,
    text::{known, money, plan, rfc3339, subscription_status, thousands, utc},
};

pub(super) const HELP: &str = "\
Examples:
  nexus accounts list
  nexus accounts list --plan pro --sort overage --limit 20
  nexus accounts list --prefix ann@ --status past_due
  nexus accounts list --all --json | jq -r '.accounts[].eco_id'
Pages are printed as they come. \"Each account once while accounts are added\" is promised for --sort created only.
Calls, overage and revenue are those of each account's current period. Closed accounts are not listed. For admins.
Exit code: 0 they were listed, 1 it failed; where that is on a later page, what was printed is cut off.";

#[derive(Args)]
pub(crate) struct ListArgs {
    /// Only this plan
    #[arg(long, value_parser = super::a_plan(), value_name = "PLAN")]
    plan: Option<Plan>,
    /// Only subscriptions in this state
    #[arg(long, value_parser = super::a_status(), value_name = "STATUS")]
    status: Option<SubscriptionStatus>,
    /// Only accounts whose id, or email in any case, begins with this
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
    /// Order, the most or newest first
    #[arg(long, value_enum, default_value = "usage")]
    sort: Sort,
    #[command(flatten)]
    paging: Paging,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Analytics,
}

#[derive(ValueEnum, Clone, Copy)]
enum Sort {
    /// Calls
    Usage,
    /// Overage calls
    Overage,
    /// Revenue in all
    Revenue,
    /// Time of creation
    Created,
}

pub(super) async fn run(args: &ListArgs) -> Result<()> {
    let mut analytics = args.server.client()?;
    let wanted = ListUsersRequest {
        plan: args.plan.map_or(0, |plan| plan_to_proto(plan).into()),
        status: args.status.map_or(0, |status| status_to_proto(status).into()),
        query: args.prefix.clone().unwrap_or_default(),
        sort: match args.sort {
            Sort::Usage => UserSort::Usage,
            Sort::Overage => UserSort::Overage,
            Sort::Revenue => UserSort::Revenue,
            Sort::Created => UserSort::Created,
        }
        .into(),
        ..Default::default()
    };
    list(&args.paging, args.json, PAGE, async |page_size, page_token| {
        let request = ListUsersRequest { page_size, page_token, ..wanted.clone() };
        let page = analytics.list_users(args.server.request(request)?).await;
        let page = page.map_err(|status| anyhow!(args.server.refused("ListUsers", &status)))?.into_inner();
        Ok(Page { rows: page.users, next: page.next_page_token, total: Some(page.total_size) })
    })
    .await
}

impl Row for User {
    const NAME: &'static str = "accounts";
    const COLUMNS: &'static [Column] = &[
        Column::text("account"),
        Column::text("email").spare(3),
        Column::text("plan"),
        Column::text("status").spare(1),
        Column::number("calls"),
        Column::number("overage").spare(2),
        Column::number("overage cost").spare(4),
        Column::number("revenue"),
        Column::text("created").spare(5),
        Column::text("last call").spare(6),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.eco_id.clone(),
            self.email.clone(),
            plan(self.plan).to_owned(),
            subscription_status(self.status).to_owned(),
            thousands(self.api_calls_count),
            thousands(self.overage_count),
            money(self.overage_cost_micros, &self.currency_code),
            money(self.total_revenue_micros, &self.currency_code),
            utc(self.create_time.as_ref()),
            utc(self.last_api_call_time.as_ref()),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "eco_id": self.eco_id,
            "email": known(&self.email),
            "plan": plan(self.plan),
            "status": subscription_status(self.status),
            "api_calls": self.api_calls_count,
            "overage_calls": self.overage_count,
            "overage_cost_micros": self.overage_cost_micros,
            "subscription_revenue_micros": self.subscription_revenue_micros,
            "total_revenue_micros": self.total_revenue_micros,
            "currency_code": self.currency_code,
            "create_time": rfc3339(self.create_time.as_ref()),
            "last_api_call_time": rfc3339(self.last_api_call_time.as_ref()),
        })
    }
}
