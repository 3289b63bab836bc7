//! Which URLs an endpoint may have. Names are not looked up here: what they lead to is asked when a request is sent,
//! for it may change at any time.

use std::net::IpAddr;

use hyper::Uri;

use super::address::Reachable;

/// Bytes of a URL.
const MAX_BYTES: usize = 2_048;

/// What requests may be sent to.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Addresses.
    pub reachable: Reachable,
    /// Whether also without TLS.
    pub allow_http: bool,
}

/// A URL that requests may be sent to, in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Whether with TLS.
    pub tls: bool,
    /// Name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Header `Host`: as it stands in the URL.
    pub authority: String,
    /// Path and query.
    pub path: String,
}

impl Policy {
    /// Reads a URL, and says what is wrong with it.
    pub fn target(&self, url: &str) -> Result<Target, &'static str> {
        const MESSAGE: &str = "must be a URL such as https://example.com/webhooks";
        if url.len() > MAX_BYTES {
            return Err("must have at most 2048 bytes");
        }
        if url.contains('#') {
            return Err("must have no fragment");
        }
        let uri: Uri = url.parse().map_err(|_| MESSAGE)?;
        let (tls, default_port) = match uri.scheme_str() {
            Some("https") => (true, 443),
            Some("http") if self.allow_http => (false, 80),
            Some("http") => return Err("must begin with https://"),
            _ => return Err(MESSAGE),
        };
        let authority = uri.authority().ok_or(MESSAGE)?;
        if authority.as_str().contains('@') {
            return Err("must have no user and no password");
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || authority.port_u16() == Some(0) {
            return Err(MESSAGE);
        }
        if host.parse::<IpAddr>().is_ok_and(|address| !self.reachable.permits(address)) {
            return Err("must be a public address");
        }
        Ok(Target {
            tls,
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(default_port),
            authority: authority.as_str().to_owned(),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        let policy = Policy::default();
        let parts = |url: &str| policy.target(url).map(|t| (t.host, t.port, t.authority, t.path));
        let plain = ("example.com".into(), 443, "example.com".into(), "/".into());
        assert_eq!(parts("https://example.com"), Ok(plain));
        let whole = ("h.example".into(), 8443, "h.example:8443".into(), "/a/b?c=d".into());
        assert_eq!(parts("https://h.example:8443/a/b?c=d"), Ok(whole));
        let v6 = ("2606:4700::1".into(), 443, "[2606:4700::1]".into(), "/x".into());
        assert_eq!(parts("https://[2606:4700::1]/x"), Ok(v6));
    }

    #[test]
    fn what_no_request_may_be_sent_to_is_refused() {
        let long = format!("https://example.com/{}", "a".repeat(2_048));
        for bad in [
            "",
            "example.com",
            "/path",
            "https://",
            "https:///path",
            "ftp://example.com/",
            "http://example.com/",
            "https://user@example.com/",
            "https://user:password@example.com/",
            "https://example.com/#part",
            "https://example.com:0/",
            "https://exa mple.com/",
            "https://127.0.0.1/",
            "https://10.1.2.3/",
            "https://169.254.169.254/latest/meta-data",
            "https://[::1]/",
            "https://[::ffff:10.0.0.1]/",
            "https://[fd00:ec2::254]/",
            long.as_str(),
        ] {
            assert!(Policy::default().target(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_configuration_may_allow_more() {
        let loopback = vec!["127.0.0.0/8".parse().expect("a network")];
        let policy = Policy { reachable: Reachable::with(loopback), allow_http: true };
        assert!(policy.target("http://127.0.0.1:8080/hook").is_ok_and(|target| !target.tls));
        assert!(policy.target("http://10.0.0.1/").is_err());
    }
}
