//! Puts the demo data into the database, in one transaction: all of it or nothing.
//!
//! Counters and the rollups of days with raw events are made from the raw log by the functions that serve
//! recording and rebuilding, so that all three agree by construction.

use std::{collections::HashMap, fmt::Write};

use anyhow::Result;
use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use nexus_core::{id::ApiKeyText, plan::Plan};
use sqlx::{Connection, Executor, PgConnection};

use super::{
    super::database,
    accounts::Account,
    customers::AtStripe,
    traffic::{Event, Rollup, RollupKey, Traffic},
};

/// COPY's text is sent in pieces of about this size.
const PIECE_BYTES: usize = 1 << 20;

/// Loads everything and notes that it is there.
pub(super) async fn all(
    connection: &mut PgConnection,
    accounts: &[Account],
    at_stripe: &HashMap<String, AtStripe>,
    keys: &[ApiKeyText],
    traffic: Vec<Traffic>,
) -> Result<()> {
    let mut transaction = connection.begin().await?;
    copy_accounts(&mut transaction, accounts, at_stripe).await?;

    let mut events = Vec::new();
    let mut rollups = Vec::new();
    for (account, traffic) in accounts.iter().zip(traffic) {
        events.extend(traffic.events);
        rollups.push((account, traffic.rollups));
    }
    // In the order of the ids the primary key grows at its end only.
    events.sort_unstable_by_key(|event| event.id);
    copy_keys(&mut transaction, accounts, keys, &events).await?;
    copy_events(&mut transaction, &events).await?;
    tracing::debug!(events = events.len(), "raw log is in");
    count(&mut transaction).await?;
    roll_up(&mut transaction).await?;
    tracing::debug!("counters and rollups are made");
    copy_rollups(&mut transaction, rollups).await?;
    transaction.execute("select nexus_rebuild_usage_totals()").await?;
    limit_rebuilding(&mut transaction, accounts).await?;
    database::demo_loaded(&mut transaction).await?;
    transaction.commit().await?;
    tracing::debug!("committed");
    // The planner should know before the first question comes. No question goes to the raw log.
    connection
        .execute("analyze eco_identities, eco_subscriptions, eco_usage_counters, eco_usage_daily")
        .await?;
    Ok(())
}

async fn copy_accounts(
    connection: &mut PgConnection,
    accounts: &[Account],
    at_stripe: &HashMap<String, AtStripe>,
) -> Result<()> {
    let mut identities =
        Copy::begin(connection, "eco_identities (eco_id, email, stripe_customer_id, created_time)").await?;
    for a in accounts {
        let customer = at_stripe.get(&a.eco_id).map_or("\\N", |s| &s.customer);
        identities.row(format_args!("{}\t{}\t{customer}\t{}", a.eco_id, a.email, time(a.created))).await?;
    }
    identities.end().await?;

    let columns = "eco_subscriptions (eco_id, plan, plan_version, status, anchor_time, stripe_subscription_id, started_time)";
    let mut subscriptions = Copy::begin(connection, columns).await?;
    for a in accounts {
        let subscription = at_stripe.get(&a.eco_id).map_or("\\N", |s| &s.subscription);
        let (plan, anchor, started) = (a.plan.as_str(), time(a.anchor), time(a.created));
        subscriptions
            .row(format_args!("{}\t{plan}\t1\tactive\t{anchor}\t{subscription}\t{started}", a.eco_id))
            .await?;
    }
    subscriptions.end().await
}

async fn copy_keys(
    connection: &mut PgConnection,
    accounts: &[Account],
    keys: &[ApiKeyText],
    events: &[Event],
) -> Result<()> {
    // In order of time: the last one stays.
    let last_used: HashMap<&str, DateTime<Utc>> =
        events.iter().map(|event| (event.account.as_str(), event.time)).collect();
    let columns = "eco_api_keys (key_id, eco_id, secret_sha256, name, created_time, last_used_time)";
    let mut copy = Copy::begin(connection, columns).await?;
    for (a, key) in accounts.iter().zip(keys) {
        let mut digest = String::with_capacity(64);
        for byte in key.secret_sha256() {
            write!(digest, "{byte:02x}")?;
        }
        let name = if a.plan == Plan::Free { "My first key" } else { "Production" };
        let used = last_used.get(a.eco_id.as_str()).map_or_else(|| "\\N".to_owned(), |at| time(*at));
        let (id, created) = (key.key_id(), time(a.created));
        copy.row(format_args!("{id}\t{}\t\\\\x{digest}\t{name}\t{created}\t{used}", a.eco_id)).await?;
    }
    copy.end().await
}

async fn copy_events(connection: &mut PgConnection, events: &[Event]) -> Result<()> {
    let columns = "eco_api_usage (event_id, eco_id, event_day, event_time, period_start, segment, units_count, endpoint, \
         route, method, status_code, response_time_ms, api_key_id, test_mode, late)";
    let mut copy = Copy::begin(connection, columns).await?;
    for e in events {
        let (at, period) = (time(e.time), time(e.period_start));
        let (endpoint, route) = match &e.path {
            Some(path) => (path.as_str(), e.endpoint.route),
            None => (e.endpoint.route, "\\N"),
        };
        copy.row(format_args!(
            "{}\t{}\t{}\t{at}\t{period}\t0\t{}\t{endpoint}\t{route}\t{}\t{}\t{}\t{}\tf\tf",
            e.id,
            e.account,
            e.time.date_naive(),
            e.units,
            e.endpoint.method,
            e.status,
            e.latency_ms,
            e.api_key_id
        ))
        .await?;
    }
    copy.end().await
}

/// Counters, and with them the queue from which billing-svc makes its summaries. Nothing was admitted
/// before it was recorded: all of it counts as consumed by being recorded.
async fn count(connection: &mut PgConnection) -> Result<()> {
    sqlx::query!(
        "select increment_api_calls(array_agg(eco_id), array_agg(period_start), array_agg(segment), 0::smallint,
                                    array_agg(units), array_agg(units), array_agg(0::bigint), array_agg(last))
         from (select eco_id, period_start, segment, sum(units_count)::bigint as units, max(event_time) as last
               from eco_api_usage group by 1, 2, 3 order by 1, 2, 3) as sums"
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Rollups of every day that has raw events.
async fn roll_up(connection: &mut PgConnection) -> Result<()> {
    sqlx::query_scalar!(
        "select sum(aggregate_daily_usage(day))::bigint from (select distinct event_day as day from eco_api_usage) as days"
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}

/// Rollups of the time before the current periods. On the day on which an account's period began, they
/// join those of its first raw events.
async fn copy_rollups(
    connection: &mut PgConnection,
    rollups: Vec<(&Account, HashMap<RollupKey, Rollup>)>,
) -> Result<()> {
    connection
        .execute(
            "create temporary table earlier_usage (like eco_usage_daily including defaults) on commit drop",
        )
        .await?;
    let columns = "earlier_usage (eco_id, day, route, method, status_class, units_count, event_count, latency_sum_ms, sketch)";
    let mut copy = Copy::begin(connection, columns).await?;
    for (account, rows) in rollups {
        // By key, so that the same seed gives the same table.
        let mut rows: Vec<_> = rows.into_iter().collect();
        rows.sort_unstable_by_key(|(key, _)| *key);
        for ((day, route, method, class), r) in rows {
            let mut sketch = String::new();
            for (i, number) in r.sketch.entries().enumerate() {
                write!(sketch, "{}{number}", if i > 0 { "," } else { "" })?;
            }
            copy.row(format_args!(
                "{}\t{day}\t{route}\t{method}\t{class}\t{}\t{}\t{}\t{{{sketch}}}",
                account.eco_id, r.units, r.events, r.latency_sum_ms
            ))
            .await?;
        }
    }
    copy.end().await?;
    connection
        .execute(
            "insert into eco_usage_daily as d select * from earlier_usage
             on conflict (eco_id, day, route, method, status_class) do update set
                 units_count    = d.units_count + excluded.units_count,
                 event_count    = d.event_count + excluded.event_count,
                 latency_sum_ms = d.latency_sum_ms + excluded.latency_sum_ms,
                 sketch         = nexus_sketch_add(d.sketch, excluded.sketch)",
        )
        .await?;
    Ok(())
}

/// Only days that lie wholly within everybody's current period can be rebuilt from the raw log.
async fn limit_rebuilding(connection: &mut PgConnection, accounts: &[Account]) -> Result<()> {
    let latest = accounts.iter().map(|a| a.period.start.date_naive()).max();
    let Some(from) = latest.map(|day: NaiveDate| day + TimeDelta::days(1)) else { return Ok(()) };
    sqlx::query!("update eco_usage_retention set raw_complete_from = $1", from).execute(connection).await?;
    Ok(())
}

fn time(at: DateTime<Utc>) -> String {
    at.format("%FT%T%.3fZ").to_string()
}

/// `COPY … FROM STDIN` in text form. Our values have nothing to escape.
struct Copy<'a> {
    sink: sqlx::postgres::PgCopyIn<&'a mut PgConnection>,
    buffer: String,
}

impl<'a> Copy<'a> {
    async fn begin(connection: &'a mut PgConnection, into: &str) -> Result<Self> {
        let sink = connection.copy_in_raw(&format!("copy {into} from stdin")).await?;
        Ok(Self { sink, buffer: String::with_capacity(PIECE_BYTES + 1024) })
    }

    async fn row(&mut self, row: std::fmt::Arguments<'_>) -> Result<()> {
        self.buffer.write_fmt(row)?;
        self.buffer.push('\n');
        if self.buffer.len() >= PIECE_BYTES {
            self.sink.send(self.buffer.as_bytes()).await?;
            self.buffer.clear();
        }
        Ok(())
    }

    async fn end(mut self) -> Result<()> {
        self.sink.send(self.buffer.as_bytes()).await?;
        self.sink.finish().await?;
        Ok(())
    }
}
