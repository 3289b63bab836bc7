//! Drafts: an invoice begins with the items that are pending and what a subscription costs.

use std::collections::BTreeMap;

use crate::http::error::ApiError;
use crate::objects::customers::Customer;
use crate::objects::invoice_items::InvoiceItem;
use crate::objects::invoices::{DRAFT_SECONDS, Invoice, Line, MAX_ITEMS, PlanLine, Reason, Status};
use crate::objects::money::UnitAmount;
use crate::objects::prices::{Price, Recurring};
use crate::objects::products::Product;
use crate::objects::subscriptions::{
    Collection, Item, PauseBehavior, Period, Status as SubscriptionStatus, Subscription,
};
use crate::objects::webhooks::WebhookEndpoint;
use crate::objects::{Resource as _, announced};
use crate::tx::Tx;

impl Invoice {
    /// A draft without lines.
    pub(super) fn empty(
        tx: &mut Tx<'_>,
        customer: &Customer,
        currency: String,
        subscription: Option<String>,
        collection: Collection,
    ) -> Self {
        // Without anyone to tell, nothing is waited for.
        let told = tx.state().all::<WebhookEndpoint>().any(|endpoint| endpoint.wants("invoice.created"));
        let now = tx.now();
        Self {
            id: tx.ids().next("in"),
            created: now,
            customer: customer.id().to_owned(),
            currency,
            subscription,
            status: Status::Draft,
            reason: Reason::Manual,
            period: None,
            items: Vec::new(),
            description: None,
            metadata: BTreeMap::new(),
            auto_advance: false,
            collection_method: collection.method,
            days_until_due: collection.days_until_due,
            finalizes_at: None,
            scheduled: false,
            webhooks_delivered_at: (!told).then_some(now),
            next_payment_attempt: None,
            attempt_count: 0,
            starting_balance: 0,
            ending_balance: None,
            overdue: false,
            number: None,
            finalized_at: None,
            paid_at: None,
            voided_at: None,
            uncollectible_at: None,
        }
    }

    pub(super) fn set_auto_advance(&mut self, auto_advance: bool, now: i64) {
        self.auto_advance = auto_advance;
        self.finalizes_at = match self.finalizes_at {
            _ if !auto_advance => None,
            Some(at) => Some(at),
            None => Some(now + DRAFT_SECONDS),
        };
    }

    /// Takes what is pending in its currency: the oldest first, as many as there is room for.
    /// Their lines are newest first. Says how many they are.
    pub(super) fn pull(
        &mut self,
        tx: &mut Tx<'_>,
        wanted: impl Fn(&InvoiceItem) -> bool,
    ) -> Result<usize, ApiError> {
        let mut pending: Vec<InvoiceItem> = tx
            .state()
            .of_customer::<InvoiceItem>(&self.customer)
            .filter(|item| item.is_pending(&self.currency) && wanted(item))
            .take(MAX_ITEMS)
            .cloned()
            .collect();
        pending.reverse();
        let count = pending.len();
        for mut item in pending {
            self.attach(&mut item)?;
            tx.put(item);
        }
        Ok(count)
    }
}

/// The invoice of a subscription for its current period, as a draft; `covered` is the period in
/// which the items on it were added. Says its id.
pub(crate) fn draft_for(
    tx: &mut Tx<'_>,
    subscription: &Subscription,
    covered: Period,
    reason: Reason,
) -> String {
    let mut invoice = new_of_subscription(tx, subscription, reason);
    invoice.period = Some(covered);
    pull_for(tx, &mut invoice, subscription);
    for item in subscription.items.iter().rev() {
        if let Some(line) = plan_line(tx, subscription, item) {
            invoice.items.push(Line::Plan(line));
        }
    }
    let now = tx.now();
    let keep = matches!(&subscription.pause, Some(pause) if pause.behavior == PauseBehavior::KeepAsDraft);
    // A first invoice that is not paid is the customer's to pay.
    let later = reason != Reason::SubscriptionCreate || !invoice.is_automatic();
    invoice.set_auto_advance(later && !keep && subscription.status != SubscriptionStatus::Unpaid, now);
    let id = invoice.id.clone();
    announced(tx, invoice, "invoice.created");
    id
}

/// An invoice for what is still pending of a subscription, which ends or was changed, if anything is.
pub(crate) fn draft_of_pending_items(
    tx: &mut Tx<'_>,
    subscription: &Subscription,
    reason: Reason,
) -> Option<String> {
    let mut invoice = new_of_subscription(tx, subscription, reason);
    invoice.period = Some(subscription.current_period());
    if pull_for(tx, &mut invoice, subscription) == 0 {
        return None;
    }
    let now = tx.now();
    invoice.set_auto_advance(true, now);
    let id = invoice.id.clone();
    announced(tx, invoice, "invoice.created");
    Some(id)
}

fn new_of_subscription(tx: &mut Tx<'_>, subscription: &Subscription, reason: Reason) -> Invoice {
    let customer = tx.state().get::<Customer>(&subscription.customer).cloned().unwrap_or_default();
    let collection = Collection {
        method: subscription.collection_method.clone(),
        days_until_due: subscription.days_until_due,
    };
    let id = Some(subscription.id().to_owned());
    let mut invoice = Invoice::empty(tx, &customer, subscription.currency.clone(), id, collection);
    invoice.reason = reason;
    invoice
}

/// What is pending of the subscription, and of its customer alone; not of other subscriptions.
fn pull_for(tx: &mut Tx<'_>, invoice: &mut Invoice, subscription: &Subscription) -> usize {
    let own = |item: &InvoiceItem| item.subscription.as_deref().is_none_or(|id| id == subscription.id());
    // A new draft has room for all that is pulled, and these are of its customer and currency.
    invoice.pull(tx, own).unwrap_or_default()
}

fn plan_line(tx: &mut Tx<'_>, subscription: &Subscription, item: &Item) -> Option<PlanLine> {
    let id = tx.ids().next("il");
    let price = tx.state().get::<Price>(&item.price)?;
    let name = tx.state().get::<Product>(&price.product).map_or("", Product::name);
    let period = subscription.current_period();
    let quantity = u64::try_from(item.quantity).unwrap_or(0);
    let whole = UnitAmount::parse(&price.unit_amount_decimal)?.times(quantity)?;
    let (amount, description) = if subscription.is_trialing() {
        (0, format!("Trial period for {name}"))
    } else {
        let share = subscription.share_of(period, i64::try_from(whole).ok()?);
        (share, format!("{quantity} × {name} ({})", rate(price, &subscription.recurring)))
    };
    Some(PlanLine {
        id,
        subscription_item: item.id.clone(),
        price: item.price.clone(),
        product: price.product.clone(),
        unit_amount_decimal: price.unit_amount_decimal.clone(),
        quantity: item.quantity,
        amount,
        description,
        period,
    })
}

fn rate(price: &Price, recurring: &Recurring) -> String {
    let every = match recurring.count {
        1 => recurring.interval.name().to_owned(),
        count => format!("every {count} {}s", recurring.interval.name()),
    };
    format!("at {} {} minor units / {every}", price.unit_amount_decimal, price.currency)
}
