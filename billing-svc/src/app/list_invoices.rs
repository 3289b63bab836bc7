//! An account's invoices at Stripe, as Stripe's events told of them.

use nexus_core::id::EcoId;
use nexus_kit::{db, page};
use sqlx::PgPool;

use crate::{
    domain::told_invoice::ToldInvoice,
    error::Error,
    store::{accounts, told_invoices},
};

/// Place in the order: when it was made, then its id.
pub type Cursor = (i64, String);

/// A page of invoices, newest first, and the place after it where there is more.
pub async fn run(
    pool: &PgPool,
    eco_id: &EcoId,
    after: Option<&Cursor>,
    size: i64,
) -> Result<(Vec<ToldInvoice>, Option<Cursor>), Error> {
    let mut connection = db::acquire(pool).await?;
    let account = accounts::get(&mut connection, eco_id.as_str()).await?;
    let account = account.ok_or_else(|| Error::AccountNotFound(eco_id.clone()))?;
    let Some(customer) = account.stripe_customer_id else { return Ok((Vec::new(), None)) };
    let mut page = told_invoices::list(&mut connection, &customer, after, size + 1).await?;
    let next = page::cut(&mut page, size, |last| (last.created_seconds, last.invoice_id.clone()));
    let read = page.into_iter().filter_map(|told| {
        let invoice = ToldInvoice::read(&told.invoice, told.told);
        if invoice.is_none() {
            tracing::warn!(invoice_id = told.invoice_id, "an event's invoice is not in the form of one");
        }
        invoice
    });
    Ok((read.collect(), next))
}
