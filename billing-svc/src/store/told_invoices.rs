//! `eco_stripe_events` read as what Stripe told of a customer's invoices.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgConnection;

/// An invoice as the last event about it has it.
#[derive(Debug, Clone)]
pub struct Told {
    /// Id at Stripe.
    pub invoice_id: String,
    /// When it was made, in seconds.
    pub created_seconds: i64,
    /// The object, without its lines.
    pub invoice: Value,
    /// When the event was made.
    pub told: DateTime<Utc>,
}

/// A customer's invoices, newest first, after one of them. Stripe's times are whole seconds: of events of one second the
/// one goes before others whose state an invoice comes to later.
#[tracing::instrument(name = "db.eco_stripe_events.told_invoices", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn list(
    db: &mut PgConnection,
    customer: &str,
    after: Option<&(i64, String)>,
    limit: i64,
) -> sqlx::Result<Vec<Told>> {
    let (seconds, id) = after.map_or((i64::MAX, ""), |(seconds, id)| (*seconds, id.as_str()));
    sqlx::query_as!(
        Told,
        r#"with told as (
               select distinct on (object_id) object_id, payload #> '{data,object}' as invoice,
                      coalesce(created_time, received_time) as told
               from eco_stripe_events
               where type like 'invoice.%' and object_id is not null
                 and payload #>> '{data,object,customer}' = $1
               order by object_id, coalesce(created_time, received_time) desc,
                        array_position(array['draft', 'open', 'uncollectible', 'paid', 'void'],
                                       payload #>> '{data,object,status}') desc nulls last,
                        received_time desc),
           dated as (
               select object_id, invoice, told, coalesce((invoice ->> 'created')::bigint, 0) as created from told)
           select object_id as "invoice_id!", created as "created_seconds!", invoice - 'lines' as "invoice!", told as "told!"
           from dated
           where (created, object_id) < ($2, $3)
           order by created desc, object_id desc
           limit $4"#,
        customer,
        seconds,
        id,
        limit,
    )
    .fetch_all(db)
    .await
}
