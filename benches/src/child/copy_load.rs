use anyhow::{Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use chrono::{DateTime, NaiveDate, Utc};
use sqlx::{Connection as _, PgConnection};

use super::batches::{self, Batch, Sender, WorkloadArgs};
use crate::{process, workload::Event};

/// Columns of the raw log, in the order that [`put_row`] writes them.
const COLUMNS: &str = "event_id, eco_id, event_day, event_time, period_start, segment, units_count, endpoint, \
                       route, method, status_code, response_time_ms, api_key_id, admission_id, test_mode, late";
const COLUMN_COUNT: i16 = 16;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: String,
    #[arg(long)]
    period_start: DateTime<Utc>,
    #[command(flatten)]
    workload: WorkloadArgs,
}

pub(super) async fn run(args: Args) -> Result<()> {
    // The partition itself: the reference does not pay for finding it.
    let partition = format!("eco_api_usage_p{}", Utc::now().format("%Y%m%d"));
    let statement = format!("copy {partition} ({COLUMNS}) from stdin (format binary)");
    let mut senders = Vec::new();
    for _ in 0..args.workload.connections() {
        let connection = PgConnection::connect(&args.database_url).await?;
        senders.push(Connection { connection, statement: statement.clone() });
    }
    let encode = |events| encode(events, args.period_start);
    process::report(&batches::run(&args.workload, senders, encode).await?)
}

struct Connection {
    connection: PgConnection,
    statement: String,
}

impl Sender for Connection {
    async fn send(&mut self, batch: Batch) -> Result<()> {
        let mut copy = self.connection.copy_in_raw(&self.statement).await?;
        copy.send(batch.encoded).await?;
        let rows = copy.finish().await?;
        ensure!(rows == u64::from(batch.events), "of {} rows were copied {rows}", batch.events);
        Ok(())
    }
}

/// The format of PostgreSQL's documentation of COPY, "Binary Format".
fn encode(events: Vec<Event>, period_start: DateTime<Utc>) -> Bytes {
    let mut buffer = BytesMut::with_capacity(events.len() * 256);
    buffer.put_slice(b"PGCOPY\n\xff\r\n\0");
    buffer.put_i32(0); // flags
    buffer.put_i32(0); // length of a header extension
    for event in &events {
        put_row(&mut buffer, event, period_start);
    }
    buffer.put_i16(-1);
    buffer.freeze()
}

fn put_row(buffer: &mut BytesMut, event: &Event, period_start: DateTime<Utc>) {
    buffer.put_i16(COLUMN_COUNT);
    put_field(buffer, event.event_id.as_bytes());
    put_field(buffer, event.eco_id.as_bytes());
    put_field(buffer, &days(event.event_time.date_naive()).to_be_bytes());
    put_field(buffer, &microseconds(event.event_time).to_be_bytes());
    put_field(buffer, &microseconds(period_start).to_be_bytes());
    put_field(buffer, &0i32.to_be_bytes());
    put_field(buffer, &1i64.to_be_bytes());
    put_field(buffer, event.endpoint.as_bytes());
    put_null(buffer);
    put_field(buffer, b"GET");
    put_field(buffer, &event.status_code.to_be_bytes());
    put_field(buffer, &event.response_time_ms.to_be_bytes());
    put_null(buffer);
    put_null(buffer);
    put_field(buffer, &[0]);
    put_field(buffer, &[0]);
}

fn put_field(buffer: &mut BytesMut, value: &[u8]) {
    buffer.put_i32(value.len() as i32);
    buffer.put_slice(value);
}

fn put_null(buffer: &mut BytesMut) {
    buffer.put_i32(-1);
}

/// PostgreSQL counts from the year 2000.
fn days(day: NaiveDate) -> i32 {
    (day - DateTime::UNIX_EPOCH.date_naive()).num_days() as i32 - 10_957
}

fn microseconds(at: DateTime<Utc>) -> i64 {
    at.timestamp_micros() - 946_684_800_000_000
}
