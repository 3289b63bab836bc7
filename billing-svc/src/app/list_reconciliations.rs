//! The reconciliations there were, newest first.

use nexus_kit::{db, page};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{domain::reconciliation::Listed, error::Error, store::reconciliation_list};

/// A page of reconciliations, and the place after it where there is more.
pub async fn run(
    pool: &PgPool,
    after: Option<Uuid>,
    size: i64,
) -> Result<(Vec<Listed>, Option<Uuid>), Error> {
    let mut connection = db::acquire(pool).await?;
    let mut page = reconciliation_list::list(&mut connection, after, size + 1).await?;
    let next = page::cut(&mut page, size, |last| last.reconciliation_id);
    Ok((page, next))
}
