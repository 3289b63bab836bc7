//! `eco_database_identity`: the server that the ledger is known to be whole on.

use sqlx::PgConnection;

/// A server, its line of history, and the database in it: a restored backup, or a standby that takes over, begins another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub system_identifier: i64,
    /// Its timeline.
    pub timeline_id: i32,
    /// The database in it: another once it was made anew, and not once it was renamed.
    pub database_oid: i64,
    /// The ledger's table: another once a backup has made it anew.
    pub ledger_oid: i64,
}

/// The server that answers now. The timeline is that of what is written now: the control file says it only after
/// the first checkpoint.
#[tracing::instrument(name = "db.eco_database_identity.current", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn current(db: &mut PgConnection) -> sqlx::Result<Identity> {
    sqlx::query_as!(
        Identity,
        r#"select system_identifier as "system_identifier!", nexus_timeline() as "timeline_id!",
                  d.oid::bigint as "database_oid!", 'eco_overage_charges'::regclass::oid::bigint as "ledger_oid!"
           from pg_control_system(), pg_database d where d.datname = current_database()"#
    )
    .fetch_one(db)
    .await
}

/// The server that is remembered.
#[tracing::instrument(name = "db.eco_database_identity.remembered", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn remembered(db: &mut PgConnection) -> sqlx::Result<Identity> {
    sqlx::query_as!(
        Identity,
        "select system_identifier, timeline_id, database_oid, ledger_oid from eco_database_identity"
    )
    .fetch_one(db)
    .await
}

/// Whether the server that answers is the one that is remembered: on another the ledger may lack rows, and what they
/// stand for would be charged again.
pub async fn is_known(db: &mut PgConnection) -> sqlx::Result<bool> {
    Ok(remembered(db).await? == current(db).await?)
}

/// Remembers the server.
#[tracing::instrument(name = "db.eco_database_identity.remember", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn remember(db: &mut PgConnection, identity: Identity) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_database_identity
         set system_identifier = $1, timeline_id = $2, database_oid = $3, ledger_oid = $4, noted_time = now()",
        identity.system_identifier,
        identity.timeline_id,
        identity.database_oid,
        identity.ledger_oid,
    )
    .execute(db)
    .await?;
    Ok(())
}
