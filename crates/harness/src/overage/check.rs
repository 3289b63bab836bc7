//! What must hold after a run.

use std::collections::{HashMap, HashSet};

use anyhow::Result;
use nexus_proto::billing::v1::{ListOverageRunErrorsRequest, ProcessOverageResponse};
use sqlx::Connection;

use super::Account;
use crate::{billing::Client, stage::Seed, stripe::Stripe};

const CENT_MICROS: i64 = 10_000;
/// Differences that are told; the others are counted.
const TOLD: usize = 10;

/// What the run says of itself.
pub(super) fn answer(answer: &ProcessOverageResponse, accounts: &[Account]) -> Vec<String> {
    let good: Vec<&Account> = accounts.iter().filter(|account| account.poison.is_none()).collect();
    let cents: i64 = good.iter().map(|account| account.cents).sum();
    let expected = (accounts.len(), good.len(), accounts.len() - good.len(), cents * CENT_MICROS);
    let count = |n: i32| n.unsigned_abs() as usize;
    let told = (
        count(answer.processed_count),
        count(answer.charged_count),
        count(answer.failed_count),
        answer.total_micros,
    );
    let mut failures = Vec::new();
    if told != expected {
        failures
            .push(format!("processed, charged, failed, micros: {expected:?} is right, {told:?} was told"));
    }
    if answer.errors.len() > 1_000 {
        failures.push(format!("{} errors in one answer", answer.errors.len()));
    }
    failures
}

/// Whom it could not charge, and why.
pub(super) async fn errors(billing: &mut Client, run_id: &str, accounts: &[Account]) -> Result<Vec<String>> {
    let mut told = HashMap::new();
    let mut request =
        ListOverageRunErrorsRequest { run_id: run_id.to_owned(), page_size: 300, ..Default::default() };
    loop {
        let page = billing.errors(request.clone()).await?;
        told.extend(page.errors.into_iter().map(|error| (error.eco_id, error.reason)));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    Ok(compare("listed as failed", accounts, |account| {
        let expected = account.poison.map(|poison| poison.reason().to_owned());
        (expected, told.get(&account.eco_id).cloned())
    }))
}

/// The ledger, and what is parked.
pub(super) async fn database(seed: &Seed, accounts: &[Account]) -> Result<Vec<String>> {
    let mut connection = seed.connect().await?;
    let rows: Vec<(String, i64, i64, Option<String>)> = sqlx::query_as(
        "select r.eco_id, coalesce(sum(c.amount_micros) filter (where c.status = 'succeeded'), 0)::bigint,
                count(c.*) filter (where c.status not in ('succeeded', 'failed')), r.parked_reason
         from eco_usage_records r
         left join eco_overage_charges c on c.eco_id = r.eco_id and c.period_start = r.period_start
         group by r.eco_id, r.period_start",
    )
    .fetch_all(&mut connection)
    .await?;
    connection.close().await?;
    let kept: HashMap<_, _> =
        rows.into_iter().map(|(eco_id, micros, open, parked)| (eco_id, (micros, open, parked))).collect();
    Ok(compare("the ledger", accounts, |account| {
        let parked = account.poison.map(|poison| poison.reason().to_owned());
        let micros = if parked.is_some() { 0 } else { account.cents * CENT_MICROS };
        (Some((micros, 0, parked)), kept.get(&account.eco_id).cloned())
    }))
}

/// What Stripe has: one item for each charge, with what is owed.
pub(super) async fn stripe(stripe: &Stripe, accounts: &[Account]) -> Result<Vec<String>> {
    let items = stripe.items().await?;
    let ours: Vec<_> = items.iter().filter(|item| item.currency == "usd").collect();
    let charges: HashSet<_> = ours.iter().map(|item| item.metadata.get("charge_id")).collect();
    let mut failures = Vec::new();
    if charges.len() != ours.len() {
        failures.push(format!("{} items at Stripe, of {} charges", ours.len(), charges.len()));
    }
    let mut cents: HashMap<&str, i64> = HashMap::new();
    for item in ours {
        *cents.entry(item.customer.as_str()).or_default() += item.amount;
    }
    failures.extend(compare("Stripe", accounts, |account| {
        let expected = account.poison.is_none().then_some(account.cents);
        (expected, cents.get(account.customer.as_str()).copied())
    }));
    Ok(failures)
}

/// The accounts of which something else is known than what is right.
fn compare<T: PartialEq + std::fmt::Debug>(
    what: &str,
    accounts: &[Account],
    of: impl Fn(&Account) -> (T, T),
) -> Vec<String> {
    let differ = accounts.iter().filter_map(|account| {
        let (right, is) = of(account);
        (right != is).then(|| format!("{what}: {} is {is:?}, {right:?} is right", account.eco_id))
    });
    let mut differ: Vec<String> = differ.collect();
    if differ.len() > TOLD {
        let others = format!("{what}: {} others differ", differ.len() - TOLD);
        differ.truncate(TOLD);
        differ.push(others);
    }
    differ
}
