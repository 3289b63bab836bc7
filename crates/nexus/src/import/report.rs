//! What an import found, and what it would cost.

use std::{collections::BTreeMap, fmt};

use chrono::{DateTime, Utc};
use nexus_core::{
    money::{self, Currency, UnitPrice},
    plan::Plan,
};
use nexus_kit::convert;
use nexus_proto::billing::v1::{PlanPrice, PlanVersion};

use super::{
    args::ImportArgs,
    send::{Accounts, Sent, Times},
    show,
    survey::Survey,
};
use crate::text::{money as amount, thousands};

/// Accounts over a limit that are named; more are only counted.
const NAMED: usize = 10;

/// All that is said at the end.
pub(super) struct Report<'a> {
    pub(super) args: &'a ImportArgs,
    pub(super) survey: &'a Survey,
    pub(super) times: &'a Times,
    pub(super) last: DateTime<Utc>,
    pub(super) accounts: &'a Accounts,
    pub(super) sent: Sent,
    pub(super) plans: Vec<PlanVersion>,
}

/// Said of a file without a single call.
pub(super) fn nothing(args: &ImportArgs, survey: &Survey) -> String {
    format!(
        "{}: no calls ({} malformed lines, {} empty ones)\n",
        args.file.display(),
        survey.malformed,
        survey.empty
    )
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { survey, sent, accounts, times, .. } = self;
        writeln!(f, "{}", self.args.file.display())?;
        let mut row = |what: &str, value: String| writeln!(f, "  {what:<11} {value}");
        row(
            "calls",
            format!(
                "{} ({} new, {} recorded before)",
                thousands(survey.calls),
                thousands(sent.new),
                thousands(sent.duplicates)
            ),
        )?;
        if survey.malformed > 0 {
            row("malformed", format!("{} lines, skipped", thousands(survey.malformed)))?;
        }
        if survey.empty > 0 {
            row("empty lines", format!("{}, skipped", thousands(survey.empty)))?;
        }
        for (reason, count) in &sent.refused {
            row("refused", format!("{}: {reason}", thousands(*count)))?;
        }
        row(
            "accounts",
            format!(
                "{} ({} new, {} existing{})",
                thousands(survey.accounts.len() as u64),
                thousands(accounts.created as u64),
                thousands(accounts.existing as u64),
                if accounts.missing > 0 { format!(", {} unknown", accounts.missing) } else { String::new() }
            ),
        )?;
        if let Some(((eco_id, _), calls)) = sent.calls.iter().max_by_key(|(key, calls)| (**calls, *key)) {
            row("most", format!("{eco_id}: {} calls in a period", thousands(*calls)))?;
        }
        row("times", format!("{} to {}", show(times.anchor), show(self.last + times.shift)))?;
        if !times.shift.is_zero() {
            row("moved by", format!("{} s", times.shift.num_seconds()))?;
        }
        if accounts.missing > 0 && self.args.create_accounts.is_none() {
            row("hint", "--create-accounts PLAN makes the unknown accounts".to_owned())?;
        }
        self.own_limits(f)?;
        self.on_each_plan(f)
    }
}

impl Report<'_> {
    /// Who is over the limit of the plan they are on.
    fn own_limits(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut over: Vec<(&str, Plan, i64, i64)> = Vec::new();
        for ((eco_id, _), calls) in &self.sent.calls {
            let Some((plan, _)) = self.accounts.known.get(eco_id) else { continue };
            let Some(version) = self.plans.iter().find(|p| p.plan() == convert::plan_to_proto(*plan)) else {
                continue;
            };
            if version.included_count >= 0 && *calls > version.included_count {
                over.push((eco_id, *plan, *calls, version.included_count));
            }
        }
        over.sort_unstable_by_key(|(eco_id, _, calls, _)| (std::cmp::Reverse(*calls), *eco_id));
        if over.is_empty() {
            return writeln!(f, "Nobody is over the limit of their plan by this file alone.");
        }
        writeln!(f, "Over the limit of their plan by this file alone: {}", over.len())?;
        for (eco_id, plan, calls, included) in over.iter().take(NAMED) {
            let (calls, included) = (thousands(*calls), thousands(*included));
            writeln!(f, "  {eco_id:<40} {calls} calls in a period, {plan} includes {included}")?;
        }
        if over.len() > NAMED {
            writeln!(f, "  … and {} more", over.len() - NAMED)?;
        }
        Ok(())
    }

    /// What every account would meet, were all on one plan.
    fn on_each_plan(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Were all {} accounts on one plan:", thousands(self.survey.accounts.len() as u64))?;
        for version in &self.plans {
            let Ok(Some(plan)) = convert::plan_from_proto(version.plan) else { continue };
            let Some(price) = version.prices.iter().find(|p| p.currency_code == Currency::USD.as_str())
            else {
                continue;
            };
            writeln!(f, "  {:<11} {}", plan.as_str(), Outlook::of(self, version, price).text(version))?;
        }
        Ok(())
    }
}

/// What one plan would mean.
struct Outlook<'a> {
    over: usize,
    units: i64,
    /// What they cost; `None`: more than an amount can hold.
    micros: Option<i64>,
    price: &'a PlanPrice,
}

impl<'a> Outlook<'a> {
    fn of(report: &Report<'_>, version: &PlanVersion, price: &'a PlanPrice) -> Self {
        let included = (version.included_count >= 0).then_some(version.included_count);
        let unit_price =
            UnitPrice { micros: price.overage_micros, per_units: price.overage_per_count.max(1) };
        let mut over: BTreeMap<&str, ()> = BTreeMap::new();
        let mut units = Vec::new();
        for ((eco_id, _), calls) in &report.sent.calls {
            let overage = money::overage_units(included, 0, *calls);
            if overage > 0 {
                over.insert(eco_id, ());
                units.push(overage);
            }
        }
        Self { over: over.len(), micros: revenue(unit_price, &units), units: units.iter().sum(), price }
    }

    fn text(&self, version: &PlanVersion) -> String {
        if version.included_count < 0 {
            return "no limit, no overage".to_owned();
        }
        let included = thousands(version.included_count);
        if self.over == 0 {
            return format!("nobody over {included} calls a period");
        }
        let (over, units) = (self.over, thousands(self.units));
        let who = if over == 1 { "1 account".to_owned() } else { format!("{over} accounts") };
        if version.hard_limit {
            format!("{who} over {included} calls a period: {units} calls would be refused")
        } else {
            let brings = match self.micros {
                Some(micros) => amount(micros, &self.price.currency_code),
                None => "more than an amount can hold (out of range)".to_owned(),
            };
            format!("{who} over {included} calls a period: {units} calls of overage bring {brings}")
        }
    }
}

/// Micros that overages of so many units bring, each in whole cents; `None`: out of range.
fn revenue(price: UnitPrice, overages: &[i64]) -> Option<i64> {
    overages.iter().try_fold(0_i64, |sum, units| {
        let exact = price.cost(*units).ok()?;
        sum.checked_add(Currency::USD.minor_unit().floor(exact).0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revenue_is_in_whole_cents_or_out_of_range() {
        let price = UnitPrice { micros: 1_000, per_units: 1 };
        assert_eq!(revenue(price, &[19, 10_000]), Some(10_010_000));
        assert_eq!(revenue(price, &[i64::MAX]), None);
        assert_eq!(revenue(price, &[i64::MAX / 1_500, i64::MAX / 1_500]), None);
    }
}
