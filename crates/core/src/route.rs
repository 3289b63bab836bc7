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
/// alphanumeric characters with at least three digits among them, with an optional `prefix_` (`cus_9s6…`); or of
/// letters and digits that change too often for words.
fn is_id(segment: &str) -> bool {
    if segment.is_empty() {
        return false;
    }
    let digits = segment.bytes().filter(u8::is_ascii_digit).count();
    if digits == segment.len() {
        return true;
    }
    if segment.len() < 16 || digits == 0 {
        return false;
    }
    let token = segment.rsplit_once('_').map_or(segment, |(_, tail)| tail);
    let is_token = token.len() >= 14 && token.bytes().all(|c| c.is_ascii_alphanumeric());
    (digits >= 3 && segment.bytes().all(|c| c.is_ascii_hexdigit() || c == b'-'))
        || (is_token && (digits >= 3 || is_random(token)))
        || (has_both_cases(segment) && is_random(segment))
}

/// Base 62 or 64: runs of capitals, of small letters and of digits are shorter than 2.5 on average. Words, also such as
/// `oauth2CallbackHandler`, have longer ones; a capital belongs to the letters after it.
fn is_random(text: &str) -> bool {
    let mut runs = 0;
    let mut last = b'-';
    for c in text.bytes() {
        let goes_on = match c {
            b'a'..=b'z' => last.is_ascii_alphabetic(),
            b'A'..=b'Z' => last.is_ascii_uppercase(),
            b'0'..=b'9' => last.is_ascii_digit(),
            b'-' | b'_' => true,
            _ => return false,
        };
        runs += usize::from(!goes_on);
        last = c;
    }
    runs * 5 > text.len() * 2
}

fn has_both_cases(text: &str) -> bool {
    text.bytes().any(|c| c.is_ascii_uppercase()) && text.bytes().any(|c| c.is_ascii_lowercase())
}
