//! Bounds the routes of an account's rollups: what a caller makes up must not make rows without end. The first
//! so many templates of an account are kept, over all replicas; calls of others are rolled up under `{other}`.
//!
//! Not every id is known for one by its looks. Where many templates are the same but for segments that may be ids, they
//! become `{id}`.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use sqlx::PgConnection;

use crate::{domain::admission::Row, store, store::usage_routes::Routes};

/// Route templates an account has in its rollups at most.
pub const MAX_ROUTES: i32 = 500;
/// Where the calls of further ones go.
pub const OTHER: &str = "{other}";
/// So many templates that differ only in segments that may be ids become one.
const SIBLINGS: usize = 20;
/// A segment may be an id that is so long, and has digits; shorter ones with digits are `v1` or `oauth2`.
const ID_BYTES: usize = 8;
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

/// Sends rows of routes that have no place in their account's rollups to the template of their siblings, or to
/// `{other}`; gives routes a place while there is one.
pub(super) async fn run(
    connection: &mut PgConnection,
    known: &mut KnownRoutes,
    rows: &mut [Row<'_>],
) -> sqlx::Result<()> {
    let placed = {
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
        place(connection, &unknown, stored, &mut known.found).await?
    };
    if placed.is_empty() {
        return Ok(());
    }
    for row in rows.iter_mut().filter(|row| !row.placement.test_mode) {
        if let Some(route) = placed.get(&hash(row.event.eco_id.as_str(), &row.route)) {
            row.route = route.clone();
        }
    }
    Ok(())
}

/// Where the calls of routes go that have no place of their own, by the hash of account and route. Gives templates a
/// place while there is one.
async fn place(
    connection: &mut PgConnection,
    unknown: &BTreeMap<&str, BTreeSet<&str>>,
    mut stored: Routes,
    found: &mut Vec<u64>,
) -> sqlx::Result<HashMap<u64, Cow<'static, str>>> {
    let mut templates = BTreeMap::new();
    let mut new: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (account, routes) in unknown {
        let known = stored.get(*account).map_or(&[][..], Vec::as_slice);
        let siblings = Siblings::among(known.iter().map(String::as_str).chain(routes.iter().copied()));
        templates.extend(routes.iter().map(|route| ((*account, *route), siblings.template(route))));
    }
    let has_place = |stored: &Routes, account: &str, route: &str| {
        stored.get(account).is_some_and(|routes| routes.iter().any(|known| known == route))
    };
    let is_full = |account: &str| stored.get(account).is_some_and(|r| r.len() >= MAX_ROUTES as usize);
    for ((account, _), template) in &templates {
        if !is_full(account) && !has_place(&stored, account, template) {
            new.entry(account).or_default().insert(template);
        }
    }
    if !new.is_empty() {
        stored.extend(store::usage_routes::add(connection, &new, MAX_ROUTES).await?);
    }
    let mut elsewhere = HashMap::new();
    for ((account, route), template) in &templates {
        let key = hash(account, route);
        if !has_place(&stored, account, template) {
            elsewhere.insert(key, Cow::Borrowed(OTHER));
        } else if template == route {
            found.push(key);
        } else {
            elsewhere.insert(key, Cow::Owned(template.clone().into_owned()));
        }
    }
    Ok(elsewhere)
}

/// How many of an account's templates are the same but for what may be ids.
struct Siblings(HashMap<String, usize>);

impl Siblings {
    fn among<'a>(routes: impl Iterator<Item = &'a str>) -> Self {
        let mut counts = HashMap::new();
        for route in routes {
            if route.contains("{id}") {
                // They became one before.
                *counts.entry(route.to_owned()).or_default() += SIBLINGS;
            }
            if let Some(family) = family(route) {
                *counts.entry(family).or_default() += 1;
            }
        }
        Self(counts)
    }

    /// A template as it is, or, of many siblings, that of all.
    fn template<'a>(&self, route: &'a str) -> Cow<'a, str> {
        let many = |family: &String| self.0.get(family).is_some_and(|count| *count >= SIBLINGS);
        family(route).filter(many).map_or(Cow::Borrowed(route), Cow::Owned)
    }
}

/// A template with `{id}` for what may be ids; `None`: nothing may.
fn family(route: &str) -> Option<String> {
    // A dot is of names: files, and services of gRPC.
    let may_be_id = |segment: &str| {
        segment.len() >= ID_BYTES && segment.bytes().any(|c| c.is_ascii_digit()) && !segment.contains('.')
    };
    if !route.split('/').any(may_be_id) {
        return None;
    }
    let segments: Vec<&str> = route.split('/').map(|s| if may_be_id(s) { "{id}" } else { s }).collect();
    Some(segments.join("/"))
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
