//! Items that are no account's, or not that account's that they name, as far as our tables know: these may have lost the
//! account, or its customer. Such an account is not charged until that is known.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::{
    domain::books::{BookItem, Home},
    store::stripe_books,
};

/// What a reconciliation found of them.
#[derive(Debug, Default)]
pub(super) struct Strays {
    /// Accounts that are not to be charged, and since when there are items of them.
    pub(super) withheld: BTreeMap<String, DateTime<Utc>>,
    /// The others: account, customer and time of an item.
    others: Vec<(String, String, DateTime<Utc>)>,
}

impl Strays {
    pub(super) fn add(&mut self, eco_id: &str, home: Option<&Home>, item: &BookItem) {
        if home.is_none_or(|home| home.may_lack(&item.customer)) {
            self.withhold(eco_id, item.created);
        } else {
            self.others.push((eco_id.to_owned(), item.customer.clone(), item.created));
        }
    }

    fn withhold(&mut self, eco_id: &str, created: DateTime<Utc>) {
        let oldest = self.withheld.entry(eco_id.to_owned()).or_insert(created);
        *oldest = created.min(*oldest);
    }

    /// Withholds the accounts that have got the customers of their items since: the next reconciliation takes these in.
    pub(super) async fn belong_since(&mut self, db: &mut PgConnection) -> sqlx::Result<()> {
        for (eco_id, customer, created) in std::mem::take(&mut self.others) {
            let home = stripe_books::home(db, &eco_id, &[]).await?;
            if home.is_some_and(|home| home.customers.contains(&customer)) {
                self.withhold(&eco_id, created);
            }
        }
        Ok(())
    }
}
