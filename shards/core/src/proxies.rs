//! Proxies in front of the node, and who is behind them.
//!
//! A client can write any `X-Forwarded-For` it likes; only what a trusted proxy wrote counts. Every proxy appends the
//! address it was connected from, so the list is read from its end, as long as those who wrote it are trusted.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// The header that is read, in lower case.
pub const FORWARDED_HEADER: &str = "x-forwarded-for";

/// Bits of an address; one of IPv4 is seen as mapped into IPv6.
const ADDRESS_BITS: u8 = 128;
/// Leading bits that all mapped addresses have in common.
const MAPPED_BITS: u8 = 96;

/// Addresses with a common beginning, `10.0.0.0/8`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    first: u128,
    /// Leading bits that count, of 128.
    prefix_bits: u8,
}

/// A text is no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not an IP address or a network such as 10.0.0.0/8")]
pub struct NetworkError;

impl Network {
    /// Whether an address is one of its.
    pub fn contains(&self, address: IpAddr) -> bool {
        (bits(address) ^ self.first) & mask(self.prefix_bits) == 0
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, prefix) = match text.split_once('/') {
            None => (text, None),
            Some((address, prefix)) => (address, Some(prefix)),
        };
        let address: IpAddr = address.parse().map_err(|_| NetworkError)?;
        let (own_bits, before) =
            if address.is_ipv4() { (32, MAPPED_BITS) } else { (ADDRESS_BITS, 0) };
        let prefix: u8 = prefix.map_or(Ok(own_bits), str::parse).map_err(|_| NetworkError)?;
        if prefix > own_bits {
            return Err(NetworkError);
        }
        let prefix_bits = prefix + before;
        Ok(Self { first: bits(address) & mask(prefix_bits), prefix_bits })
    }
}

fn bits(address: IpAddr) -> u128 {
    let wide = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    Ipv6Addr::to_bits(wide)
}

fn mask(prefix_bits: u8) -> u128 {
    u128::MAX.checked_shl(u32::from(ADDRESS_BITS - prefix_bits)).unwrap_or(0)
}

/// Proxies whose word is taken for who their clients are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies(Box<[Network]>);

impl Proxies {
    /// Those of some networks.
    pub fn new(networks: impl IntoIterator<Item = Network>) -> Self {
        Self(networks.into_iter().collect())
    }

    /// Whether an address is that of a proxy.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }

    /// The client that speaks through `peer`: the last address of the `X-Forwarded-For` lines (in their order) that is no
    /// proxy's. What cannot be read ends the search at the proxy that wrote it. `peer` itself when it is no proxy.
    pub fn client<'a>(&self, peer: IpAddr, lines: impl Iterator<Item = &'a str>) -> IpAddr {
        if !self.trusts(peer) {
            return peer;
        }
        let lines: Vec<&str> = lines.collect();
        let mut client = peer;
        for entry in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
            let Some(address) = parse_entry(entry.trim()) else { return client };
            client = address;
            if !self.trusts(address) {
                return client;
            }
        }
        client
    }
}

/// An address; some proxies put it in brackets or append the port.
fn parse_entry(entry: &str) -> Option<IpAddr> {
    let address = entry.parse().ok();
    let with_port = || entry.parse::<SocketAddr>().ok().map(|address| address.ip());
    let bracketed = || entry.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    address.or_else(with_port).or_else(bracketed).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn proxies(networks: &[&str]) -> Proxies {
        Proxies::new(networks.iter().map(|text| text.parse().unwrap()))
    }

    #[test]
    fn networks_are_read() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.1.2.3/8", "10.9.9.9", "9.1.2.3"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("::ffff:192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
            ("0.0.0.0/0", "255.1.1.1", "2001:db8::1"),
            ("10.0.0.0/31", "::ffff:10.0.0.1", "10.0.0.2"),
        ] {
            let parsed: Network = network.parse().unwrap();
            assert!(parsed.contains(inside.parse().unwrap()), "{inside} in {network}");
            assert!(!parsed.contains(outside.parse().unwrap()), "{outside} not in {network}");
        }
        assert!("::/0".parse::<Network>().unwrap().contains("1.2.3.4".parse().unwrap()));
        for bad in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "a/8", "10.0.0.0/", "10.0.0.0/-1"] {
            assert_eq!(bad.parse::<Network>(), Err(NetworkError), "{bad}");
        }
    }

    fn check(peer: &str, lines: &[&str], expected: &str) {
        let proxies = proxies(&["10.0.0.0/8", "2001:db8::/32"]);
        let client = proxies.client(peer.parse().unwrap(), lines.iter().copied());
        assert_eq!(client, expected.parse::<IpAddr>().unwrap(), "{peer} {lines:?}");
    }

    #[test]
    fn the_last_address_that_no_proxy_has_is_the_client() {
        check("192.0.2.1", &["198.51.100.1"], "192.0.2.1");
        check("10.0.0.1", &[], "10.0.0.1");
        check("10.0.0.1", &["198.51.100.1"], "198.51.100.1");
        check("10.0.0.1", &["203.0.113.9, 198.51.100.1, 10.0.0.2"], "198.51.100.1");
        check("10.0.0.1", &["203.0.113.9", "198.51.100.1"], "198.51.100.1");
        check("10.0.0.1", &["10.0.0.3 ,10.0.0.2"], "10.0.0.3");
        check("10.0.0.1", &["198.51.100.1, nonsense, 10.0.0.2"], "10.0.0.2");
        check("10.0.0.1", &["198.51.100.1,"], "10.0.0.1");
        check("2001:db8::1", &["[2001:db9::7]:443"], "2001:db9::7");
        check("2001:db8::1", &["[2001:db9::7]"], "2001:db9::7");
        check("10.0.0.1", &["198.51.100.1:50123"], "198.51.100.1");
        check("::ffff:10.0.0.1", &["::ffff:198.51.100.1"], "198.51.100.1");
    }
}
