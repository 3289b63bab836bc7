//! A subscription is changed: its items, its end, its pause.

use serde_json::Value;

use crate::http::error::ApiError;
use crate::http::forms::{MetadataChange, Params};
use crate::objects::invoices::Reason;
use crate::objects::subscriptions::create::PaymentBehavior;
use crate::objects::subscriptions::prorate;
use crate::objects::subscriptions::terms::{self, AskedItem, Collection, MAX_ITEMS, take_quantity};
use crate::objects::subscriptions::{Pause, PauseBehavior, Status, Subscription, UPDATED, tell};
use crate::objects::{Resource as _, changed, named};
use crate::tx::Tx;

/// What a request wants changed.
struct Wanted {
    items: Vec<AskedChange>,
    prorations: Option<String>,
    anchor_now: bool,
    payment: PaymentBehavior,
    trial_end: Option<TrialEnd>,
    cancel_at_period_end: Option<bool>,
    cancel_at: Option<Option<i64>>,
    pause: Option<Option<Pause>>,
    collection: Option<Collection>,
    description: Option<Option<String>>,
    metadata: MetadataChange,
}

enum TrialEnd {
    Now,
    At(i64),
}

/// A change of one item: of the one with that id, or a new one.
struct AskedChange {
    id: Option<String>,
    price: Option<String>,
    quantity: Option<i64>,
    deleted: bool,
    metadata: MetadataChange,
}

impl AskedChange {
    fn take(mut params: Params) -> Result<Self, ApiError> {
        let change = Self {
            id: params.text("id")?,
            price: params.text("price")?,
            quantity: take_quantity(&mut params)?,
            deleted: params.boolean("deleted")?.unwrap_or(false),
            metadata: params.metadata()?,
        };
        if change.id.is_none() && (change.deleted || change.price.is_none()) {
            return Err(params.missing(if change.deleted { "id" } else { "price" }));
        }
        params.finish()?;
        Ok(change)
    }
}

impl Wanted {
    fn take(params: &mut Params) -> Result<Self, ApiError> {
        let prorations = ["create_prorations", "none", "always_invoice"];
        Ok(Self {
            items: params.hashes("items")?.into_iter().map(AskedChange::take).collect::<Result<_, _>>()?,
            prorations: params.one_of("proration_behavior", &prorations)?,
            anchor_now: params.one_of("billing_cycle_anchor", &["now", "unchanged"])?.as_deref()
                == Some("now"),
            payment: PaymentBehavior::take(params)?,
            trial_end: take_trial_end(params)?,
            cancel_at_period_end: params.boolean("cancel_at_period_end")?,
            cancel_at: params.clearable_timestamp("cancel_at")?,
            pause: take_pause(params)?,
            collection: if params.has("collection_method") || params.has("days_until_due") {
                Some(Collection::take(params)?)
            } else {
                None
            },
            description: params.clearable("description")?,
            metadata: params.metadata()?,
        })
    }

    /// Whether it wants nothing but other metadata.
    fn only_metadata(&self) -> bool {
        self.items.is_empty()
            && !self.anchor_now
            && self.trial_end.is_none()
            && self.cancel_at_period_end.is_none()
            && self.cancel_at.is_none()
            && self.pause.is_none()
            && self.collection.is_none()
            && self.description.is_none()
    }
}

fn take_trial_end(params: &mut Params) -> Result<Option<TrialEnd>, ApiError> {
    if params.is_text("trial_end", "now") {
        params.text("trial_end")?;
        return Ok(Some(TrialEnd::Now));
    }
    Ok(params.timestamp("trial_end")?.map(TrialEnd::At))
}

fn take_pause(params: &mut Params) -> Result<Option<Option<Pause>>, ApiError> {
    if params.is_text("pause_collection", "") {
        params.clearable("pause_collection")?;
        return Ok(Some(None));
    }
    let Some(mut hash) = params.hash("pause_collection")? else {
        return Ok(None);
    };
    let behavior = match hash.one_of("behavior", &["keep_as_draft", "mark_uncollectible", "void"])?.as_deref()
    {
        Some("keep_as_draft") => PauseBehavior::KeepAsDraft,
        Some("mark_uncollectible") => PauseBehavior::MarkUncollectible,
        Some(_) => PauseBehavior::Void,
        None => return Err(hash.missing("behavior")),
    };
    let resumes_at = hash.timestamp("resumes_at")?;
    hash.finish()?;
    Ok(Some(Some(Pause { behavior, resumes_at })))
}

pub(crate) fn update(tx: &mut Tx<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let wanted = Wanted::take(&mut params)?;
    params.finish()?;
    let mut subscription: Subscription = named(tx, id)?;
    if subscription.is_over() && !wanted.only_metadata() {
        let message = "A canceled subscription can only update its cancellation_details and metadata.";
        return Err(ApiError::refused(message).code("invalid_canceled_subscription_fields"));
    }
    if subscription.status == Status::Incomplete && !wanted.only_metadata() {
        let message = "An incomplete subscription can only update its metadata.";
        return Err(ApiError::refused(message));
    }
    let now = tx.now();
    wanted.metadata.apply(&mut subscription.metadata)?;
    subscription.description = wanted.description.unwrap_or(subscription.description);
    if let Some(collection) = wanted.collection {
        subscription.collection_method = collection.method;
        subscription.days_until_due = collection.days_until_due;
    }
    let prorated = wanted.prorations.as_deref() != Some("none") && !subscription.is_trialing();
    if prorated && wanted.anchor_now {
        let message = "The stand-in prorates no change of the anchor: pass proration_behavior=none.";
        return Err(ApiError::refused(message).param("proration_behavior"));
    }
    let mut invoices_now = false;
    if !wanted.items.is_empty() {
        let before = subscription.items.clone();
        change_items(tx, &mut subscription, wanted.items)?;
        let has_prorations = prorated && prorate::prorate(tx, &before, &subscription);
        invoices_now = has_prorations && wanted.prorations.as_deref() == Some("always_invoice");
    }
    if let Some(pause) = wanted.pause {
        subscription.pause = pause;
    }
    match wanted.trial_end {
        None => {}
        Some(TrialEnd::At(end)) if end > now && subscription.is_trialing() => subscription.end_trial_at(end),
        Some(TrialEnd::Now) if subscription.is_trialing() => {}
        Some(_) => {
            let message = "The stand-in changes only the end of a trial that goes on.";
            return Err(ApiError::refused(message).param("trial_end"));
        }
    }
    match (wanted.cancel_at, wanted.cancel_at_period_end) {
        (Some(_), Some(_)) => {
            let message = "Received both cancel_at_period_end and cancel_at. Please pass in only one.";
            return Err(ApiError::refused(message).param("cancel_at"));
        }
        // A date of its own is not taken away by that.
        (None, Some(false)) if subscription.own_cancel_at => {}
        (None, Some(at_period_end)) => subscription.set_cancel_at(None, at_period_end, now)?,
        (Some(at), None) => subscription.set_cancel_at(at, false, now)?,
        (None, None) => {}
    }
    let trial_ends = matches!(wanted.trial_end, Some(TrialEnd::Now));
    if wanted.anchor_now || trial_ends {
        subscription.begin_anew(now);
    }
    if wanted.anchor_now || trial_ends {
        subscription.clone().invoice_period(tx, Reason::SubscriptionUpdate, wanted.payment)?;
    } else if invoices_now {
        subscription.clone().invoice_pending(tx, wanted.payment)?;
    } else {
        changed(tx, subscription, UPDATED);
    }
    Ok(named::<Subscription>(tx, id)?.render(tx.state()))
}

fn change_items(
    tx: &mut Tx<'_>,
    subscription: &mut Subscription,
    changes: Vec<AskedChange>,
) -> Result<(), ApiError> {
    for (index, change) in changes.into_iter().enumerate() {
        let Some(id) = change.id else {
            let asked = AskedItem::new(change.price.unwrap_or_default(), change.quantity.unwrap_or(1));
            let mut item = asked.build(tx)?;
            change.metadata.apply(&mut item.metadata)?;
            subscription.items.push(item);
            continue;
        };
        let known = subscription.items.iter().position(|item| item.id == id);
        let Some(position) = known else {
            return Err(ApiError::missing("subscription_item", &id, &format!("items[{index}][id]")));
        };
        if change.deleted {
            subscription.items.remove(position);
            continue;
        }
        let item = &mut subscription.items[position];
        item.price = change.price.unwrap_or_else(|| item.price.clone());
        item.quantity = change.quantity.unwrap_or(item.quantity);
        change.metadata.apply(&mut item.metadata)?;
    }
    if subscription.items.len() > MAX_ITEMS {
        let message = format!("A subscription can have up to {MAX_ITEMS} items.");
        return Err(ApiError::refused(message).param("items"));
    }
    let prices = subscription.items.iter().map(|item| item.price.as_str());
    let (_, recurring) = terms::agreed(tx, prices, Some(&subscription.currency))?;
    if recurring != subscription.recurring {
        let message = "The stand-in does not change the interval of a subscription.";
        return Err(ApiError::refused(message).param("items"));
    }
    Ok(())
}

impl Subscription {
    fn end_trial_at(&mut self, end: i64) {
        self.billing_cycle_anchor = end;
        if let Some(trial) = &mut self.trial {
            trial.end = end;
        }
        if let Some(period) = &mut self.period {
            period.end = end;
        }
    }

    /// A new period begins now, and with it the billing cycle.
    fn begin_anew(&mut self, now: i64) {
        if let Some(trial) = &mut self.trial {
            trial.end = trial.end.min(now);
        }
        if matches!(self.status, Status::Trialing | Status::Paused) {
            self.status = Status::Active;
        }
        self.billing_cycle_anchor = now;
        self.period = Some(self.period_from(now));
        if self.cancel_at.is_some() && !self.own_cancel_at {
            self.cancel_at = self.period.map(|period| period.end);
        }
    }
}

/// Ends the status `paused`.
pub(crate) fn resume(tx: &mut Tx<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let unchanged =
        params.one_of("billing_cycle_anchor", &["now", "unchanged"])?.as_deref() == Some("unchanged");
    params.one_of("proration_behavior", &["none"])?;
    params.finish()?;
    let mut subscription: Subscription = named(tx, id)?;
    if subscription.status != Status::Paused || subscription.is_over() {
        return Err(ApiError::refused("The subscription is not paused."));
    }
    let now = tx.now();
    if unchanged {
        subscription.status = Status::Active;
        // Periods that passed in the pause are not invoiced.
        while subscription.current_period().end <= now {
            let end = subscription.current_period().end;
            subscription.period = Some(subscription.period_from(end));
        }
        changed(tx, subscription.clone(), UPDATED);
    } else {
        subscription.begin_anew(now);
        subscription.invoice_period(tx, Reason::SubscriptionUpdate, PaymentBehavior::Allow)?;
    }
    let subscription: Subscription = named(tx, id)?;
    tell(tx, &subscription, "customer.subscription.resumed");
    Ok(subscription.render(tx.state()))
}

/// The fault of `/_sim/subscriptions/{id}`: the subscription is in that status, however it came to it.
pub(crate) fn set_status(tx: &mut Tx<'_>, id: &str, status: Status) -> Result<Value, ApiError> {
    let mut subscription: Subscription = named(tx, id)?;
    if subscription.is_over() {
        return Err(ApiError::refused("The subscription has ended."));
    }
    subscription.status = status;
    if status == Status::IncompleteExpired {
        subscription.ended_at = Some(tx.now());
    }
    let form = changed(tx, subscription.clone(), UPDATED);
    if status == Status::Paused {
        tell(tx, &subscription, "customer.subscription.paused");
    }
    Ok(form)
}
