//! `eco_stripe_customers`: customers that are to be made at Stripe.

use std::time::Duration;

use nexus_core::id::EcoId;
use sqlx::PgConnection;

use super::unknown_word;
use crate::domain::{
    charge::KEY_LIFE,
    stripe_customer::{CustomerOutcome, NewCustomer, WrittenCustomer},
};

struct Row {
    eco_id: String,
    email: Option<String>,
    attempt: i32,
    young: bool,
    failures: i32,
}

impl TryFrom<Row> for WrittenCustomer {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> Result<Self, sqlx::Error> {
        let eco_id = EcoId::parse(&row.eco_id).map_err(unknown_word)?;
        Ok(Self {
            customer: NewCustomer { eco_id, email: row.email },
            attempt: row.attempt,
            is_young: row.young,
            failures: row.failures,
        })
    }
}

/// Has a customer made for an account that has none.
#[tracing::instrument(name = "db.eco_stripe_customers.want", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn want(db: &mut PgConnection, eco_id: &EcoId) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into eco_stripe_customers (eco_id, email)
         select eco_id, email from eco_identities where eco_id = $1 and stripe_customer_id is null
         on conflict do nothing",
        eco_id.as_str(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Takes one that is due, of any account or of this one, for as long as is given; nobody else gets it meanwhile.
#[tracing::instrument(name = "db.eco_stripe_customers.take", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn take(
    db: &mut PgConnection,
    of: Option<&EcoId>,
    within: Duration,
) -> sqlx::Result<Option<WrittenCustomer>> {
    let row = sqlx::query_as!(
        Row,
        r#"update eco_stripe_customers set due_time = now() + make_interval(secs => $1)
           where eco_id = (select eco_id from eco_stripe_customers
                           where finished_time is null and due_time <= now() and ($3::text is null or eco_id = $3)
                           order by due_time limit 1
                           for update skip locked)
           returning eco_id, email, attempt, attempt_time > now() - $2::interval as "young!", failures"#,
        within.as_secs_f64(),
        KEY_LIFE as _,
        of.map(EcoId::as_str),
    )
    .fetch_optional(db)
    .await?;
    row.map(WrittenCustomer::try_from).transpose()
}

/// Begins the next attempt, under a key of its own.
#[tracing::instrument(name = "db.eco_stripe_customers.next_attempt", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn next_attempt(db: &mut PgConnection, written: &WrittenCustomer) -> sqlx::Result<WrittenCustomer> {
    sqlx::query!(
        "update eco_stripe_customers set attempt = $2, attempt_time = now()
         where eco_id = $1 and finished_time is null",
        written.customer.eco_id.as_str(),
        written.attempt + 1,
    )
    .execute(db)
    .await?;
    Ok(WrittenCustomer { attempt: written.attempt + 1, is_young: true, ..written.clone() })
}

/// Has it made without the email from now on; the account keeps that.
#[tracing::instrument(name = "db.eco_stripe_customers.leave_email_out", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn leave_email_out(db: &mut PgConnection, eco_id: &EcoId) -> sqlx::Result<()> {
    sqlx::query!("update eco_stripe_customers set email = null where eco_id = $1", eco_id.as_str())
        .execute(db)
        .await?;
    Ok(())
}

/// Keeps what became of it.
#[tracing::instrument(name = "db.eco_stripe_customers.end", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn end(
    db: &mut PgConnection,
    eco_id: &EcoId,
    outcome: CustomerOutcome,
    failure: Option<&str>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_stripe_customers set outcome = $2, failure = $3, finished_time = now()
         where eco_id = $1 and finished_time is null",
        eco_id.as_str(),
        outcome.as_str(),
        failure,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// It could not be made now: it is due again after a while.
#[tracing::instrument(name = "db.eco_stripe_customers.fail", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn fail(
    db: &mut PgConnection,
    eco_id: &EcoId,
    failure: &str,
    again_in: Duration,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_stripe_customers
         set failures = failures + 1, failure = $2, due_time = now() + make_interval(secs => $3)
         where eco_id = $1 and finished_time is null",
        eco_id.as_str(),
        failure,
        again_in.as_secs_f64(),
    )
    .execute(db)
    .await?;
    Ok(())
}
