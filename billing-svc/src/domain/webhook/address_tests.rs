use proptest::prelude::*;

use super::*;

fn permitted(text: &str) -> bool {
    Reachable::default().permits(text.parse().expect("an address"))
}

#[test]
fn the_first_and_the_last_address_of_what_is_special_are_refused_and_their_neighbours_are_not() {
    for special in [
        "0.0.0.0",
        "0.255.255.255",
        "10.0.0.0",
        "10.255.255.255",
        "100.64.0.0",
        "100.127.255.255",
        "127.0.0.1",
        "127.255.255.255",
        "169.254.169.254",
        "172.16.0.0",
        "172.31.255.255",
        "192.168.0.0",
        "192.168.255.255",
        "198.18.0.0",
        "198.19.255.255",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:8.8.8.8",
        "::ffff:127.0.0.1",
        "::8.8.8.8",
        "64:ff9b::8.8.8.8",
        "64:ff9b:1::1",
        "fc00::1",
        "fdff:ffff::1",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "2001::1",
        "2001:1ff:ffff::1",
        "2001:db8::1",
        "2002:7f00:1::1",
        "3fff::1",
        "5f00::1",
        "fd00:ec2::254",
    ] {
        assert!(!permitted(special), "{special}");
    }
    for public in [
        "1.0.0.0",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "2001:200::1",
        "2001:db7::1",
        "2001:db9::1",
        "2003::1",
        "2606:4700::1",
        "3ffe::1",
    ] {
        assert!(permitted(public), "{public}");
    }
}

/// The rule in other words, by the numbers.
fn special_v4(n: u32) -> bool {
    let [a, b, c, _] = n.to_be_bytes();
    match a {
        0 | 10 | 127 | 224..=255 => true,
        100 => (64..128).contains(&b),
        169 => b == 254,
        172 => (16..32).contains(&b),
        192 => b == 168 || matches!((b, c), (0, 0 | 2) | (31, 196) | (52, 193) | (88, 99)),
        198 => matches!(b, 18 | 19) || (b, c) == (51, 100),
        203 => (b, c) == (0, 113),
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn an_ipv4_address_is_permitted_exactly_where_it_is_public(n in any::<u32>()) {
        prop_assert_eq!(Reachable::default().permits(Ipv4Addr::from(n).into()), !special_v4(n));
    }

    /// Whatever the IPv4 address within is: there are six ways to write it into one of IPv6.
    #[test]
    fn an_ipv4_address_in_another_dress_is_refused(n in any::<u32>()) {
        let within = u128::from(n);
        let translated = 0x0064_ff9b_u128 << 96;
        let six_to_four = (0x2002_u128 << 112) | (within << 80) | 1;
        let teredo = (0x2001_0000_u128 << 96) | u128::from(!n);
        for dressed in [within, (0xffff << 32) | within, translated | within, six_to_four, teredo,
                        (0x0064_ff9b_0001_u128 << 80) | within] {
            prop_assert!(!Reachable::default().permits(Ipv6Addr::from(dressed).into()));
        }
    }

    #[test]
    fn an_ipv6_address_outside_global_unicast_is_refused(n in any::<u128>()) {
        let address = Ipv6Addr::from(n);
        if address.segments()[0] & 0xe000 != 0x2000 {
            prop_assert!(!Reachable::default().permits(address.into()));
        }
    }

    /// What the configuration allows is permitted, and nothing beside it.
    #[test]
    fn an_allowed_network_adds_itself_alone(n in any::<u32>(), bits in 8_u8..=32, other in any::<u32>()) {
        let net = Ipv4Net::new_assert(Ipv4Addr::from(n), bits);
        let reachable = Reachable::with(vec![net.into()]);
        let other = Ipv4Addr::from(other);
        prop_assert!(reachable.permits(Ipv4Addr::from(n).into()));
        prop_assert!(reachable.permits(Ipv4Addr::from(n).to_ipv6_mapped().into()));
        prop_assert_eq!(reachable.permits(other.into()), net.contains(&other) || !special_v4(other.into()));
        prop_assert_eq!(reachable.permits(other.to_ipv6_mapped().into()), net.contains(&other));
    }
}
