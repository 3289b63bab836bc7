//! Cursor pagination: newest first, `limit`, `starting_after`, `ending_before`, `has_more`.

use serde_json::{Value, json};

use crate::http::error::ApiError;
use crate::http::forms::Params;
use crate::objects::Resource;
use crate::state::View;

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

/// The page of a resource's objects that `keep` lets through, newest first.
pub(crate) fn page_of<T: Resource>(
    view: View<'_>,
    page: &Page,
    keep: impl Fn(&T) -> bool,
) -> Result<Value, ApiError> {
    let rows: Vec<&T> = view.state.all::<T>().rev().filter(|row| keep(row)).collect();
    let (rows, has_more) = page.cut(rows, T::KIND.name(), |row| row.id())?;
    let data = rows.into_iter().map(|row| row.render(&view)).collect();
    Ok(list(&format!("/v1/{}", T::KIND.collection()), data, has_more))
}
