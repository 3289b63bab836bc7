//! Advisory locks: who refreshes the summary, who runs the billing, who reconciles, who takes webhooks
//! that are due, who is at work on an object of Stripe's.

use std::time::Duration;

use sqlx::{Connection, Executor, PgConnection};

/// Locks of this service, apart from those of others by their first number.
const CLASS: i32 = 0x6e78_6269;
const REFRESH: i32 = 1;
const RUN: i32 = 2;
const RECONCILE: i32 = 3;
const WEBHOOKS: i32 = 4;

/// Takes the refresher's lock until the transaction ends, if nobody has it.
#[tracing::instrument(name = "db.lease.try_refresh", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn try_refresh(db: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar!(r#"select pg_try_advisory_xact_lock($1, $2) as "taken!""#, CLASS, REFRESH)
        .fetch_one(db)
        .await
}

/// Waits for the refresher's lock and takes it until the transaction ends.
#[tracing::instrument(name = "db.lease.refresh", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn refresh(db: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!("select pg_advisory_xact_lock($1, $2)", CLASS, REFRESH).execute(db).await?;
    Ok(())
}

/// Takes the lock of whoever takes deliveries until the transaction ends, if nobody has it: who takes some sees all
/// that others have taken.
#[tracing::instrument(name = "db.lease.try_webhooks", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn try_webhooks(db: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar!(r#"select pg_try_advisory_xact_lock($1, $2) as "taken!""#, CLASS, WEBHOOKS)
        .fetch_one(db)
        .await
}

/// Takes an object of Stripe's until the transaction ends, if nobody has it: whoever reads it at Stripe and writes down
/// how it stands has it alone, so that what was read earlier is never written later.
#[tracing::instrument(name = "db.lease.try_stripe_object", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn try_stripe_object(db: &mut PgConnection, id: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select pg_try_advisory_xact_lock(hashtext('nexus_stripe_object'), hashtext($1)) as "taken!""#,
        id,
    )
    .fetch_one(db)
    .await
}

/// Waits for an object of Stripe's and takes it until the transaction ends, likewise. To be the first lock of its
/// transaction, which may stand idle for so long then, while Stripe is asked.
#[tracing::instrument(name = "db.lease.stripe_object", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn stripe_object(db: &mut PgConnection, id: &str, idle: Duration) -> sqlx::Result<()> {
    let idle = format!("{}ms", idle.as_millis());
    sqlx::query_scalar!("select set_config('idle_in_transaction_session_timeout', $1, true)", idle)
        .fetch_one(&mut *db)
        .await?;
    sqlx::query!("select pg_advisory_xact_lock(hashtext('nexus_stripe_object'), hashtext($1))", id)
        .execute(db)
        .await?;
    Ok(())
}

/// What one process at a time does, over all replicas, for as long as a connection of its own lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// A run of ProcessOverage.
    Run,
    /// A reconciliation.
    Reconciliation,
}

impl Lease {
    fn number(self) -> i32 {
        match self {
            Self::Run => RUN,
            Self::Reconciliation => RECONCILE,
        }
    }
}

/// Takes a lease for as long as the connection lives, if nobody has it. A holder whose machine is gone without a word
/// loses it within half a minute, when the server finds the connection dead.
#[tracing::instrument(name = "db.lease.try_take", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn try_take(db: &mut PgConnection, lease: Lease) -> sqlx::Result<bool> {
    db.execute("set tcp_keepalives_idle = 10; set tcp_keepalives_interval = 5; set tcp_keepalives_count = 3")
        .await?;
    sqlx::query_scalar!(r#"select pg_try_advisory_lock($1, $2) as "taken!""#, CLASS, lease.number())
        .fetch_one(db)
        .await
}

/// Gives a lease back, and closes the connection that held it.
#[tracing::instrument(name = "db.lease.give_back", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn give_back(mut db: PgConnection, lease: Lease) -> sqlx::Result<()> {
    sqlx::query_scalar!(r#"select pg_advisory_unlock($1, $2) as "held!""#, CLASS, lease.number())
        .fetch_one(&mut db)
        .await?;
    db.close().await
}
