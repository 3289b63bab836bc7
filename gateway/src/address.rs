//! Where a request came from: the other end of its connection or, behind proxies of ours, whom they say.

use std::{
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// By which other proxies say the same; it is not read.
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
/// What many customers of providers have, and so may change at will within: 56 bits.
const NETWORK_OF_ONE: u128 = u128::MAX << 72;

/// The other end of a connection; the server puts it beside each request.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

/// The address that a request counts for; the layer puts it beside each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client(pub IpAddr);

/// Networks of proxies whose word is taken.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    networks: Vec<IpNet>,
    /// Whether it was told that another's was not.
    told: Arc<AtomicBool>,
}

impl FromStr for Proxies {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let network = |entry: &str| {
            entry.parse().map_err(|_| format!("`{entry}` is not a network such as 10.0.0.0/8 or ::1/128"))
        };
        let networks = entries.map(network).collect::<Result<_, _>>()?;
        Ok(Self { networks, ..Self::default() })
    }
}

impl Proxies {
    /// Whom a request of this peer is from. Each proxy appends the one before it, so the list is read from its end,
    /// and what comes before somebody who is not trusted is that one's word.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> Client {
        let mut client = plain(peer);
        let lists = headers.get_all(FORWARDED_FOR).iter().rev();
        let mut said = lists.flat_map(|list| list.as_bytes().rsplit(|byte| *byte == b','));
        while self.trusts(client) {
            match said.next().and_then(address) {
                Some(before) => client = before,
                None => break,
            }
        }
        Client(network_of_one(client))
    }

    /// Whether this peer says whom a request is from and is not believed, for the first time that anybody does: a proxy
    /// that was not named, behind which all are one address, or a client that makes it up.
    pub fn first_not_believed(&self, peer: IpAddr, headers: &HeaderMap) -> bool {
        let says = headers.contains_key(FORWARDED_FOR) || headers.contains_key(FORWARDED);
        says && !self.trusts(plain(peer)) && !self.told.swap(true, Ordering::Relaxed)
    }

    /// The other end of a connection, unless it is a proxy of ours.
    pub fn untrusted_peer(&self, peer: IpAddr) -> Option<IpAddr> {
        let peer = plain(peer);
        (!self.trusts(peer)).then(|| network_of_one(peer))
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address))
    }
}

/// An address of a list, which some write with a port.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(entry).ok()?.trim();
    let address = text.parse().or_else(|_| text.parse().map(|socket: std::net::SocketAddr| socket.ip()));
    address.ok().map(plain)
}

/// An IPv4 address that came in the form of IPv6 is one of IPv4.
fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// An address of IPv4; of IPv6 the network that it is in.
fn network_of_one(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & NETWORK_OF_ONE)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(proxies: &str, peer: &str, lists: &[&str]) -> String {
        let proxies: Proxies = proxies.parse().expect("networks");
        let values = lists.iter().map(|list| (FORWARDED_FOR, list.parse().expect("a value")));
        proxies.client(peer.parse().expect("an address"), &values.collect()).0.to_string()
    }

    #[test]
    fn only_proxies_of_ours_are_believed() {
        assert_eq!(client("", "192.0.2.1", &["198.51.100.7"]), "192.0.2.1");
        assert_eq!(client("10.0.0.0/8", "192.0.2.1", &["198.51.100.7"]), "192.0.2.1");
        assert_eq!(client("10.0.0.0/8", "10.1.2.3", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(client("10.0.0.0/8", "::ffff:10.1.2.3", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(client("10.0.0.0/8", "10.1.2.3", &[]), "10.1.2.3");
        assert_eq!(client("10.0.0.0/8", "10.1.2.3", &["unknown"]), "10.1.2.3");
    }

    #[test]
    fn the_last_that_is_not_ours_counts_whatever_it_says_itself() {
        let lists = ["203.0.113.9, 198.51.100.7", "10.9.9.9"];
        assert_eq!(client("10.0.0.0/8", "10.1.2.3", &lists), "198.51.100.7");
        assert_eq!(client("10.0.0.0/8", "10.1.2.3", &["1.1.1.1, 198.51.100.7:4711"]), "198.51.100.7");
        assert_eq!(client("10.0.0.0/8", "10.1.2.3", &["1.1.1.1, x, 10.4.4.4"]), "10.4.4.4");
    }

    #[test]
    fn what_a_client_wrote_before_is_no_matter() {
        let list = http::HeaderValue::from_bytes(b"\xff, 198.51.100.7").expect("a value");
        let proxies: Proxies = "10.0.0.0/8".parse().expect("networks");
        let client = proxies.client([10, 1, 2, 3].into(), &HeaderMap::from_iter([(FORWARDED_FOR, list)]));
        assert_eq!(client, Client([198, 51, 100, 7].into()));
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        assert_eq!(client("", "2001:db8:1:2ff:3:4:5:6", &[]), "2001:db8:1:200::");
        assert_eq!(client("10.0.0.0/8", "10.1.2.3", &["[2001:db8:1:201::9]:443"]), "2001:db8:1:200::");
    }

    #[test]
    fn who_connects_is_an_address_unless_it_is_a_proxy_of_ours() {
        let proxies: Proxies = "10.0.0.0/8".parse().expect("networks");
        let untrusted =
            |peer: &str| proxies.untrusted_peer(peer.parse().expect("an address")).map(|a| a.to_string());
        assert_eq!((untrusted("10.1.2.3"), untrusted("::ffff:10.1.2.3")), (None, None));
        assert_eq!(untrusted("::ffff:192.0.2.1").as_deref(), Some("192.0.2.1"));
        // Whoever has 256 networks of 64 bits is one of them.
        assert_eq!(untrusted("2001:db8:1:2ff:3::1").as_deref(), Some("2001:db8:1:200::"));
        assert_eq!(untrusted("2001:db8:1:201::1").as_deref(), Some("2001:db8:1:200::"));
    }

    #[test]
    fn that_somebody_is_not_believed_is_told_once() {
        let proxies: Proxies = "10.0.0.0/8".parse().expect("networks");
        let says = |name| HeaderMap::from_iter([(name, "198.51.100.7".parse().expect("a value"))]);
        let told = |peer: [u8; 4], headers| proxies.first_not_believed(peer.into(), &headers);
        assert!(!told([192, 0, 2, 1], HeaderMap::new()) && !told([10, 1, 2, 3], says(FORWARDED_FOR)));
        assert!(told([192, 0, 2, 1], says(FORWARDED_FOR)));
        assert!(!told([192, 0, 2, 2], says(FORWARDED_FOR)));
        assert!(Proxies::default().first_not_believed([192, 0, 2, 1].into(), &says(FORWARDED)));
    }

    #[test]
    fn what_is_no_network_is_told() {
        assert!("10.0.0.0/8, here".parse::<Proxies>().is_err_and(|e| e.contains("`here`")));
        assert!("10.0.0.1".parse::<Proxies>().is_err());
    }
}
