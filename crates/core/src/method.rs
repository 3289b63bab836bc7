//! Methods in rollups: callers may send any word as a method, and each that is made up would make rows of its own.

/// Where calls of other methods go.
pub const OTHER: &str = "{other}";

/// The methods of HTTP that are registered with IANA, as far as they are letters, and gRPC; in order.
/// `nexus_rollup_method` in the database has the same.
pub const KNOWN: [&str; 38] = [
    "ACL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "CONNECT",
    "COPY",
    "DELETE",
    "GET",
    "GRPC",
    "HEAD",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "OPTIONS",
    "ORDERPATCH",
    "PATCH",
    "POST",
    "PRI",
    "PROPFIND",
    "PROPPATCH",
    "PUT",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "TRACE",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
];

/// The method that a call is rolled up under.
pub fn in_rollups(method: &str) -> &str {
    if KNOWN.binary_search(&method).is_ok() { method } else { OTHER }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_methods_stay_and_others_are_one() {
        assert!(KNOWN.is_sorted());
        assert!(KNOWN.iter().all(|known| in_rollups(known) == *known));
        for made_up in ["", "get", "GETT", "OTHER", "{other}", "ZZZZZZZZZZZZZZZZ"] {
            assert_eq!(in_rollups(made_up), OTHER, "{made_up}");
        }
    }
}
