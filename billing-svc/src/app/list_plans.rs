//! Lists the plans.

use nexus_core::plan::Plan;
use nexus_kit::{db, page};
use sqlx::PgPool;

use crate::{domain::plan::PlanVersion, error::Error, store::plans};

/// A page of plans in their newest version, cheapest first, and the last plan of it where there is more.
/// There are as many plans as [`Plan`] has values, so all are read.
pub async fn run(
    pool: &PgPool,
    after: Option<Plan>,
    size: i64,
) -> Result<(Vec<PlanVersion>, Option<Plan>), Error> {
    let mut connection = db::acquire(pool).await?;
    let mut page = plans::list_newest(&mut connection).await?;
    page.retain(|version| after.is_none_or(|after| version.plan > after));
    let next = page::cut(&mut page, size, |last| last.plan);
    Ok((page, next))
}
