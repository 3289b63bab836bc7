//! Who changed what, newest first.

use nexus_core::id::EcoId;
use nexus_kit::{db, page};
use sqlx::PgPool;

use crate::{
    error::Error,
    store::audit::{self, Entry},
};

/// A page of entries, of an account if one is named, and the number before which it goes on where there is more.
pub async fn run(
    pool: &PgPool,
    eco_id: Option<&EcoId>,
    before: Option<i64>,
    size: i64,
) -> Result<(Vec<Entry>, Option<i64>), Error> {
    let mut connection = db::acquire(pool).await?;
    let mut page = audit::list(&mut connection, eco_id.map(EcoId::as_str), before, size + 1).await?;
    let next = page::cut(&mut page, size, |last| last.audit_id);
    Ok((page, next))
}
