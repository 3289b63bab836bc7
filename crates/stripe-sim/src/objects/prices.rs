//! Prices, as far as subscriptions and invoice items need them: per unit, licensed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::http::error::ApiError;
use crate::http::forms::Params;
use crate::http::lists::{Page, page_of};
use crate::objects::money::{UnitAmount, check_amount, take_currency};
use crate::objects::products::{self, Product};
use crate::objects::{Kind, Object, Resource, announced, changed, named, referenced};
use crate::state::State;
use crate::tx::Tx;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Price {
    id: String,
    created: i64,
    pub(crate) currency: String,
    pub(crate) product: String,
    pub(crate) unit_amount_decimal: String,
    pub(crate) recurring: Option<Recurring>,
    nickname: Option<String>,
    lookup_key: Option<String>,
    pub(crate) active: bool,
    metadata: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recurring {
    pub(crate) interval: Interval,
    pub(crate) count: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Interval {
    Day,
    Week,
    Month,
    Year,
}

impl Interval {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Interval::Day => "day",
            Interval::Week => "week",
            Interval::Month => "month",
            Interval::Year => "year",
        }
    }
}

impl Resource for Price {
    const KIND: Kind = Kind::Price;

    fn from_object(object: &Object) -> Option<&Self> {
        Self::variant_of(object)
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn render(&self, _: &State) -> Value {
        let recurring = self.recurring.as_ref().map(|recurring| {
            json!({
                "interval": recurring.interval,
                "interval_count": recurring.count,
                "meter": null,
                "trial_period_days": null,
                "usage_type": "licensed",
            })
        });
        json!({
            "id": self.id,
            "object": "price",
            "active": self.active,
            "billing_scheme": "per_unit",
            "created": self.created,
            "currency": self.currency,
            "custom_unit_amount": null,
            "livemode": false,
            "lookup_key": self.lookup_key,
            "metadata": self.metadata,
            "nickname": self.nickname,
            "product": self.product,
            "recurring": recurring,
            "tax_behavior": "unspecified",
            "tiers_mode": null,
            "transform_quantity": null,
            "type": if self.recurring.is_some() { "recurring" } else { "one_time" },
            "unit_amount": self.unit_amount(),
            "unit_amount_decimal": self.unit_amount_decimal,
        })
    }
}

impl Price {
    /// The unit amount when it is a whole number of minor units.
    fn unit_amount(&self) -> Option<i64> {
        self.unit_amount_decimal.parse().ok()
    }

    /// The older form of a recurring price, which subscription items still show.
    pub(crate) fn render_plan(&self, recurring: &Recurring) -> Value {
        json!({
            "id": self.id,
            "object": "plan",
            "active": self.active,
            "amount": self.unit_amount(),
            "amount_decimal": self.unit_amount_decimal,
            "billing_scheme": "per_unit",
            "created": self.created,
            "currency": self.currency,
            "interval": recurring.interval,
            "interval_count": recurring.count,
            "livemode": false,
            "metadata": self.metadata,
            "meter": null,
            "nickname": self.nickname,
            "product": self.product,
            "tiers_mode": null,
            "transform_usage": null,
            "trial_period_days": null,
            "usage_type": "licensed",
        })
    }
}

pub(crate) fn create(tx: &mut Tx<'_>, mut params: Params) -> Result<Value, ApiError> {
    let currency = take_currency(&mut params)?.ok_or_else(|| params.missing("currency"))?;
    let unit_amount_decimal = take_unit_amount(&mut params)?;
    let recurring = params.hash("recurring")?.map(take_recurring).transpose()?;
    let nickname = params.text("nickname")?;
    let lookup_key = params.text("lookup_key")?;
    let active = params.boolean("active")?.unwrap_or(true);
    let metadata = params.metadata()?;
    let product = params.text("product")?;
    let product_data = match params.hash("product_data")? {
        Some(mut data) => {
            let product = products::new(tx, &mut data)?;
            data.finish()?;
            Some(product)
        }
        None => None,
    };
    let product = match (product, product_data) {
        (Some(_), Some(_)) => return Err(params.exclusive(&["product", "product_data"])),
        (None, None) => return Err(params.missing("product")),
        (Some(id), None) => {
            params.finish()?;
            referenced::<Product>(tx, &id, "product")?
        }
        (None, Some(product)) => {
            params.finish()?;
            announced(tx, product.clone(), "product.created");
            product
        }
    };
    if let Some(key) = &lookup_key
        && tx.state().all::<Price>().any(|price| price.lookup_key.as_ref() == Some(key))
    {
        let message = format!("A price already uses that lookup key: '{key}'");
        return Err(ApiError::refused(message).param("lookup_key"));
    }
    let mut price = Price {
        id: tx.ids().next("price"),
        created: tx.now(),
        currency,
        product: product.id().to_owned(),
        unit_amount_decimal,
        recurring,
        nickname,
        lookup_key,
        active,
        metadata: BTreeMap::new(),
    };
    metadata.apply(&mut price.metadata)?;
    Ok(announced(tx, price, "price.created"))
}

fn take_unit_amount(params: &mut Params) -> Result<String, ApiError> {
    let whole = params.integer("unit_amount")?;
    let decimal = UnitAmount::take(params, "unit_amount_decimal")?;
    let negative = |text: &str| text.starts_with('-');
    match (whole, decimal) {
        (Some(_), Some(_)) => Err(params.exclusive(&["unit_amount", "unit_amount_decimal"])),
        (None, None) => Err(params.missing("unit_amount")),
        (Some(whole), None) if whole < 0 => Err(ApiError::invalid(
            "parameter_invalid_integer",
            "unit_amount",
            "This value must be greater than or equal to 0.",
        )),
        (Some(whole), None) => Ok(check_amount(whole.into(), "unit_amount")?.to_string()),
        (None, Some(decimal)) if negative(&decimal) => {
            Err(params.wrong("unit_amount_decimal", "This value must be greater than or equal to 0."))
        }
        (None, Some(decimal)) => Ok(decimal),
    }
}

fn take_recurring(mut params: Params) -> Result<Recurring, ApiError> {
    let interval = match params.one_of("interval", &["day", "week", "month", "year"])?.as_deref() {
        Some("day") => Interval::Day,
        Some("week") => Interval::Week,
        Some("month") => Interval::Month,
        Some(_) => Interval::Year,
        None => return Err(params.missing("interval")),
    };
    // Three years at most, in whatever unit.
    let longest = match interval {
        Interval::Day => 1095,
        Interval::Week => 156,
        Interval::Month => 36,
        Interval::Year => 3,
    };
    let count = params.integer_within("interval_count", 1..=longest)?.unwrap_or(1);
    params.one_of("usage_type", &["licensed"])?;
    params.finish()?;
    Ok(Recurring { interval, count: u32::try_from(count).unwrap_or(1) })
}

pub(crate) fn retrieve(tx: &mut Tx<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish()?;
    Ok(named::<Price>(tx, id)?.render(tx.state()))
}

pub(crate) fn update(tx: &mut Tx<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let active = params.boolean("active")?;
    let nickname = params.clearable("nickname")?;
    let metadata = params.metadata()?;
    params.finish()?;
    let mut price: Price = named(tx, id)?;
    metadata.apply(&mut price.metadata)?;
    price.active = active.unwrap_or(price.active);
    price.nickname = nickname.unwrap_or(price.nickname);
    Ok(changed(tx, price, "price.updated"))
}

pub(crate) fn list(tx: &mut Tx<'_>, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::take(&mut params)?;
    let active = params.boolean("active")?;
    let product = params.text("product")?;
    let currency = take_currency(&mut params)?;
    let kind = params.one_of("type", &["one_time", "recurring"])?;
    let lookup_keys = params.texts("lookup_keys")?;
    let created = params.time_range("created")?;
    params.finish()?;
    page_of::<Price>(tx.state(), &page, None, |price| {
        created.contains(price.created)
            && active.is_none_or(|active| price.active == active)
            && product.as_ref().is_none_or(|product| price.product == *product)
            && currency.as_ref().is_none_or(|currency| price.currency == *currency)
            && kind.as_ref().is_none_or(|kind| (kind == "recurring") == price.recurring.is_some())
            && (lookup_keys.is_empty()
                || price.lookup_key.as_ref().is_some_and(|key| lookup_keys.contains(key)))
    })
}
