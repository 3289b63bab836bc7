//! Form encoding: pairs of names and values, where brackets in a name make hashes and lists.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    Text(String),
    /// A hash, or a list whose keys are its indices.
    Map(BTreeMap<String, Node>),
}

/// Decodes a query string and a body into pairs, in their order.
pub(crate) fn pairs(query: &str, body: &[u8]) -> Vec<(String, String)> {
    form_urlencoded::parse(query.as_bytes())
        .chain(form_urlencoded::parse(body))
        .map(|(key, value)| (key.into_owned(), value.into_owned()))
        .collect()
}

/// The digest by which a repeated request is known to be the same.
pub(crate) fn fingerprint(method: &str, path: &str, pairs: &[(String, String)]) -> String {
    let mut sorted: Vec<&(String, String)> = pairs.iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    let mut digest = Sha256::new();
    for part in [method, path].into_iter().chain(sorted.iter().flat_map(|(k, v)| [&**k, &**v])) {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    format!("{:x}", digest.finalize())
}

/// The tree that the pairs mean, or the name that is malformed.
pub(crate) fn tree(pairs: &[(String, String)]) -> Result<BTreeMap<String, Node>, String> {
    let mut root = BTreeMap::new();
    for (name, value) in pairs {
        steps(name).and_then(|steps| insert(&mut root, &steps, value)).ok_or(name.as_str())?;
    }
    Ok(root)
}

/// `a[b][]` as `["a", "b", ""]`.
fn steps(name: &str) -> Option<Vec<&str>> {
    let (head, rest) = name.split_at(name.find('[').unwrap_or(name.len()));
    if head.is_empty() || head.contains(']') {
        return None;
    }
    let mut steps = vec![head];
    if !rest.is_empty() {
        let inner = rest.strip_prefix('[')?.strip_suffix(']')?;
        steps.extend(inner.split("]["));
    }
    let (last, path) = steps.split_last()?;
    let clean = steps.iter().all(|step| !step.contains(['[', ']']));
    // `[]` says "append", which is clear only at the end.
    (clean && path.iter().all(|step| !step.is_empty()) && (steps.len() > 1 || !last.is_empty()))
        .then_some(steps)
}

fn insert(fields: &mut BTreeMap<String, Node>, steps: &[&str], value: &str) -> Option<()> {
    let (step, rest) = steps.split_first()?;
    let key = if step.is_empty() { fields.len().to_string() } else { (*step).to_owned() };
    if rest.is_empty() {
        return match fields.insert(key, Node::Text(value.to_owned())) {
            Some(Node::Map(_)) => None,
            _ => Some(()),
        };
    }
    match fields.entry(key).or_insert_with(|| Node::Map(BTreeMap::new())) {
        Node::Map(inner) => insert(inner, rest, value),
        Node::Text(_) => None,
    }
}
