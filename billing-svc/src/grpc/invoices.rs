//! Requests and answers of ListInvoices.

use nexus_core::id::EcoId;
use nexus_kit::{
    auth::{Caller, Scope},
    convert::timestamp,
    page, status,
    validate::Violations,
};
use nexus_proto::billing::v1 as pb;
use tonic::{Request, Response, Status};

use super::Service;
use crate::{
    app::list_invoices::{self, Cursor},
    domain::told_invoice::{InvoiceStatus, ToldInvoice},
};

pub(super) async fn list(
    service: &Service,
    request: &Request<pb::ListInvoicesRequest>,
) -> Result<Response<pb::ListInvoicesResponse>, Status> {
    let (eco_id, size, after) = page(&Caller::of(request)?, request.get_ref())?;
    let (found, next) = list_invoices::run(&service.pool, &eco_id, after.as_ref(), size).await?;
    Ok(Response::new(pb::ListInvoicesResponse {
        invoices: found.into_iter().map(invoice).collect(),
        next_page_token: next.map(|cursor| page::encode(&eco_id, &cursor)).unwrap_or_default(),
    }))
}

/// Account, size, and where the page begins.
fn page(caller: &Caller, request: &pb::ListInvoicesRequest) -> Result<(EcoId, i64, Option<Cursor>), Status> {
    let mut v = Violations::new();
    let eco_id = caller.account_among(&request.eco_id, &[Scope::BillingRun], &mut v)?;
    let size = v.take("page_size", page::size(request.page_size, 50, 100));
    // A token belongs to an account, and cannot be read without it.
    let token = |eco_id| page::decode::<Cursor>(eco_id, &request.page_token);
    let after = eco_id.as_ref().and_then(|eco_id| v.take("page_token", token(eco_id))).flatten();
    v.require(after.as_ref().is_none_or(|(_, id)| !id.contains('\0')), "page_token", page::BadToken);
    match (eco_id, size) {
        (Some(eco_id), Some(size)) if v.0.is_empty() => Ok((eco_id, size, after)),
        _ => Err(status::invalid(&v)),
    }
}

fn invoice(invoice: ToldInvoice) -> pb::Invoice {
    let status = match invoice.status {
        None => pb::InvoiceStatus::Unspecified,
        Some(InvoiceStatus::Draft) => pb::InvoiceStatus::Draft,
        Some(InvoiceStatus::Open) => pb::InvoiceStatus::Open,
        Some(InvoiceStatus::Paid) => pb::InvoiceStatus::Paid,
        Some(InvoiceStatus::Uncollectible) => pb::InvoiceStatus::Uncollectible,
        Some(InvoiceStatus::Void) => pb::InvoiceStatus::Void,
    };
    pb::Invoice {
        stripe_invoice_id: invoice.invoice_id,
        number: invoice.number.unwrap_or_default(),
        status: status.into(),
        due_micros: invoice.due.0,
        remaining_micros: invoice.remaining.0,
        currency_code: invoice.currency.to_string(),
        hosted_url: invoice.hosted_url.unwrap_or_default(),
        create_time: Some(timestamp(invoice.created)),
        told_time: Some(timestamp(invoice.told)),
        attempted: invoice.attempted,
    }
}
