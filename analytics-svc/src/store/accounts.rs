//! `eco_identities`: billing-svc's table, read only.

use nexus_core::id::EcoId;
use sqlx::PgConnection;

/// Whether there is such an account, closed ones included.
#[tracing::instrument(
    name = "db.eco_identities.exists",
    skip_all,
    err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn exists(connection: &mut PgConnection, eco_id: &EcoId) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select exists (select from eco_identities where eco_id = $1) as "exists!""#,
        eco_id.as_str()
    )
    .fetch_one(connection)
    .await
}
