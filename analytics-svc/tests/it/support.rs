//! A running server with a database of its own, and seeds written as the other services would.

use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use nexus_analytics::Config;
use nexus_client::CallOptions;
use nexus_core::{
    plan::Plan,
    sketch::{self, Sketch},
};
use nexus_kit::{config::DbArgs, db::MIGRATOR, serve::Listeners, status};
use nexus_proto::analytics::v1::analytics_service_client::AnalyticsServiceClient;
use nexus_testkit::{
    db::TestDb,
    seed,
    settings::{self, ANY_PORT},
};
use sqlx::PgPool;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Response, Status, transport::Channel};
use tonic_types::StatusExt;

/// A running server; it stops when this is dropped.
pub(crate) struct App {
    pub(crate) db: TestDb,
    pub(crate) client: AnalyticsServiceClient<Channel>,
    _stop: DropGuard,
}

impl App {
    /// A server with an empty, migrated database.
    pub(crate) async fn start() -> Result<Self> {
        Self::on(TestDb::new().await?).await
    }

    /// A server with this database.
    pub(crate) async fn on(db: TestDb) -> Result<Self> {
        Self::with(db.args(), db).await
    }

    /// The same with settings of its own.
    pub(crate) async fn with(args: DbArgs, db: TestDb) -> Result<Self> {
        let (client, stop) = serve(args).await?;
        Ok(Self { db, client, _stop: stop })
    }

    /// Where seeds are written, as superuser.
    pub(crate) fn pool(&self) -> &PgPool {
        &self.db.pool
    }
}

/// A database as it was before the migration of this number.
pub(crate) async fn database_before(number: i64) -> Result<TestDb> {
    let db = TestDb::new().await?;
    sqlx::raw_sql("drop schema public cascade; create schema public").execute(&db.pool).await?;
    let mut connection = nexus_kit::db::acquire(&db.pool).await?;
    MIGRATOR.run_direct(Some(number - 1), &mut *connection, false).await?;
    Ok(db)
}

/// Brings it to where it is now.
pub(crate) async fn migrate(db: &TestDb) -> Result<()> {
    let mut connection = nexus_kit::db::acquire(&db.pool).await?;
    Ok(MIGRATOR.run_direct(None, &mut *connection, false).await?)
}

/// A server that uses this database, wherever it is.
pub(crate) async fn serve(db: DbArgs) -> Result<(AnalyticsServiceClient<Channel>, DropGuard)> {
    let config = Config {
        grpc_addr: ANY_PORT,
        metrics_addr: ANY_PORT,
        auth: settings::auth_args(),
        serve: settings::serve_args(),
        db,
    };
    let listeners = Listeners::bind(config.grpc_addr, config.metrics_addr).await?;
    let address = format!("http://{}", listeners.main_addr()?);
    let shutdown = CancellationToken::new();
    tokio::spawn(nexus_analytics::serve(config, listeners, shutdown.clone()));
    Ok((nexus_client::analytics(nexus_client::channel(&address)?), shutdown.drop_guard()))
}

/// What a caller with this token sends.
pub(crate) fn bearer(token: &str) -> Result<CallOptions> {
    Ok(CallOptions::bearer(token, Duration::from_secs(20))?)
}

/// The admin.
pub(crate) fn admin() -> Result<CallOptions> {
    bearer(&settings::admin_token()?)
}

/// The user of an account.
pub(crate) fn user(eco_id: &str) -> Result<CallOptions> {
    bearer(&settings::user_token(eco_id)?)
}

/// The status of a call that must be refused.
pub(crate) fn refusal<T: std::fmt::Debug>(result: Result<Response<T>, Status>) -> Result<Status> {
    result.err().context("the call should have been refused")
}

/// Asserts the code and the reason of a refusal.
pub(crate) fn assert_refused<T: std::fmt::Debug>(
    result: Result<Response<T>, Status>,
    code: Code,
    reason: &str,
) -> Result<()> {
    let refused = refusal(result)?;
    assert_eq!((refused.code(), status::reason(&refused).as_str()), (code, reason), "{refused:?}");
    Ok(())
}

/// The fields at fault, in the order they are named.
pub(crate) fn fields_at_fault<T: std::fmt::Debug>(
    result: Result<Response<T>, Status>,
) -> Result<Vec<String>> {
    let refused = refusal(result)?;
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    let details = refused.get_error_details();
    let fields = details.bad_request().context("a BadRequest detail")?.field_violations.iter();
    Ok(fields.map(|v| v.field.clone()).collect())
}

/// An anchor in the past, at no special day.
pub(crate) fn anchor() -> Result<DateTime<Utc>> {
    Ok("2025-03-10T08:00:00Z".parse()?)
}

/// Accounts on a plan, active.
pub(crate) async fn accounts(pool: &PgPool, plan: Plan, eco_ids: &[&str]) -> Result<()> {
    for eco_id in eco_ids {
        seed::account(pool, eco_id, plan, anchor()?).await?;
    }
    Ok(())
}

/// The UTC day so many days ago, by the database's clock.
pub(crate) async fn day(pool: &PgPool, days_ago: i32) -> Result<String> {
    let query = "select ((now() at time zone 'UTC')::date - $1)::text";
    Ok(sqlx::query_scalar(query).bind(days_ago).fetch_one(pool).await?)
}

/// A row of the rollup: calls that took these times, of `units` together. The first of them is stored as versions
/// before this one stored it.
pub(crate) struct Rollup<'a> {
    pub(crate) eco_id: &'a str,
    pub(crate) days_ago: i32,
    pub(crate) route: &'a str,
    pub(crate) method: &'a str,
    pub(crate) status_class: i16,
    pub(crate) units: i64,
    pub(crate) latencies_ms: &'a [i32],
}

impl Rollup<'_> {
    pub(crate) async fn insert(&self, pool: &PgPool) -> Result<()> {
        let mut older = Sketch::default();
        self.latencies_ms.iter().take(1).for_each(|ms| older.add(*ms));
        let entries = self.latencies_ms.iter().skip(1).map(|ms| sketch::entry(sketch::bucket(*ms), 1));
        sqlx::query(
            "insert into eco_usage_daily (eco_id, day, route, method, status_class, units_count, event_count,
                                          latency_sum_ms, latency_sketch, sketch)
             values ($1, (now() at time zone 'UTC')::date - $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(self.eco_id)
        .bind(self.days_ago)
        .bind(self.route)
        .bind(self.method)
        .bind(self.status_class)
        .bind(self.units)
        .bind(self.latencies_ms.len() as i64)
        .bind(self.latencies_ms.iter().map(|ms| i64::from(*ms)).sum::<i64>())
        .bind(older.to_pairs())
        .bind(entries.collect::<Vec<_>>())
        .execute(pool)
        .await?;
        Ok(())
    }
}

/// The summary of an account's period so many months before the current one.
pub(crate) struct Summary<'a> {
    pub(crate) eco_id: &'a str,
    pub(crate) months_ago: i32,
    pub(crate) api_calls: i64,
    pub(crate) overage_units: i64,
    pub(crate) overage_micros: i64,
}

impl Summary<'_> {
    pub(crate) async fn insert(&self, pool: &PgPool) -> Result<()> {
        sqlx::query(
            "insert into eco_usage_records (eco_id, period_start, period_end, plan, plan_version, currency_code,
                                            api_calls, overage_units, overage_micros, last_event_time)
             select i.eco_id, nexus_period_start(anchor_time, at), nexus_period_end(anchor_time, at), plan,
                    plan_version, currency_code, $3, $4, $5,
                    least(now(), nexus_period_end(anchor_time, at) - interval '1 second')
             from eco_identities i join eco_subscriptions s on s.eco_id = i.eco_id and ended_time is null,
                  lateral (select nexus_period_start(anchor_time, now()) - make_interval(months => $2) as at) as p
             where i.eco_id = $1",
        )
        .bind(self.eco_id)
        .bind(self.months_ago)
        .bind(self.api_calls)
        .bind(self.overage_units)
        .bind(self.overage_micros)
        .execute(pool)
        .await?;
        Ok(())
    }
}

/// Usage of the current period without overage.
pub(crate) async fn usage(pool: &PgPool, eco_id: &str, api_calls: i64) -> Result<()> {
    Summary { eco_id, months_ago: 0, api_calls, overage_units: 0, overage_micros: 0 }.insert(pool).await
}

/// Gives an account's subscription another status.
pub(crate) async fn set_status(pool: &PgPool, eco_id: &str, status: &str) -> Result<()> {
    let update = "update eco_subscriptions set status = $2 where eco_id = $1 and ended_time is null";
    sqlx::query(update).bind(eco_id).bind(status).execute(pool).await?;
    Ok(())
}

/// Closes an account.
pub(crate) async fn close(pool: &PgPool, eco_id: &str) -> Result<()> {
    let update = "update eco_identities set status = 'closed', closed_time = now() where eco_id = $1";
    sqlx::query(update).bind(eco_id).execute(pool).await?;
    Ok(())
}

/// Has the figures of the accounts that there are ready, as billing-svc does.
pub(crate) async fn compute_figures(pool: &PgPool) -> Result<()> {
    sqlx::query("select nexus_compute_figures(array(select eco_id from eco_identities))")
        .execute(pool)
        .await?;
    sqlx::query("delete from eco_account_changes").execute(pool).await?;
    Ok(())
}
