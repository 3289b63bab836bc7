//! Finalising and collecting: a draft becomes open, then paid, by itself or by request.

use crate::objects::customers::Customer;
use crate::objects::events;
use crate::objects::invoices::{DRAFT_SECONDS, Invoice, Status};
use crate::objects::subscriptions::{self, PauseBehavior, Subscription};
use crate::objects::{Resource as _, announced, changed};
use crate::state::DraftsAfterCancel;
use crate::tx::Tx;

const DAY: i64 = 86_400;
/// After how long what is open by request is collected by itself.
const AUTOMATIC_SECONDS: i64 = 3600;

/// What is due to an invoice: to be finalised, to be paid, or to be late.
pub(crate) fn fall_due(tx: &mut Tx<'_>, mut invoice: Invoice) {
    let customer_is_gone = tx.state().get::<Customer>(&invoice.customer).is_none_or(Customer::is_deleted);
    if customer_is_gone && invoice.is_automatic() {
        invoice.auto_advance = false;
        invoice.next_payment_attempt = None;
        tx.put(invoice);
        return;
    }
    match invoice.status {
        Status::Draft => {
            let invoice = finalize(tx, invoice);
            match pause_of(tx, &invoice) {
                Some(PauseBehavior::Void) => {
                    void(tx, invoice);
                }
                Some(PauseBehavior::MarkUncollectible) => {
                    mark_uncollectible(tx, invoice);
                }
                _ if invoice.status == Status::Open && invoice.is_automatic() => {
                    attempt(tx, invoice, true);
                }
                _ => {}
            }
        }
        _ if invoice.is_automatic() => {
            attempt(tx, invoice, true);
        }
        _ => {
            invoice.overdue = true;
            announced(tx, invoice.clone(), "invoice.overdue");
            subscriptions::note_failed_payment(tx, &invoice, false);
        }
    }
}

fn pause_of(tx: &Tx<'_>, invoice: &Invoice) -> Option<PauseBehavior> {
    let subscription = tx.state().get::<Subscription>(invoice.subscription.as_deref()?)?;
    let pause = subscription.pause.as_ref().filter(|_| invoice.status == Status::Open)?;
    Some(pause.behavior)
}

/// A draft becomes open, or paid at once when nothing is due. A negative total, and what of it
/// is left over, goes to the customer's balance.
pub(super) fn finalize(tx: &mut Tx<'_>, mut invoice: Invoice) -> Invoice {
    let mut customer = tx.state().get::<Customer>(&invoice.customer).cloned().unwrap_or_default();
    invoice.number = Some(customer.next_invoice_number());
    invoice.finalized_at = Some(tx.now());
    invoice.finalizes_at = None;
    let total = invoice.total(tx.state());
    invoice.starting_balance = customer.balance;
    customer.balance = (total + customer.balance).min(0);
    invoice.ending_balance = Some(customer.balance);
    if customer.balance == invoice.starting_balance {
        tx.put(customer);
    } else {
        changed(tx, customer, "customer.updated");
    }
    invoice.status = Status::Open;
    announced(tx, invoice.clone(), "invoice.finalized");
    if invoice.due_amount(tx.state()) == 0 {
        return mark_paid(tx, invoice);
    }
    invoice
}

fn mark_paid(tx: &mut Tx<'_>, mut invoice: Invoice) -> Invoice {
    invoice.end_as(Status::Paid);
    invoice.paid_at = Some(tx.now());
    let form = announced(tx, invoice.clone(), "invoice.paid");
    events::emit(tx, "invoice.payment_succeeded", &form, None);
    subscriptions::note_payment(tx, &invoice);
    invoice
}

/// Paid by other means than a charge here.
pub(super) fn pay_out_of_band(tx: &mut Tx<'_>, invoice: Invoice) -> Invoice {
    mark_paid(tx, invoice)
}

impl Invoice {
    /// Whether it is collected without a further request once it is open, for the first time in an hour.
    pub(super) fn collect_by_itself(&mut self, auto_advance: bool, now: i64) {
        self.auto_advance = auto_advance;
        self.next_payment_attempt = match self.next_payment_attempt {
            _ if !auto_advance || !self.is_automatic() => None,
            Some(at) => Some(at),
            None => Some(now + AUTOMATIC_SECONDS),
        };
    }

    /// A status in which nothing is collected any more.
    fn end_as(&mut self, status: Status) {
        self.status = status;
        self.auto_advance = false;
        self.next_payment_attempt = None;
    }
}

/// Charges the customer. A failure is noted, and tried again by itself if that was by itself.
pub(super) fn attempt(tx: &mut Tx<'_>, mut invoice: Invoice, by_itself: bool) -> (Invoice, bool) {
    invoice.attempt_count += 1;
    let pays = tx.state().get::<Customer>(&invoice.customer).is_some_and(Customer::pays);
    if pays {
        return (mark_paid(tx, invoice), true);
    }
    let mut last = false;
    if by_itself && invoice.auto_advance {
        let tries = usize::try_from(invoice.attempt_count).unwrap_or(usize::MAX);
        let days = tx.state().settings.retry_days.get(tries - 1).copied();
        last = days.is_none();
        invoice.next_payment_attempt = days.map(|days| tx.now() + i64::from(days.max(1)) * DAY);
    }
    announced(tx, invoice.clone(), "invoice.payment_failed");
    subscriptions::note_failed_payment(tx, &invoice, last);
    (invoice, false)
}

/// Finalises the draft of a new period and charges it at once, unless `pays` is false. Says
/// whether it is paid.
pub(crate) fn collect_now(tx: &mut Tx<'_>, id: &str, pays: bool) -> bool {
    let Some(draft) = tx.state().get::<Invoice>(id).cloned() else { return false };
    let invoice = finalize(tx, draft);
    match invoice.status {
        Status::Paid => true,
        _ if pays => attempt(tx, invoice, true).1,
        _ => false,
    }
}

/// The customer's balance is again what it was before the invoice.
pub(super) fn void(tx: &mut Tx<'_>, mut invoice: Invoice) -> serde_json::Value {
    invoice.end_as(Status::Void);
    invoice.voided_at = Some(tx.now());
    let applied = invoice.starting_balance - invoice.ending_balance.unwrap_or(invoice.starting_balance);
    if applied != 0
        && let Some(mut customer) = tx.state().get::<Customer>(&invoice.customer).cloned()
    {
        customer.balance += applied;
        changed(tx, customer, "customer.updated");
    }
    announced(tx, invoice, "invoice.voided")
}

/// The open invoices of a customer whose subscription was canceled, and its drafts, wait for someone to collect them.
pub(crate) fn stop_collecting(tx: &mut Tx<'_>, subscription: &Subscription) {
    let with_drafts = tx.state().settings.drafts_after_cancel == DraftsAfterCancel::Stop;
    let unpaid: Vec<Invoice> = tx
        .state()
        .of_customer::<Invoice>(&subscription.customer)
        .filter(|it| it.auto_advance)
        .filter(|it| match it.status {
            Status::Draft => with_drafts && it.subscription.as_deref() == Some(subscription.id()),
            status => status == Status::Open,
        })
        .cloned()
        .collect();
    for mut invoice in unpaid {
        invoice.auto_advance = false;
        invoice.finalizes_at = None;
        invoice.next_payment_attempt = None;
        changed(tx, invoice, "invoice.updated");
    }
}

/// The first invoice of a subscription that expired.
pub(crate) fn void_unpaid(tx: &mut Tx<'_>, id: &str) {
    if let Some(invoice) = tx.state().get::<Invoice>(id).cloned()
        && matches!(invoice.status, Status::Open | Status::Uncollectible)
    {
        void(tx, invoice);
    }
}

pub(super) fn mark_uncollectible(tx: &mut Tx<'_>, mut invoice: Invoice) -> serde_json::Value {
    invoice.end_as(Status::Uncollectible);
    invoice.uncollectible_at = Some(tx.now());
    announced(tx, invoice, "invoice.marked_uncollectible")
}

/// The webhook of its creation was delivered everywhere, or given up: its hour begins, by its own clock.
pub(crate) fn note_delivery(tx: &mut Tx<'_>, id: &str) {
    let Some(mut invoice) = tx.state().get::<Invoice>(id).cloned() else { return };
    if invoice.webhooks_delivered_at.is_some() {
        return;
    }
    let clock = tx.state().clock_of(&invoice.clone().into());
    let now = tx.time_by(clock.as_deref());
    invoice.webhooks_delivered_at = Some(now);
    if invoice.status == Status::Draft && invoice.auto_advance && !invoice.scheduled {
        invoice.finalizes_at = Some(now + DRAFT_SECONDS);
    }
    tx.put(invoice);
}
