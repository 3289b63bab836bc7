//! Collects every violation of a request, so that a caller mends all at once.

use std::fmt;

use nexus_core::id::EcoId;

/// One field at fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field in the request, e.g. `events[3].method`.
    pub field: String,
    /// What it must be.
    pub message: String,
}

/// All fields at fault.
#[derive(Debug, Clone, Default, PartialEq, Eq, thiserror::Error)]
pub struct Violations(pub Vec<Violation>);

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, v) in self.0.iter().enumerate() {
            write!(f, "{}{}: {}", if i > 0 { "; " } else { "" }, v.field, v.message)?;
        }
        Ok(())
    }
}

impl Violations {
    /// None so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// Exactly one.
    pub fn one(field: impl Into<String>, message: impl fmt::Display) -> Self {
        let mut all = Self::new();
        all.add(field, message);
        all
    }

    /// Adds one.
    pub fn add(&mut self, field: impl Into<String>, message: impl fmt::Display) {
        self.0.push(Violation { field: field.into(), message: message.to_string() });
    }

    /// Adds one unless the condition holds.
    pub fn require(&mut self, holds: bool, field: &str, message: impl fmt::Display) {
        if !holds {
            self.add(field, message);
        }
    }

    /// Keeps a value, or adds why there is none.
    pub fn take<T, E: fmt::Display>(&mut self, field: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|e| self.add(field, e)).ok()
    }

    /// An account id that must be there.
    pub fn eco_id(&mut self, field: &str, text: &str) -> Option<EcoId> {
        self.take(field, EcoId::parse(text))
    }

    /// An optional UUID: empty is none.
    pub fn optional_uuid(&mut self, field: &str, text: &str) -> Option<uuid::Uuid> {
        if text.is_empty() {
            return None;
        }
        self.take(field, text.parse().map_err(|_| "must be a UUID"))
    }

    /// The violations as an error, if there are any.
    pub fn finish(self) -> Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }
}
