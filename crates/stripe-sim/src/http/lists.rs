//! Cursor pagination: newest first, `limit`, `starting_after`, `ending_before`, `has_more`.

use std::ops::Bound;

use serde_json::{Value, json};

use crate::http::error::ApiError;
use crate::http::forms::Params;
use crate::objects::Resource;
use crate::state::State;

/// Which part of a list is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    limit: usize,
    cursor: Cursor,
}

#[derive(Clone, Debug)]
enum Cursor {
    Start,
    After(String),
    Before(String),
}

impl Page {
    /// How many rows a list embedded in an object shows.
    pub(crate) const EMBEDDED: usize = 10;

    pub(crate) fn take(params: &mut Params) -> Result<Self, ApiError> {
        let limit = params.integer_within("limit", 1..=100)?.unwrap_or(10);
        let cursor = match (params.text("starting_after")?, params.text("ending_before")?) {
            (None, None) => Cursor::Start,
            (Some(id), None) => Cursor::After(id),
            (None, Some(id)) => Cursor::Before(id),
            (Some(_), Some(_)) => {
                return Err(params.exclusive(&["starting_after", "ending_before"]));
            }
        };
        Ok(Self { limit: usize::try_from(limit).unwrap_or(10), cursor })
    }

    /// The page of `rows`, which come in the order of the list.
    pub(crate) fn cut<T>(
        &self,
        rows: Vec<T>,
        what: &str,
        id: impl Fn(&T) -> &str,
    ) -> Result<(Vec<T>, bool), ApiError> {
        let position = |wanted: &str, param: &str| {
            rows.iter()
                .position(|row| id(row) == wanted)
                .ok_or_else(|| ApiError::missing(what, wanted, param))
        };
        let (start, end) = match &self.cursor {
            Cursor::Start => (0, self.limit),
            Cursor::After(cursor) => {
                let start = position(cursor, "starting_after")? + 1;
                (start, start + self.limit)
            }
            Cursor::Before(cursor) => {
                let end = position(cursor, "ending_before")?;
                (end.saturating_sub(self.limit), end)
            }
        };
        let has_more = match &self.cursor {
            Cursor::Before(_) => start > 0,
            Cursor::Start | Cursor::After(_) => rows.len() > end,
        };
        let end = end.min(rows.len());
        Ok((rows.into_iter().take(end).skip(start).collect(), has_more))
    }
}

pub(crate) fn list(url: &str, data: Vec<Value>, has_more: bool) -> Value {
    json!({ "object": "list", "url": url, "data": data, "has_more": has_more })
}

/// The page of a resource's objects that `keep` lets through, newest first; only the rows of
/// `customer` are looked at if there is one, and of all rows only those from the cursor on.
pub(crate) fn page_of<T: Resource>(
    state: &State,
    page: &Page,
    customer: Option<&str>,
    keep: impl Fn(&T) -> bool,
) -> Result<Value, ApiError> {
    let cursor = |id: &str, param: &str| {
        state.row(T::KIND, id).ok_or_else(|| ApiError::missing(T::KIND.name(), id, param))
    };
    let (range, backwards) = match &page.cursor {
        Cursor::Start => ((Bound::Unbounded, Bound::Unbounded), false),
        Cursor::After(id) => ((Bound::Unbounded, Bound::Excluded(cursor(id, "starting_after")?)), false),
        Cursor::Before(id) => ((Bound::Excluded(cursor(id, "ending_before")?), Bound::Unbounded), true),
    };
    let rows = state.rows::<T>(customer, range).filter(|row| keep(row));
    // One more than asked for says whether there are more.
    let mut found: Vec<&T> = if backwards {
        rows.take(page.limit + 1).collect()
    } else {
        rows.rev().take(page.limit + 1).collect()
    };
    let has_more = found.len() > page.limit;
    found.truncate(page.limit);
    if backwards {
        found.reverse();
    }
    let data = found.into_iter().map(|row| row.render(state)).collect();
    Ok(list(&format!("/v1/{}", T::KIND.collection()), data, has_more))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use rand::SeedableRng as _;
    use rand::rngs::StdRng;
    use serde_json::Value;

    use super::{Page, page_of};
    use crate::http::error::ApiError;
    use crate::http::forms::Params;
    use crate::ids::Ids;
    use crate::objects::customers;
    use crate::objects::invoice_items::{self, InvoiceItem};
    use crate::state::State;
    use crate::tx::Tx;

    fn params(pairs: &[(&str, &str)]) -> Result<Params, ApiError> {
        let owned: Vec<(String, String)> =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Params::parse(&owned)
    }

    /// 500 customers with two items each.
    fn filled(state: &mut State) -> Result<String, ApiError> {
        let mut ids = Ids::new(StdRng::seed_from_u64(1));
        let mut tx = Tx::begin(state, &mut ids, 1_800_000_000, None);
        let mut last = String::new();
        for _ in 0..500 {
            let customer = customers::create(&mut tx, Params::default())?;
            last = customer["id"].as_str().unwrap_or("").to_owned();
            for amount in ["5", "7"] {
                let form = [("customer", last.as_str()), ("amount", amount), ("currency", "usd")];
                invoice_items::create(&mut tx, params(&form)?)?;
            }
        }
        Ok(last)
    }

    #[test]
    fn paging_through_a_list_looks_at_every_row_once() -> Result<(), ApiError> {
        let mut state = State::default();
        let last_customer = filled(&mut state)?;
        let looked_at = Cell::new(0);
        let look = |_: &InvoiceItem| {
            looked_at.set(looked_at.get() + 1);
            true
        };
        let (mut pages, mut seen, mut cursor) = (0, 0, String::new());
        loop {
            let mut form = vec![("limit", "100")];
            if !cursor.is_empty() {
                form.push(("starting_after", &cursor));
            }
            let page = page_of(&state, &Page::take(&mut params(&form)?)?, None, look)?;
            let rows = page["data"].as_array().map_or(&[][..], Vec::as_slice);
            (pages, seen) = (pages + 1, seen + rows.len());
            if page["has_more"] != Value::Bool(true) {
                break;
            }
            cursor = rows.last().and_then(|row| row["id"].as_str()).unwrap_or("").to_owned();
        }
        assert_eq!((pages, seen), (10, 1000));
        // Once, and the first row of the next page to know that there is one.
        assert_eq!(looked_at.get(), 1000 + 9);

        looked_at.set(0);
        page_of(&state, &Page::take(&mut Params::default())?, Some(&last_customer), look)?;
        assert_eq!(looked_at.get(), 2);
        Ok(())
    }
}
