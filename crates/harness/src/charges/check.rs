//! What must hold in the end: one item at Stripe for each intent, what is owed and no more, nothing in doubt, who
//! cannot be charged is parked, and Reconcile finds nothing.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use nexus_proto::billing::v1::{ReconcileRequest, ReconcileResponse};
use sqlx::PgConnection;
use uuid::Uuid;

use super::world::Account;
use crate::{
    billing::Client,
    stripe::{Item, Poison, Stripe},
};

const CENT_MICROS: i64 = 10_000;

/// Account and start of a period.
type Key = (String, DateTime<Utc>);

pub(super) async fn all(
    db: &mut PgConnection,
    stripe: &Stripe,
    client: &mut Client,
    accounts: &[Account],
) -> Result<Vec<String>> {
    let items = stripe.items().await?;
    let mut failures = of_intents(db, &items).await?;
    failures.extend(sums(db, &items, accounts).await?);
    failures.extend(doubts(db).await?);
    failures.extend(parked(db, accounts).await?);
    failures.extend(uncollected(stripe, accounts).await?);
    let found = client.reconcile(ReconcileRequest::default()).await?;
    ensure!(!found.running && !found.already_running, "{found:?}");
    failures.extend(differences(&found));
    Ok(failures)
}

/// What Reconcile found.
pub(super) fn differences(found: &ReconcileResponse) -> impl Iterator<Item = String> {
    found.differences.iter().map(|difference| {
        format!("Reconcile: {} {} {}", difference.eco_id, difference.kind, difference.message)
    })
}

/// Every intent has one item, the one that the ledger says; one that was refused for good has none. A second one that an
/// invoice had taken before it was found has a correction, which is an intent of its own.
async fn of_intents(db: &mut PgConnection, items: &[Item]) -> Result<Vec<String>> {
    let intents: Vec<(Uuid, Vec<String>, i64)> = sqlx::query_as(
        "select charge_id, coalesce(array_agg(stripe_invoice_item_id) filter (where status = 'succeeded'), '{}'),
                count(*) filter (where status = 'succeeded' and basis ->> 'kind' is distinct from 'duplicate')
         from eco_overage_charges group by charge_id",
    )
    .fetch_all(db)
    .await?;
    let mut made: HashMap<&str, Vec<&str>> = HashMap::new();
    for item in items {
        let charge_id = item.metadata.get("charge_id").map_or("none", String::as_str);
        made.entry(charge_id).or_default().push(&item.id);
    }
    let mut failures = Vec::new();
    for (charge_id, of_ledger, succeeded) in &intents {
        let mut is = made.remove(charge_id.to_string().as_str()).unwrap_or_default();
        let mut right: Vec<&str> = of_ledger.iter().map(String::as_str).collect();
        is.sort_unstable();
        right.sort_unstable();
        if is != right || *succeeded > 1 {
            failures
                .push(format!("intent {charge_id}: Stripe has {is:?}, the ledger {right:?} ({succeeded})"));
        }
    }
    failures.extend(made.iter().map(|(charge, items)| format!("{items:?} are of no intent: {charge}")));
    Ok(failures)
}

/// Stripe's sum of each period is the ledger's, and what is owed where it can be charged.
async fn sums(db: &mut PgConnection, items: &[Item], accounts: &[Account]) -> Result<Vec<String>> {
    let rows: Vec<(String, DateTime<Utc>, i64, i64)> = sqlx::query_as(
        "select r.eco_id, r.period_start, r.billed_micros,
                coalesce((select sum(h.amount_micros) from eco_overage_charges h where h.status = 'succeeded'
                          and h.eco_id = r.eco_id and h.period_start = r.period_start), 0)::bigint
         from eco_usage_records r",
    )
    .fetch_all(db)
    .await?;
    let ledger: HashMap<Key, (i64, i64)> =
        rows.into_iter().map(|(eco_id, start, billed, sum)| ((eco_id, start), (billed, sum))).collect();
    let mut at_stripe: BTreeMap<Key, i64> = BTreeMap::new();
    for item in items {
        let said = |name: &str| item.metadata.get(name).with_context(|| format!("{item:?} without {name}"));
        let start = said("billing_period_start")?.parse()?;
        *at_stripe.entry((said("eco_id")?.clone(), start)).or_default() += item.amount;
    }
    let mut failures = Vec::new();
    for account in accounts {
        for period in &account.periods {
            let key = (account.eco_id.clone(), period.start);
            let cents = at_stripe.remove(&key).unwrap_or_default();
            let (billed, sum) = ledger.get(&key).copied().unwrap_or_default();
            let what = format!("{} from {}", account.eco_id, period.start);
            if (billed, sum) != (cents * CENT_MICROS, cents * CENT_MICROS) {
                failures.push(format!(
                    "{what}: {cents} cents at Stripe, {sum} micros in the ledger, {billed} billed"
                ));
            }
            let owed = period.cents();
            if account.lasting_poison().is_none() && cents != owed {
                failures.push(format!("{what}: {cents} cents at Stripe, {owed} are owed"));
            }
        }
    }
    failures
        .extend(at_stripe.iter().map(|(key, cents)| format!("{cents} cents of {key:?}, which is no period")));
    Ok(failures)
}

/// Nothing is left in doubt, half done, or to be looked at again.
async fn doubts(db: &mut PgConnection) -> Result<Vec<String>> {
    let mut failures = Vec::new();
    for (what, query) in [
        ("intents in doubt", "select count(*) from eco_overage_charges where status = 'pending'"),
        ("rechecks to come", "select count(*) from eco_overage_charges where recheck_time is not null"),
        ("settlements not finished", "select count(*) from eco_settlements where finished_time is null"),
        ("events not applied", "select count(*) from eco_stripe_events where processed_time is null"),
        ("ends not cleared", "select count(*) from eco_ended_subscriptions where cleared_time is null"),
        ("runs at work", "select count(*) from eco_overage_runs where status = 'running'"),
    ] {
        let count: i64 = sqlx::query_scalar(query).fetch_one(&mut *db).await?;
        if count > 0 {
            failures.push(format!("{count} {what}"));
        }
    }
    Ok(failures)
}

/// Who cannot be charged is parked with the reason, and nobody else is.
async fn parked(db: &mut PgConnection, accounts: &[Account]) -> Result<Vec<String>> {
    let rows: Vec<(String, String)> =
        sqlx::query_as("select eco_id, parked_reason from eco_usage_records where parked_reason is not null")
            .fetch_all(db)
            .await?;
    let mut parked: HashMap<String, String> = rows.into_iter().collect();
    let mut failures = Vec::new();
    for account in accounts {
        let is = parked.remove(&account.eco_id);
        let right = account.lasting_poison().map(Poison::reason);
        if is.as_deref() != right {
            failures.push(format!("{} is parked for {is:?}, {right:?} is right", account.eco_id));
        }
    }
    Ok(failures)
}

/// What was charged is on a final invoice, where one has come: by a renewal, after the end of a subscription, or after the
/// settlement of a period that no subscription's invoice takes.
async fn uncollected(stripe: &Stripe, accounts: &[Account]) -> Result<Vec<String>> {
    let mut failures = Vec::new();
    for item in stripe.open_items().await? {
        let start: Option<DateTime<Utc>> =
            item.metadata.get("billing_period_start").and_then(|start| start.parse().ok());
        let account = accounts.iter().find(|account| account.customer == item.customer);
        let is_collected = account.is_some_and(|account| {
            let mut periods = account.periods.iter();
            let is_settled = periods.any(|period| Some(period.start) == start && period.is_settled);
            account.lasting_poison().is_none() && (account.subscription.is_some() || is_settled)
        });
        if is_collected {
            failures.push(format!("on no final invoice: {item:?}"));
        }
    }
    Ok(failures)
}
