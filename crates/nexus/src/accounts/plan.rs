//! `nexus accounts plan`.

use anyhow::{Result, anyhow};
use clap::Args;
use nexus_core::plan::Plan;
use nexus_kit::convert::plan_to_proto;
use nexus_proto::billing::v1::{ChangePlanRequest, ChangePlanResponse};
use serde_json::json;

use super::account_json;
use crate::{
    call::{Account, Billing, Once, in_doubt},
    text::{plan, print, rfc3339, utc},
};

pub(super) const HELP: &str = "\
Examples:
  nexus accounts plan enterprise --account eco_acme
  nexus accounts plan free --account eco_acme --now
An upgrade is in force now, a downgrade with the period's end unless --now. A subscription at Stripe is changed there,
too. A user changes the own account, and gets a plan that is paid for only by a subscription at Stripe; admins and
service tokens with the scope accounts.write any account.
Exit code: 0 it is changed, or will be when it says, 1 it failed.";

#[derive(Args)]
pub(crate) struct PlanArgs {
    /// The new plan
    #[arg(value_parser = super::a_plan(), value_name = "PLAN")]
    plan: Plan,
    #[command(flatten)]
    account: Account,
    /// A downgrade is in force now, too
    #[arg(long)]
    now: bool,
    #[command(flatten)]
    once: Once,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Billing,
}

pub(super) async fn run(args: &PlanArgs) -> Result<()> {
    let id = args.once.id();
    let request = ChangePlanRequest {
        eco_id: args.account.id(),
        plan: plan_to_proto(args.plan).into(),
        apply_now: args.now,
        request_id: id.to_string(),
    };
    let changed = args.server.client()?.change_plan(args.server.request(request)?).await;
    let refused = |status| {
        let failed = in_doubt(args.server.refused("ChangePlan", &status), id, &status);
        anyhow!(args.account.if_missing(failed, &args.server.credentials, &status))
    };
    let changed = changed.map_err(refused)?.into_inner();
    if args.json {
        let account = changed.account.as_ref().map(account_json);
        let apply_time = rfc3339(changed.apply_time.as_ref());
        let all =
            json!({ "account": account, "requested_plan": args.plan.as_str(), "apply_time": apply_time });
        return print(&format!("{all:#}\n"));
    }
    print(&as_text(&changed, args.plan))
}

fn as_text(changed: &ChangePlanResponse, wanted: Plan) -> String {
    let account = changed.account.clone().unwrap_or_default();
    let (eco_id, now) = (&account.eco_id, plan(account.plan));
    if now == wanted.as_str() {
        return format!("{eco_id} is on {now}.\n");
    }
    let until = utc(changed.apply_time.as_ref());
    format!("{eco_id} stays on {now} until {until}, and is on {wanted} from then on.\n")
}
