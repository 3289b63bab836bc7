//! `nexus accounts`: lists, creates, and moves accounts between plans.
//!
//! | module | what it does |
//! |---|---|
//! | [`list`] | `list`: accounts with usage and revenue, by analytics-svc |
//! | [`create`] | `create`, by billing-svc |
//! | [`plan`] | `plan`: another plan for an account, by billing-svc |

mod create;
mod list;
mod plan;

use std::process::ExitCode;

use anyhow::Result;
use clap::{
    Subcommand,
    builder::{PossibleValuesParser, TypedValueParser},
};
use nexus_core::plan::{Plan, SubscriptionStatus};
use nexus_proto::billing::v1::{Account, AccountStatus};
use serde_json::{Value, json};

use crate::text::{known, plan as plan_word, rfc3339, subscription_status};

pub(crate) const HELP: &str = "\
Examples:
  nexus accounts list --sort revenue                  all accounts, with usage and revenue
  nexus accounts create --account eco_acme --email ops@acme.example --plan pro
  nexus accounts plan enterprise --account eco_acme   at once; a smaller plan comes with the end of the period";

#[derive(Subcommand)]
pub(crate) enum Action {
    /// List accounts with usage and revenue of their current period; for admins
    #[command(after_help = list::HELP)]
    List(list::ListArgs),
    /// Create an account with a subscription
    #[command(after_help = create::HELP)]
    Create(create::CreateArgs),
    /// Move an account to another plan
    #[command(after_help = plan::HELP)]
    Plan(plan::PlanArgs),
}

pub(crate) async fn run(action: Action) -> Result<ExitCode> {
    match action {
        Action::List(args) => list::run(&args).await?,
        Action::Create(args) => create::run(&args).await?,
        Action::Plan(args) => plan::run(&args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A plan on the command line, where completions offer them all.
fn a_plan() -> impl TypedValueParser<Value = Plan> {
    PossibleValuesParser::new(Plan::ALL.map(Plan::as_str)).try_map(|word| word.parse::<Plan>())
}

/// The same for a subscription's state.
fn a_status() -> impl TypedValueParser<Value = SubscriptionStatus> {
    let words = SubscriptionStatus::ALL.map(SubscriptionStatus::as_str);
    PossibleValuesParser::new(words).try_map(|word| word.parse::<SubscriptionStatus>())
}

fn account_json(account: &Account) -> Value {
    let status = match account.status() {
        AccountStatus::Unspecified => "unknown",
        AccountStatus::Active => "active",
        AccountStatus::Closed => "closed",
    };
    json!({
        "eco_id": account.eco_id,
        "email": known(&account.email),
        "status": status,
        "plan": plan_word(account.plan),
        "subscription_status": subscription_status(account.subscription_status),
        "stripe_customer_id": known(&account.stripe_customer_id),
        "stripe_subscription_id": known(&account.stripe_subscription_id),
        "billing_anchor_time": rfc3339(account.billing_anchor_time.as_ref()),
        "currency_code": account.currency_code,
        "spend_cap_micros": account.spend_cap_micros,
        "create_time": rfc3339(account.create_time.as_ref()),
        "close_time": rfc3339(account.close_time.as_ref()),
    })
}
