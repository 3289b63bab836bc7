use std::{collections::BTreeMap, fmt::Write};

use anyhow::Result;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, Connection as _, Executor, PgConnection};

use super::batches::{self, Batch, Sender, WorkloadArgs};
use crate::{process, workload::Event};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: String,
    #[arg(long)]
    period_start: DateTime<Utc>,
    #[command(flatten)]
    workload: WorkloadArgs,
}

/// The classic way: an insert of the rows, then a call of the counter function per account, in a transaction.
pub(super) async fn run(args: Args) -> Result<()> {
    let mut senders = Vec::new();
    for _ in 0..args.workload.connections() {
        senders.push(Connection(PgConnection::connect(&args.database_url).await?));
    }
    let encode = |events| encode(events, args.period_start);
    process::report(&batches::run(&args.workload, senders, encode).await?)
}

struct Connection(PgConnection);

impl Sender for Connection {
    async fn send(&mut self, batch: Batch) -> Result<()> {
        let statements = String::from_utf8(batch.encoded.to_vec())?;
        self.0.execute(sqlx::raw_sql(AssertSqlSafe(statements))).await?;
        Ok(())
    }
}

/// The statements of a batch: several in one message are one transaction.
fn encode(events: Vec<Event>, period_start: DateTime<Utc>) -> Bytes {
    let mut units: BTreeMap<&str, u32> = BTreeMap::new();
    let mut text =
        "insert into eco_api_usage (event_id, eco_id, event_day, event_time, period_start, segment, \
                    units_count, endpoint, method, status_code, response_time_ms, test_mode, late) values "
            .to_owned();
    for (position, e) in events.iter().enumerate() {
        let comma = if position > 0 { "," } else { "" };
        let (time, day) = (e.event_time.to_rfc3339(), e.event_time.date_naive());
        let values = format_args!(
            "{comma}('{}','{}','{day}','{time}','{period_start}',0,1,'{}','GET',{},{},false,false)",
            e.event_id, e.eco_id, e.endpoint, e.status_code, e.response_time_ms
        );
        text.write_fmt(values).expect("a string takes everything");
        *units.entry(&e.eco_id).or_default() += 1;
    }
    for (account, units) in units {
        let call = format_args!(";select increment_api_calls('{account}', {units})");
        text.write_fmt(call).expect("a string takes everything");
    }
    text.into()
}
