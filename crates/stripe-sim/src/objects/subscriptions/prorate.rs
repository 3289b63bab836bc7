//! Prorations: what is left of a period is given back at the old price and charged at the new one, to the second.

use chrono::DateTime;

use crate::objects::announced;
use crate::objects::invoice_items::InvoiceItem;
use crate::objects::money::UnitAmount;
use crate::objects::prices::Price;
use crate::objects::products::Product;
use crate::objects::subscriptions::{Item, Subscription};
use crate::tx::Tx;

/// Makes the pending items of a change of `before` to what the subscription has now; says whether there are any.
pub(super) fn prorate(tx: &mut Tx<'_>, before: &[Item], subscription: &Subscription) -> bool {
    let same = |of: &[Item], item: &Item| {
        of.iter().any(|o| o.id == item.id && o.price == item.price && o.quantity == item.quantity)
    };
    let gone = before.iter().filter(|item| !same(&subscription.items, item)).map(|item| (item, true));
    let come = subscription.items.iter().filter(|item| !same(before, item)).map(|item| (item, false));
    let changes: Vec<(&Item, bool)> = gone.chain(come).collect();
    let mut any = false;
    for (item, credit) in changes {
        any |= make(tx, subscription, item, credit).is_some();
    }
    any
}

fn make(tx: &mut Tx<'_>, subscription: &Subscription, item: &Item, credit: bool) -> Option<()> {
    let (now, period) = (tx.now(), subscription.current_period());
    let price = tx.state().get::<Price>(&item.price)?;
    let name = tx.state().get::<Product>(&price.product).map_or("", Product::name);
    let quantity = u64::try_from(item.quantity).ok()?;
    let whole = UnitAmount::parse(&price.unit_amount_decimal)?.times(quantity)?;
    let left = share(whole, period.end - now, period.end - period.start)?;
    let (amount, what) = if credit { (-left, "Unused time on") } else { (left, "Remaining time on") };
    let day = DateTime::from_timestamp(now, 0)?.format("%d %b %Y");
    let description = format!("{what} {name} after {day}");
    if amount == 0 {
        return None;
    }
    let made = InvoiceItem::proration(tx, subscription, item, amount, description);
    announced(tx, made, "invoiceitem.created");
    Some(())
}

/// `part` of `whole` of an amount, rounded to the nearest unit, half away from zero.
fn share(amount: i128, part: i64, whole: i64) -> Option<i64> {
    let (part, whole) = (i128::from(part.max(0)), i128::from(whole.max(1)));
    i64::try_from((amount * part * 2 + whole * amount.signum()) / (whole * 2)).ok()
}
