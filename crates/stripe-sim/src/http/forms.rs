//! Reading the parameters of a request.
//!
//! An endpoint takes what it knows out of [`Params`]; [`Params::finish`] refuses what is left.

use std::collections::BTreeMap;

use crate::http::brackets::{Node, tree};
use crate::http::error::ApiError;

const MAX_TEXT: usize = 5000;

/// The parameters of a request, or of one bracketed part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Params {
    /// The name of the part, empty for the whole.
    name: String,
    fields: BTreeMap<String, Node>,
}

/// What a request says about `metadata`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum MetadataChange {
    #[default]
    Keep,
    Clear,
    /// Keys to set; an empty value removes its key.
    Merge(BTreeMap<String, String>),
}

/// `created=…` or `created[gte]=…&created[lt]=…`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TimeRange {
    pub(crate) from: Option<i64>,
    pub(crate) until: Option<i64>,
}

impl TimeRange {
    /// Both bounds belong to the range.
    pub(crate) fn contains(&self, time: i64) -> bool {
        self.from.is_none_or(|from| from <= time) && self.until.is_none_or(|until| time <= until)
    }
}

impl Params {
    pub(crate) fn parse(pairs: &[(String, String)]) -> Result<Self, ApiError> {
        let fields = tree(pairs).map_err(|name| {
            let message = format!("Received malformed parameter: {name}");
            ApiError::invalid("parameter_unknown", &name, message)
        })?;
        Ok(Self { name: String::new(), fields })
    }

    /// Refuses every parameter that was not taken.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        match self.fields.keys().next() {
            None => Ok(()),
            Some(field) => {
                let name = self.full(field);
                let message = format!("Received unknown parameter: {name}");
                Err(ApiError::invalid("parameter_unknown", &name, message))
            }
        }
    }

    fn full(&self, field: &str) -> String {
        if self.name.is_empty() { field.to_owned() } else { format!("{}[{field}]", self.name) }
    }

    fn raw(&mut self, field: &str) -> Result<Option<String>, ApiError> {
        let name = self.full(field);
        match self.fields.remove(field) {
            None => Ok(None),
            Some(Node::Map(_)) => Err(ApiError::invalid(
                "parameter_unknown",
                &name,
                format!("Invalid {name}: it takes one value, not a hash or a list."),
            )),
            Some(Node::Text(text)) if text.chars().count() > MAX_TEXT => {
                Err(self.wrong(field, format!("Invalid {name}: at most {MAX_TEXT} characters.")))
            }
            Some(Node::Text(text)) => Ok(Some(text)),
        }
    }

    /// An error about one field that has no documented code of its own.
    pub(crate) fn wrong(&self, field: &str, message: impl Into<Box<str>>) -> ApiError {
        let mut error = ApiError::refused(message).param(&self.full(field));
        error.executed = false;
        error
    }

    pub(crate) fn missing(&self, field: &str) -> ApiError {
        let name = self.full(field);
        let message = format!("Missing required param: {name}.");
        ApiError::invalid("parameter_missing", &name, message)
    }

    pub(crate) fn exclusive(&self, fields: &[&str]) -> ApiError {
        let message = format!("You may only specify one of these parameters: {}.", fields.join(", "));
        ApiError::invalid("parameters_exclusive", &self.full(fields[0]), message)
    }

    /// A text that cannot be unset.
    pub(crate) fn text(&mut self, field: &str) -> Result<Option<String>, ApiError> {
        let text = self.raw(field)?;
        if text.as_deref() == Some("") {
            let name = self.full(field);
            let message = format!("You passed an empty string for '{name}', which cannot be unset.");
            return Err(ApiError::invalid("parameter_invalid_empty", &name, message));
        }
        Ok(text)
    }

    pub(crate) fn required(&mut self, field: &str) -> Result<String, ApiError> {
        self.text(field)?.ok_or_else(|| self.missing(field))
    }

    /// A text that an empty value unsets: `Some(None)` says unset.
    pub(crate) fn clearable(&mut self, field: &str) -> Result<Option<Option<String>>, ApiError> {
        Ok(self.raw(field)?.map(|text| Some(text).filter(|text| !text.is_empty())))
    }

    pub(crate) fn integer(&mut self, field: &str) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.text(field)? else {
            return Ok(None);
        };
        text.parse().map(Some).map_err(|_| {
            let message = format!("Invalid integer: {text}");
            ApiError::invalid("parameter_invalid_integer", &self.full(field), message)
        })
    }

    pub(crate) fn integer_within(
        &mut self,
        field: &str,
        range: std::ops::RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let value = self.integer(field)?;
        match value {
            Some(value) if !range.contains(&value) => {
                let message = format!(
                    "Invalid integer: {value}. It must be between {} and {}.",
                    range.start(),
                    range.end()
                );
                Err(ApiError::invalid("parameter_invalid_integer", &self.full(field), message))
            }
            _ => Ok(value),
        }
    }

    pub(crate) fn timestamp(&mut self, field: &str) -> Result<Option<i64>, ApiError> {
        self.integer_within(field, 0..=253_402_300_799)
    }

    /// A time that an empty value unsets: `Some(None)` says unset.
    pub(crate) fn clearable_timestamp(&mut self, field: &str) -> Result<Option<Option<i64>>, ApiError> {
        if self.is_text(field, "") {
            self.fields.remove(field);
            return Ok(Some(None));
        }
        Ok(self.timestamp(field)?.map(Some))
    }

    pub(crate) fn has(&self, field: &str) -> bool {
        self.fields.contains_key(field)
    }

    /// Whether the field is there and is that text.
    pub(crate) fn is_text(&self, field: &str, text: &str) -> bool {
        matches!(self.fields.get(field), Some(Node::Text(given)) if given == text)
    }

    /// The field's text, which stays.
    pub(crate) fn peek(&self, field: &str) -> Option<&str> {
        match self.fields.get(field)? {
            Node::Text(text) => Some(text),
            Node::Map(_) => None,
        }
    }

    pub(crate) fn boolean(&mut self, field: &str) -> Result<Option<bool>, ApiError> {
        match self.text(field)?.as_deref() {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => Err(self.wrong(field, format!("Invalid boolean: {other}"))),
        }
    }

    pub(crate) fn one_of(&mut self, field: &str, allowed: &[&str]) -> Result<Option<String>, ApiError> {
        match self.text(field)? {
            Some(given) if !allowed.contains(&given.as_str()) => {
                let name = self.full(field);
                Err(self.wrong(field, format!("Invalid {name}: must be one of {}", allowed.join(", "))))
            }
            other => Ok(other),
        }
    }

    /// One bracketed hash.
    pub(crate) fn hash(&mut self, field: &str) -> Result<Option<Params>, ApiError> {
        let name = self.full(field);
        match self.fields.remove(field) {
            None => Ok(None),
            Some(Node::Map(fields)) => Ok(Some(Params { name, fields })),
            Some(Node::Text(_)) => Err(self.wrong(field, format!("Invalid {name}: it must be a hash."))),
        }
    }

    /// All fields as pairs of names and texts, by which [`Params::parse`] makes them again.
    pub(crate) fn pairs(self) -> BTreeMap<String, String> {
        fn walk(name: &str, node: Node, pairs: &mut BTreeMap<String, String>) {
            match node {
                Node::Text(text) => {
                    pairs.insert(name.to_owned(), text);
                }
                Node::Map(fields) => {
                    for (field, node) in fields {
                        walk(&format!("{name}[{field}]"), node, pairs);
                    }
                }
            }
        }
        let mut pairs = BTreeMap::new();
        for (field, node) in self.fields {
            walk(&field, node, &mut pairs);
        }
        pairs
    }

    /// A list of hashes: `items[0][price]=…`.
    pub(crate) fn hashes(&mut self, field: &str) -> Result<Vec<Params>, ApiError> {
        let Some(list) = self.hash(field)? else {
            return Ok(Vec::new());
        };
        let name = list.name.clone();
        list.in_order()?
            .into_iter()
            .map(|(index, node)| match node {
                Node::Map(fields) => Ok(Params { name: format!("{name}[{index}]"), fields }),
                Node::Text(_) => {
                    Err(self.wrong(field, format!("Invalid {name}: a list of hashes is expected.")))
                }
            })
            .collect()
    }

    /// A list of texts: `expand[]=…`.
    pub(crate) fn texts(&mut self, field: &str) -> Result<Vec<String>, ApiError> {
        let Some(list) = self.hash(field)? else {
            return Ok(Vec::new());
        };
        let name = list.name.clone();
        list.in_order()?
            .into_iter()
            .map(|(_, node)| match node {
                Node::Text(text) => Ok(text),
                Node::Map(_) => {
                    Err(self.wrong(field, format!("Invalid {name}: a list of strings is expected.")))
                }
            })
            .collect()
    }

    fn in_order(self) -> Result<Vec<(u32, Node)>, ApiError> {
        let wrong = self.wrong("", format!("Invalid {}: it must be a list.", self.name));
        let mut list = Vec::new();
        for (key, node) in self.fields {
            list.push((key.parse().map_err(|_| wrong.clone())?, node));
        }
        list.sort_by_key(|(index, _)| *index);
        Ok(list)
    }

    pub(crate) fn time_range(&mut self, field: &str) -> Result<TimeRange, ApiError> {
        if let Some(Node::Text(_)) = self.fields.get(field) {
            let exact = self.timestamp(field)?;
            return Ok(TimeRange { from: exact, until: exact });
        }
        let Some(mut bounds) = self.hash(field)? else {
            return Ok(TimeRange::default());
        };
        let after = bounds.timestamp("gt")?.map(|time| time + 1);
        let before = bounds.timestamp("lt")?.map(|time| time - 1);
        let range = TimeRange {
            from: after.max(bounds.timestamp("gte")?),
            until: before.into_iter().chain(bounds.timestamp("lte")?).min(),
        };
        bounds.finish()?;
        Ok(range)
    }

    /// `metadata[key]=value`, `metadata[key]=` and `metadata=`.
    pub(crate) fn metadata(&mut self) -> Result<MetadataChange, ApiError> {
        match self.fields.remove("metadata") {
            None => Ok(MetadataChange::Keep),
            Some(Node::Text(text)) if text.is_empty() => Ok(MetadataChange::Clear),
            Some(Node::Text(_)) => Err(self.wrong("metadata", "Invalid metadata: it must be a hash.")),
            Some(Node::Map(entries)) => {
                let mut merge = BTreeMap::new();
                for (key, node) in entries {
                    let Node::Text(value) = node else {
                        return Err(self.wrong(
                            "metadata",
                            format!("Metadata values must be strings, but '{key}' is a hash or a list."),
                        ));
                    };
                    if key.chars().count() > 40 {
                        return Err(self.wrong(
                            "metadata",
                            format!("Metadata keys can have up to 40 characters: '{key}' has more."),
                        ));
                    }
                    if value.chars().count() > 500 {
                        return Err(self.wrong(
                            "metadata",
                            format!(
                                "Metadata values can have up to 500 characters: that of '{key}' has more."
                            ),
                        ));
                    }
                    merge.insert(key, value);
                }
                Ok(MetadataChange::Merge(merge))
            }
        }
    }
}

impl MetadataChange {
    const MAX_KEYS: usize = 50;

    /// # Errors
    /// When the result would have more than 50 keys.
    pub(crate) fn apply(self, metadata: &mut BTreeMap<String, String>) -> Result<(), ApiError> {
        match self {
            Self::Keep => {}
            Self::Clear => metadata.clear(),
            Self::Merge(entries) => {
                for (key, value) in entries {
                    if value.is_empty() {
                        metadata.remove(&key);
                    } else {
                        metadata.insert(key, value);
                    }
                }
            }
        }
        if metadata.len() > Self::MAX_KEYS {
            let message = format!("Metadata can have up to {} keys.", Self::MAX_KEYS);
            return Err(ApiError { executed: false, ..ApiError::refused(message).param("metadata") });
        }
        Ok(())
    }
}
