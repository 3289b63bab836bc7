//! `nexus accounts create`.

use anyhow::{Result, anyhow};
use chrono::{DateTime, Utc};
use clap::Args;
use nexus_core::plan::Plan;
use nexus_kit::convert::{plan_to_proto, timestamp};
use nexus_proto::billing::v1::{Account, CreateAccountRequest};

use super::account_json;
use crate::{
    call::{Billing, Once, in_doubt},
    text::{fact, known, plan, print, subscription_status, utc},
};

pub(super) const HELP: &str = "\
Examples:
  nexus accounts create --account eco_acme --email ops@acme.example --plan pro
  ID=$(nexus accounts create --plan free --json | jq -r .eco_id)
For admins, and service tokens with the scope accounts.write.
Exit code: 0 it is there, 1 it failed.";

#[derive(Args)]
pub(crate) struct CreateArgs {
    /// Its id: `eco_` and 1 to 60 characters of [A-Za-z0-9_.:-]; default: a random one
    #[arg(long, value_name = "ID")]
    account: Option<String>,
    /// Email
    #[arg(long)]
    email: Option<String>,
    /// Plan
    #[arg(long, value_parser = super::a_plan(), default_value = "free", value_name = "PLAN")]
    plan: Plan,
    /// Currency (ISO 4217); default: USD
    #[arg(long, value_name = "CODE")]
    currency: Option<String>,
    /// Customer at Stripe, which must be there; default: for a plan that is paid for, one is made
    #[arg(long, value_name = "cus_…")]
    stripe_customer: Option<String>,
    /// Subscription at Stripe, which must be there
    #[arg(long, value_name = "sub_…")]
    stripe_subscription: Option<String>,
    /// Start of its first period (RFC 3339, e.g. 2026-11-01T00:00:00Z), not in the future; default: now
    #[arg(long, value_name = "TIME")]
    billing_anchor: Option<DateTime<Utc>>,
    #[command(flatten)]
    once: Once,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Billing,
}

pub(super) async fn run(args: &CreateArgs) -> Result<()> {
    let id = args.once.id();
    let given = |text: &Option<String>| text.clone().unwrap_or_default();
    let request = CreateAccountRequest {
        eco_id: given(&args.account),
        email: given(&args.email),
        plan: plan_to_proto(args.plan).into(),
        stripe_customer_id: given(&args.stripe_customer),
        stripe_subscription_id: given(&args.stripe_subscription),
        billing_anchor_time: args.billing_anchor.map(timestamp),
        currency_code: given(&args.currency),
        request_id: id.to_string(),
    };
    let made = args.server.client()?.create_account(args.server.request(request)?).await;
    let refused = |status| anyhow!(in_doubt(args.server.refused("CreateAccount", &status), id, &status));
    let account = made.map_err(refused)?.into_inner().account.unwrap_or_default();
    print(&if args.json { format!("{:#}\n", account_json(&account)) } else { as_text(&account) })
}

fn as_text(account: &Account) -> String {
    let mut text = format!("Account {} is there\n", account.eco_id);
    if let Some(email) = known(&account.email) {
        text.push_str(&fact("email", email));
    }
    let status = subscription_status(account.subscription_status);
    text.push_str(&fact("plan", format!("{} ({status})", plan(account.plan))));
    text.push_str(&fact("currency", &account.currency_code));
    text.push_str(&fact("periods from", utc(account.billing_anchor_time.as_ref())));
    if let Some(customer) = known(&account.stripe_customer_id) {
        text.push_str(&fact("customer", customer));
    }
    if let Some(subscription) = known(&account.stripe_subscription_id) {
        text.push_str(&fact("subscription", subscription));
    }
    text
}
