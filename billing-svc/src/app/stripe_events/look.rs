//! A subscription that may stand otherwise at Stripe than our tables say: an event of it may have been lost.

use nexus_kit::db;
use sqlx::{Connection, PgConnection, PgPool};

use super::{Context, Failure, alone, sync::bring_found};
use crate::{
    domain::{
        reconciliation::Difference,
        stripe_objects::Subscription,
        subscription_drift::{compare, missing},
    },
    store::{listed_subscriptions, stripe_prices},
};

/// Reads a subscription at Stripe while nobody else brings our tables to how it stands, and tells what differs, if anything;
/// `repairer`: on whose behalf our tables are brought to it, as by an event.
pub async fn look_at(
    pool: &PgPool,
    context: &Context,
    id: &str,
    repairer: Option<&str>,
) -> Result<Option<Difference>, Failure> {
    alone(pool, context, id, async |connection| {
        context.pace.wait().await;
        let Some(found) = context.subscriptions.subscription(id).await? else {
            let ours = listed_subscriptions::ours(connection, &[(id, "", None)]).await?;
            return Ok(ours.into_iter().flatten().next().and_then(|ours| missing(id, &ours)));
        };
        let Some(mut difference) = difference(connection, &found).await? else { return Ok(None) };
        if let Some(actor) = repairer {
            db::set_actor(connection, actor).await?;
            let mut savepoint = connection.begin().await?;
            match bring_found(&mut savepoint, context, &found, None).await {
                Ok(_) => {
                    savepoint.commit().await?;
                    difference.repaired = self::difference(connection, &found).await?.is_none();
                }
                Err(Failure::Refused(why)) => {
                    savepoint.rollback().await?;
                    tracing::warn!(
                        subscription = id,
                        why,
                        "our tables could not be brought to how it stands"
                    );
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(Some(difference))
    })
    .await
}

async fn difference(db: &mut PgConnection, found: &Subscription) -> sqlx::Result<Option<Difference>> {
    let names = (found.id.as_str(), found.customer.as_str(), found.eco_id.as_deref());
    let Some(ours) = listed_subscriptions::ours(db, &[names]).await?.into_iter().flatten().next() else {
        return Ok(None);
    };
    let priced = stripe_prices::find(db, &found.prices).await?;
    Ok(compare(found, &ours, priced))
}
