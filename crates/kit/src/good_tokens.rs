//! Tokens that were found good, until they expire: the next call with one costs no signature. Nothing but its time
//! ends a token, so that nothing is missed by remembering.

use dashmap::DashMap;

use crate::auth::Caller;

/// Remembered at most; then all are verified anew. Only who has a good token adds one.
const MOST: usize = 10_000;

/// Whose token it is, and the last second that it is good in.
struct Good {
    caller: Caller,
    expires: u64,
}

/// The tokens.
#[derive(Default)]
pub(crate) struct GoodTokens(DashMap<Box<str>, Good>);

impl GoodTokens {
    /// Whose a token is, if it is known and still good.
    pub(crate) fn caller(&self, token: &str, now: u64) -> Option<Caller> {
        self.0.get(token).filter(|good| now <= good.expires).map(|good| good.caller.clone())
    }

    /// Remembers a token that was found good.
    pub(crate) fn remember(&self, token: &str, caller: Caller, expires: u64) {
        if self.0.len() >= MOST {
            self.0.clear();
        }
        self.0.insert(token.into(), Good { caller, expires });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> Caller {
        Caller::Service { name: name.to_owned(), scopes: Vec::new() }
    }

    fn name(caller: Option<Caller>) -> Option<String> {
        caller.map(|caller| match caller {
            Caller::Service { name, .. } => name,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn a_token_is_good_to_its_last_second_and_no_other_is() {
        let tokens = GoodTokens::default();
        tokens.remember("a.b.c", service("one"), 100);
        assert_eq!(name(tokens.caller("a.b.c", 100)).as_deref(), Some("one"));
        assert_eq!(name(tokens.caller("a.b.c", 101)), None);
        assert_eq!(name(tokens.caller("a.b.d", 1)), None);
    }

    #[test]
    fn there_are_never_more_than_the_most() {
        let tokens = GoodTokens::default();
        for n in 0..=MOST {
            tokens.remember(&n.to_string(), service("one"), 100);
        }
        assert_eq!(tokens.0.len(), 1);
        assert_eq!(name(tokens.caller(&MOST.to_string(), 1)).as_deref(), Some("one"));
    }
}
