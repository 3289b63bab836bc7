//! Route templates: what varies per resource in a path becomes `{id}`, so that rollups stay small.

use std::borrow::Cow;

/// The template of a path: the query is cut off and every segment that is an id (a number, a UUID, a long
/// hexadecimal or mixed token) becomes `{id}`. A path that is a template already is returned as it is.
pub fn template(path: &str) -> Cow<'_, str> {
    let bare = path.split(['?', '#']).next().unwrap_or_default();
    if !bare.split('/').any(is_id) {
        return Cow::Borrowed(bare);
    }
    let segments: Vec<&str> = bare.split('/').map(|s| if is_id(s) { "{id}" } else { s }).collect();
    Cow::Owned(segments.join("/"))
}

/// Digits only; or at least 16 characters of hexadecimal or dashes (UUIDs, hashes); or at least 16
/// alphanumeric characters with at least three digits among them, with an optional `prefix_` (`cus_9s6…`).
fn is_id(segment: &str) -> bool {
    if segment.is_empty() {
        return false;
    }
    let digits = segment.bytes().filter(u8::is_ascii_digit).count();
    if digits == segment.len() {
        return true;
    }
    if segment.len() < 16 || digits < 3 {
        return false;
    }
    let token = segment.rsplit_once('_').map_or(segment, |(_, tail)| tail);
    segment.bytes().all(|c| c.is_ascii_hexdigit() || c == b'-')
        || (token.len() >= 14 && token.bytes().all(|c| c.is_ascii_alphanumeric()))
}
