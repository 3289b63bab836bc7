//! Bounds the routes of an account's rollups: what a caller makes up must not make rows without end. The first
//! so many templates of an account are kept, over all replicas; calls of others are rolled up under `{other}`.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use sqlx::PgConnection;

use crate::{domain::admission::Row, store, store::usage_routes::Routes};

/// Route templates an account has in its rollups at most.
pub const MAX_ROUTES: i32 = 500;
/// Where the calls of further ones go.
pub const OTHER: &str = "{other}";
/// Routes that are remembered, 8 bytes each; then all are forgotten, and looked up again.
const MAX_REMEMBERED: usize = 500_000;

/// Routes that are known to be stored, by a hash of account and template.
#[derive(Debug, Default)]
pub struct KnownRoutes {
    stored: HashSet<u64>,
    /// Found in a transaction that is not committed yet.
    found: Vec<u64>,
}

impl KnownRoutes {
    /// A transaction begins; what was found in one that failed is not known.
    pub(super) fn begin(&mut self) {
        self.found.clear();
    }

    /// The transaction was committed: what was found in it is known.
    pub(super) fn committed(&mut self) {
        if self.stored.len() + self.found.len() > MAX_REMEMBERED {
            self.stored.clear();
        }
        self.stored.extend(self.found.drain(..));
    }

    fn has(&self, account: &str, route: &str) -> bool {
        self.stored.contains(&hash(account, route))
    }
}

fn hash(account: &str, route: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (account, route).hash(&mut hasher);
    hasher.finish()
}

/// Sends rows of routes that have no place in their account's rollups to `{other}`; gives routes a place while
/// there is one.
pub(super) async fn run(
    connection: &mut PgConnection,
    known: &mut KnownRoutes,
    rows: &mut [Row<'_>],
) -> sqlx::Result<()> {
    let without_place = {
        let mut unknown: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for row in rows.iter().filter(|row| !row.placement.test_mode) {
            let account = row.event.eco_id.as_str();
            if !known.has(account, &row.route) {
                unknown.entry(account).or_default().insert(&row.route);
            }
        }
        if unknown.is_empty() {
            return Ok(());
        }
        let accounts: Vec<&str> = unknown.keys().copied().collect();
        let stored = store::usage_routes::of(connection, &accounts).await?;
        take_out(&mut unknown, &stored, &mut known.found);
        let is_full = |account: &str| stored.get(account).is_some_and(|r| r.len() >= MAX_ROUTES as usize);
        let new = unknown.iter().filter(|(account, _)| !is_full(account));
        let new: BTreeMap<&str, BTreeSet<&str>> = new.map(|(a, r)| (*a, r.clone())).collect();
        if !new.is_empty() {
            let stored = store::usage_routes::add(connection, &new, MAX_ROUTES).await?;
            take_out(&mut unknown, &stored, &mut known.found);
        }
        unknown.iter().flat_map(|(a, routes)| routes.iter().map(|r| hash(a, r))).collect::<HashSet<u64>>()
    };
    if without_place.is_empty() {
        return Ok(());
    }
    for row in rows.iter_mut().filter(|row| !row.placement.test_mode) {
        if without_place.contains(&hash(row.event.eco_id.as_str(), &row.route)) {
            row.route = Cow::Borrowed(OTHER);
        }
    }
    Ok(())
}

/// Takes out of `unknown` what is stored; an account of which nothing is left goes, too.
fn take_out(unknown: &mut BTreeMap<&str, BTreeSet<&str>>, stored: &Routes, found: &mut Vec<u64>) {
    unknown.retain(|account, routes| {
        for route in stored.get(*account).into_iter().flatten() {
            if routes.remove(route.as_str()) {
                found.push(hash(account, route));
            }
        }
        !routes.is_empty()
    });
}
