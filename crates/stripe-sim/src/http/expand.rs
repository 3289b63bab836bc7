//! `expand[]=…`: an id in the answer becomes the object it names.

use serde_json::Value;

use crate::http::error::ApiError;
use crate::state::State;

const MAX_DEPTH: usize = 4;

/// The fields that hold ids of other objects, set or not.
const REFERENCES: [&str; 7] =
    ["customer", "default_price", "invoice", "latest_invoice", "price", "product", "subscription"];

pub(crate) fn expand(state: &State, answer: &mut Value, paths: &[String]) -> Result<(), ApiError> {
    for path in paths {
        let steps: Vec<&str> = path.split('.').collect();
        if steps.len() > MAX_DEPTH {
            let message = format!("You cannot expand more than {MAX_DEPTH} levels: {path}");
            return Err(ApiError { executed: false, ..ApiError::refused(message).param("expand") });
        }
        expand_path(state, answer, &steps).ok_or_else(|| {
            let message = format!("This property cannot be expanded ({path}).");
            ApiError { executed: false, ..ApiError::refused(message).param("expand") }
        })?;
    }
    Ok(())
}

/// `None` when the path does not lead to anything that can be expanded.
fn expand_path(state: &State, value: &mut Value, steps: &[&str]) -> Option<()> {
    match value {
        Value::Array(rows) => {
            for row in rows {
                expand_path(state, row, steps)?;
            }
            Some(())
        }
        Value::Object(fields) => {
            let (step, rest) = steps.split_first()?;
            let field = fields.get_mut(*step)?;
            let is_reference = REFERENCES.contains(step);
            if let Value::String(id) = field {
                *field = state.render_by_id(id).filter(|_| is_reference)?;
            }
            if rest.is_empty() { is_reference.then_some(()) } else { expand_path(state, field, rest) }
        }
        // A reference that is not set stays null.
        Value::Null => Some(()),
        _ => None,
    }
}
