//! Adding pending items to a draft, all or none.

use serde_json::Value;

use crate::http::error::ApiError;
use crate::http::forms::Params;
use crate::objects::invoice_items::InvoiceItem;
use crate::objects::invoices::Invoice;
use crate::objects::{named, referenced, retold, saved};
use crate::tx::Tx;

/// Only lines of items that exist; making new ones here is not offered.
pub(crate) fn add_lines(tx: &mut Tx<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let lines = params.hashes("lines")?;
    if lines.is_empty() {
        return Err(params.missing("lines"));
    }
    params.finish()?;
    let mut items = Vec::new();
    for mut line in lines {
        items.push(line.required("invoice_item")?);
        line.finish()?;
    }
    let mut invoice: Invoice = named(tx, id)?;
    retold::<Invoice, Value>(tx, id, "invoice.updated", |tx| {
        for id in items {
            let mut item: InvoiceItem = referenced(tx, &id, "lines[][invoice_item]")?;
            if item.invoice.is_some() {
                let message = format!("The invoice item '{id}' is on an invoice already.");
                return Err(ApiError::refused(message).param("lines[][invoice_item]"));
            }
            invoice.attach(&mut item)?;
            tx.put(item);
        }
        Ok(saved(tx, invoice))
    })
}
