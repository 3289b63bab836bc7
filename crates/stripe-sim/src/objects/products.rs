//! Products, as far as prices need them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::http::error::ApiError;
use crate::http::forms::Params;
use crate::http::lists::{Page, page_of};
use crate::objects::{Kind, Object, Resource, announced, changed, named};
use crate::state::State;
use crate::tx::Tx;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Product {
    id: String,
    created: i64,
    updated: i64,
    name: String,
    description: Option<String>,
    active: bool,
    metadata: BTreeMap<String, String>,
}

impl Resource for Product {
    const KIND: Kind = Kind::Product;

    fn from_object(object: &Object) -> Option<&Self> {
        Self::variant_of(object)
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn render(&self, _: &State) -> Value {
        json!({
            "id": self.id,
            "object": "product",
            "active": self.active,
            "created": self.created,
            "default_price": null,
            "description": self.description,
            "images": [],
            "livemode": false,
            "marketing_features": [],
            "metadata": self.metadata,
            "name": self.name,
            "package_dimensions": null,
            "shippable": null,
            "statement_descriptor": null,
            "tax_code": null,
            "type": "service",
            "unit_label": null,
            "updated": self.updated,
            "url": null,
        })
    }
}

pub(crate) fn create(tx: &mut Tx<'_>, mut params: Params) -> Result<Value, ApiError> {
    let id = params.text("id")?;
    let mut product = new(tx, &mut params)?;
    params.finish()?;
    if let Some(id) = id {
        if tx.state().get::<Product>(&id).is_some() {
            let message = format!("Product already exists: '{id}'");
            return Err(ApiError::refused(message).code("resource_already_exists").param("id"));
        }
        product.id = id;
    }
    Ok(announced(tx, product, "product.created"))
}

impl Product {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// A product from the parameters that create and `product_data` share.
pub(crate) fn new(tx: &mut Tx<'_>, params: &mut Params) -> Result<Product, ApiError> {
    let mut product = Product {
        id: tx.ids().next("prod"),
        created: tx.now(),
        updated: tx.now(),
        name: params.required("name")?,
        description: params.text("description")?,
        active: params.boolean("active")?.unwrap_or(true),
        metadata: BTreeMap::new(),
    };
    params.metadata()?.apply(&mut product.metadata)?;
    Ok(product)
}

pub(crate) fn retrieve(tx: &mut Tx<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish()?;
    Ok(named::<Product>(tx, id)?.render(tx.state()))
}

pub(crate) fn update(tx: &mut Tx<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let name = params.text("name")?;
    let description = params.clearable("description")?;
    let active = params.boolean("active")?;
    let metadata = params.metadata()?;
    params.finish()?;
    let mut product: Product = named(tx, id)?;
    metadata.apply(&mut product.metadata)?;
    product.name = name.unwrap_or(product.name);
    product.description = description.unwrap_or(product.description);
    product.active = active.unwrap_or(product.active);
    product.updated = tx.now();
    Ok(changed(tx, product, "product.updated"))
}

pub(crate) fn list(tx: &mut Tx<'_>, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::take(&mut params)?;
    let active = params.boolean("active")?;
    let created = params.time_range("created")?;
    params.finish()?;
    page_of::<Product>(tx.state(), &page, None, |product| {
        created.contains(product.created) && active.is_none_or(|active| product.active == active)
    })
}
