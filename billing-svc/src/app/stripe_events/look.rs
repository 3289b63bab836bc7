//! A subscription that may stand otherwise at Stripe than our tables say: an event of it may have been lost.

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
/// `repair`: our tables are brought to it, as by an event.
pub async fn look_at(
    pool: &PgPool,
    context: &Context,
    id: &str,
    repair: bool,
) -> Result<Option<Difference>, Failure> {
    alone(pool, context, id, async |db| {
        context.pace.wait().await;
        let Some(found) = context.subscriptions.subscription(id).await? else {
            let ours = listed_subscriptions::ours(db, &[(id, "", None)]).await?;
            return Ok(ours.into_iter().flatten().next().and_then(|ours| missing(id, &ours)));
        };
        let Some(mut difference) = difference(db, &found).await? else { return Ok(None) };
        if repair {
            let mut savepoint = db.begin().await?;
            match bring_found(&mut savepoint, context, &found, None).await {
                Ok(_) => {
                    savepoint.commit().await?;
                    difference.repaired = self::difference(db, &found).await?.is_none();
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
