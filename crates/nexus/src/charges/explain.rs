//! `nexus charges explain`.

use anyhow::{Result, anyhow};
use clap::Args;
use nexus_proto::billing::v1::{ChargeSegment, ExplainChargeRequest, ExplainChargeResponse};
use serde_json::{Value, json};

use super::{charge_json, status_word};
use crate::{
    call::Billing,
    table::{Column, Table},
    text::{exact_money, fact, harmless, known, money, plan, price, print, thousands, units, utc},
};

pub(super) const HELP: &str = "\
Examples:
  nexus charges explain 0b9c0bd4-55a6-4a2e-8a3f-9d1d4c1a7f00
  nexus charges explain 0b9c0bd4-55a6-4a2e-8a3f-9d1d4c1a7f00 --json | jq -r .explanation
What a charge follows from was kept with it, so that it adds up for ever. A user asks about the own account's; admins
and service tokens with the scope billing.run about any.
Exit code: 0 it was told, 1 it failed.";

const SEGMENTS: &[Column] = &[
    Column::number("segment").spare(1),
    Column::text("plan"),
    Column::number("from calls").spare(2),
    Column::number("to calls"),
    Column::number("included"),
    Column::number("overage"),
    Column::number("price"),
    Column::number("cost"),
];

#[derive(Args)]
pub(crate) struct ExplainArgs {
    /// The charge (`nexus charges list` lists them)
    #[arg(value_name = "CHARGE_ID")]
    charge_id: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Billing,
}

pub(super) async fn run(args: &ExplainArgs) -> Result<()> {
    let request = args.server.request(ExplainChargeRequest { charge_id: args.charge_id.clone() })?;
    let told = args.server.client()?.explain_charge(request).await;
    let told = told.map_err(|status| anyhow!(args.server.refused("ExplainCharge", &status)))?.into_inner();
    print(&if args.json { format!("{:#}\n", as_json(&told)) } else { as_text(&told) })
}

fn as_json(told: &ExplainChargeResponse) -> Value {
    json!({
        "charge": told.charge.as_ref().map(charge_json),
        "segments": told.segments.iter().map(segment_json).collect::<Vec<_>>(),
        "due_micros": told.due_micros,
        "billed_before_micros": told.billed_before_micros,
        "currency_code": told.currency_code,
        "settled": told.settled,
        "explanation": told.explanation,
    })
}

fn segment_json(s: &ChargeSegment) -> Value {
    json!({
        "segment": s.segment,
        "plan": plan(s.plan),
        "plan_version": s.plan_version,
        "start_calls": s.start_count,
        "end_calls": s.end_count,
        "included": s.included_count,
        "overage_calls": s.overage_count,
        "price_micros": s.price_micros,
        "price_per": s.price_per_count,
        "overage_micros": s.overage_micros,
        "currency_code": s.currency_code,
    })
}

fn as_text(told: &ExplainChargeResponse) -> String {
    let charge = told.charge.clone().unwrap_or_default();
    let amount = money(charge.amount_micros, &charge.currency_code);
    let mut text =
        format!("Charge {} of {}: {amount}, {}\n", charge.charge_id, charge.eco_id, status_word(&charge));
    let (start, end) = (charge.period_start_time.as_ref(), charge.period_end_time.as_ref());
    text.push_str(&fact("period", format!("{} to {}", utc(start), utc(end))));
    text.push_str(&fact("made", utc(charge.create_time.as_ref())));
    text.push_str(&fact("number", format!("{} of its period, attempt {}", charge.sequence, charge.attempt)));
    if let Some(item) = known(&charge.stripe_invoice_item_id) {
        text.push_str(&fact("at Stripe", item));
    }
    if let Some(failure) = known(&charge.failure_reason) {
        text.push_str(&fact("failure", harmless(failure)));
    }
    // A correction follows from no counts.
    if !told.segments.is_empty() {
        let segments = Table::new(SEGMENTS).lines(told.segments.iter().map(segment_row));
        let in_currency = |micros| money(micros, &told.currency_code);
        let rounded = if told.settled { "half up" } else { "down, the period was open" };
        text.push_str(&format!("\n{segments}\n"));
        text.push_str(&fact("due", format!("{}, rounded {rounded}", in_currency(told.due_micros))));
        text.push_str(&fact("before", format!("{}, charged", in_currency(told.billed_before_micros))));
        text.push_str(&fact("this charge", amount));
    }
    text.push_str(&format!("\n{}\n", harmless(&told.explanation)));
    text
}

fn segment_row(s: &ChargeSegment) -> Vec<String> {
    vec![
        s.segment.to_string(),
        format!("{} (version {})", plan(s.plan), s.plan_version),
        thousands(s.start_count),
        thousands(s.end_count),
        units(s.included_count),
        thousands(s.overage_count),
        price(s.price_micros, s.price_per_count),
        exact_money(s.overage_micros, &s.currency_code),
    ]
}
