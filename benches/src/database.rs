//! The private PostgreSQL of a run: its defaults, durable, thrown away at the end.

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use nexus_kit::db::MIGRATOR;
use nexus_pg::{Cluster, Options};
use sqlx::{Connection, Executor, PgConnection};

/// Days of a history.
pub(crate) const HISTORY_DAYS: i32 = 90;

/// A running, migrated database with accounts on the plan `pro`, which is limited but never refused.
pub(crate) struct Database {
    cluster: Cluster,
    connection: PgConnection,
}

impl Database {
    pub(crate) async fn start(accounts: u32) -> Result<Self> {
        let cluster = Cluster::start(Options::ephemeral(), &|said| eprintln!("{said}")).await?;
        let mut connection = PgConnection::connect(&cluster.url("postgres")).await?;
        MIGRATOR.run_direct(None, &mut connection, false).await.context("migrating")?;
        let mut database = Self { cluster, connection };
        database.ensure_accounts(accounts).await?;
        Ok(database)
    }

    /// URL as superuser; a service takes its own role from there.
    pub(crate) fn url(&self) -> String {
        self.cluster.url("postgres")
    }

    /// The server's version.
    pub(crate) fn version(&self) -> &str {
        self.cluster.version()
    }

    /// Makes the first so many accounts, where they are missing, all with one anchor.
    pub(crate) async fn ensure_accounts(&mut self, accounts: u32) -> Result<()> {
        let accounts = i32::try_from(accounts)?;
        let ids = "select 'eco_bench_' || lpad(n::text, 6, '0') from generate_series(0, $1 - 1) as n";
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "insert into eco_identities (eco_id) {ids} on conflict do nothing"
        )))
        .bind(accounts)
        .execute(&mut self.connection)
        .await?;
        sqlx::query(
            "insert into eco_subscriptions (eco_id, plan, plan_version, status, anchor_time)
             select eco_id, 'pro', 1, 'active', date_trunc('day', now()) - interval '10 days'
             from eco_identities i
             where not exists (select from eco_subscriptions s where s.eco_id = i.eco_id)",
        )
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }

    /// Puts all accounts on the plan `free`, which refuses what is beyond a limit that no run reaches.
    pub(crate) async fn limit_hard(&mut self) -> Result<()> {
        for statement in [
            "update eco_plans set included_units = 1000000000 where plan = 'free'",
            "update eco_subscriptions set plan = 'free'",
        ] {
            self.connection.execute(statement).await?;
        }
        Ok(())
    }

    /// Changes the plan of one to `free`.
    pub(crate) async fn put_on_free(&mut self, eco_id: &str) -> Result<()> {
        sqlx::query("update eco_subscriptions set plan = 'free' where eco_id = $1")
            .bind(eco_id)
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }

    /// Has each of the first accounts owe the price of so many units beyond its plan, and be a customer at Stripe.
    pub(crate) async fn let_owe(&mut self, customers: &[String], units: i64) -> Result<()> {
        self.ensure_accounts(u32::try_from(customers.len())?).await?;
        sqlx::query(
            "update eco_identities i set stripe_customer_id = c.customer
             from unnest($1::text[]) with ordinality as c (customer, n)
             where i.eco_id = 'eco_bench_' || lpad((c.n - 1)::text, 6, '0')",
        )
        .bind(customers)
        .execute(&mut self.connection)
        .await?;
        sqlx::query(
            "select increment_api_calls(array_agg(eco_id), array_agg(start), array_agg(0), 1::smallint,
                        array_agg(units), array_agg(units), array_agg(0::bigint), array_agg(now()))
             from (select s.eco_id, nexus_period_start(s.anchor_time, now()) as start, 100000 + $1 as units
                   from eco_subscriptions s) u",
        )
        .bind(units)
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }

    /// Accounts whose charges are at Stripe, and Σ of them in micros.
    pub(crate) async fn charged(&mut self) -> Result<(i64, i64)> {
        let query = "select count(distinct eco_id), coalesce(sum(amount_micros), 0)::bigint
                     from eco_overage_charges where status = 'succeeded'";
        Ok(sqlx::query_as(query).fetch_one(&mut self.connection).await?)
    }

    /// Waits until the queue of changed periods is empty, and has the planner know the tables.
    pub(crate) async fn settle_down(&mut self) -> Result<()> {
        while sqlx::query_scalar("select exists (select from eco_usage_changes)")
            .fetch_one(&mut self.connection)
            .await?
        {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        for statement in ["vacuum analyze", "checkpoint"] {
            self.connection.execute(statement).await?;
        }
        Ok(())
    }

    /// Writes so many events of the last days, dealt out among the first so many accounts, and the counters that they
    /// add up to, as two writers would.
    pub(crate) async fn fill_history(&mut self, accounts: u32, events: u32) -> Result<()> {
        let ensured = "select nexus_ensure_usage_partitions((now() at time zone 'UTC')::date - $1, (now() at time zone 'UTC')::date)";
        sqlx::query(ensured).bind(HISTORY_DAYS).execute(&mut self.connection).await?;
        let (accounts, events) = (i64::from(accounts), i64::from(events));
        sqlx::query(
            "insert into eco_api_usage
                 (event_id, eco_id, event_day, event_time, period_start, segment, units_count, endpoint, method,
                  status_code, response_time_ms, test_mode, late)
             select lpad(to_hex(n), 32, '0')::uuid, 'eco_bench_' || lpad((n % $1)::text, 6, '0'), day,
                    at + (n % 86400) * interval '1 second', period_start, 0, 1, '/v1/orders/' || n / $1 % 20, 'GET', 200, 20, false, false
             from (select d, ((now() at time zone 'UTC')::date - $3 + d) as day from generate_series(1, $3) as d) as days
             cross join lateral (select day::timestamp at time zone 'UTC' as at) as t
             cross join lateral (select nexus_period_start(anchor_time, at) as period_start
                                 from eco_subscriptions limit 1) as p
             cross join lateral generate_series($2 * (d - 1) / $3 + 1, $2 * d / $3) as n",
        )
        .bind(accounts)
        .bind(events)
        .bind(HISTORY_DAYS)
        .execute(&mut self.connection)
        .await?;
        self.connection
            .execute(
                "insert into eco_usage_counters
                     (eco_id, period_start, segment, slot, recorded_units, unadmitted_units, test_units, last_event_time)
                 select eco_id, period_start, 0, get_byte(uuid_send(event_id), 15) % 2, sum(units_count), sum(units_count), 0,
                        max(event_time)
                 from eco_api_usage group by 1, 2, 3, 4",
            )
            .await?;
        for statement in ["vacuum analyze", "checkpoint"] {
            self.connection.execute(statement).await?;
        }
        Ok(())
    }

    /// Writes what the raw log adds up to besides the counters, as the services would: rollups, summaries and figures of all
    /// accounts, which differ from each other.
    pub(crate) async fn fill_summaries(&mut self) -> Result<()> {
        for statement in [
            "insert into eco_usage_hourly (eco_id, hour, route, method, status_class, units_count, event_count,
                                           latency_sum_ms, sketch)
             select eco_id, date_trunc('hour', event_time, 'UTC'), endpoint, method, 2, sum(units_count), count(*),
                    sum(response_time_ms), array[(count(*) << 10) + nexus_sketch_bucket(20) + 1]
             from eco_api_usage group by 1, 2, 3, 4",
            "insert into eco_usage_daily (eco_id, day, route, method, status_class, units_count, event_count,
                                          latency_sum_ms, sketch)
             select eco_id, (hour at time zone 'UTC')::date, route, method, status_class, sum(units_count),
                    sum(event_count), sum(latency_sum_ms), nexus_sketch_compact(nexus_sketch_all(sketch))
             from eco_usage_hourly group by 1, 2, 3, 4, 5",
            "select nexus_rebuild_usage_totals()",
            "insert into eco_usage_records (eco_id, period_start, period_end, plan, plan_version, currency_code, api_calls,
                                            overage_units, overage_micros, last_event_time)
             select s.eco_id, nexus_period_start(s.anchor_time, now()), nexus_period_end(s.anchor_time, now()),
                    'pro', 1, 'USD', u.units, greatest(0, u.units - 100000), greatest(0, u.units - 100000) * 1000, now()
             from eco_subscriptions s, lateral (select (hashtext(s.eco_id) & 262143)::bigint as units) u",
            "select nexus_compute_figures(array(select eco_id from eco_identities))",
            "delete from eco_account_changes",
            "vacuum analyze",
            "checkpoint",
        ] {
            self.connection.execute(statement).await?;
        }
        Ok(())
    }

    /// Entries of the queue that the summary is refreshed from.
    pub(crate) async fn summary_is_behind(&mut self) -> Result<i64> {
        let query = "select count(*) from eco_usage_changes";
        Ok(sqlx::query_scalar(query).fetch_one(&mut self.connection).await?)
    }

    /// How often the raw log's partitions were read so far, by whomever.
    pub(crate) async fn raw_log_scans(&mut self) -> Result<i64> {
        let scans = "select coalesce(sum(seq_scan + idx_scan), 0)::bigint from pg_stat_user_tables
                     where relname like 'eco_api_usage%'";
        Ok(sqlx::query_scalar(scans).fetch_one(&mut self.connection).await?)
    }

    /// Start of the period that all accounts are in.
    pub(crate) async fn period_start(&mut self) -> Result<DateTime<Utc>> {
        let query = "select nexus_period_start(anchor_time, now()) from eco_subscriptions limit 1";
        Ok(sqlx::query_scalar(query).fetch_one(&mut self.connection).await?)
    }

    /// Empties what usage-svc writes, so that every round starts from the same state.
    pub(crate) async fn clear_usage(&mut self) -> Result<()> {
        self.connection
            .execute(
                "truncate eco_api_usage, eco_usage_counters, eco_usage_changes, eco_usage_hourly, eco_usage_daily,
                          eco_usage_totals, eco_quota_usage, eco_quota_leases",
            )
            .await?;
        for statement in ["vacuum analyze", "checkpoint"] {
            self.connection.execute(statement).await?;
        }
        Ok(())
    }

    /// Fails unless exactly so many units are in the raw log, in the counters, in both rollups and in the totals: a figure of
    /// lost or doubled events would be worth nothing.
    pub(crate) async fn ensure_counted(&mut self, units: u64) -> Result<()> {
        let counted: (i64, i64, i64, i64, i64) = sqlx::query_as(
            "select (select coalesce(sum(units_count), 0)::bigint from eco_api_usage),
                    (select coalesce(sum(recorded_units), 0)::bigint from eco_usage_counters),
                    (select coalesce(sum(units_count), 0)::bigint from eco_usage_hourly),
                    (select coalesce(sum(units_count), 0)::bigint from eco_usage_daily),
                    (select coalesce(sum(units_count), 0)::bigint from eco_usage_totals)",
        )
        .fetch_one(&mut self.connection)
        .await?;
        let units = i64::try_from(units)?;
        ensure!(
            counted == (units, units, units, units, units),
            "{units} were acknowledged, counted are {counted:?}"
        );
        Ok(())
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.connection.close().await?;
        Ok(self.cluster.stop().await?)
    }
}
