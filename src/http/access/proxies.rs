//! Proxies: which hosts are trusted to say where a request comes from.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use axum::http::HeaderMap;
use ipnet::IpNet;

use crate::excerpt::excerpt;

/// The header to which each proxy appends the address of its client.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// A network whose hosts are proxies, or one proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) struct ProxyNet(IpNet);

impl FromStr for ProxyNet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let net = text.parse().or_else(|_| text.parse().map(|address: IpAddr| address.to_canonical().into()));
        net.map(Self).map_err(|_| {
            excerpt(format_args!("{text:?} is not an address or a network, as in 192.0.2.7 or 2001:db8::/32"))
        })
    }
}

/// The trusted proxies.
#[derive(Clone, Debug, Default)]
pub(super) struct Proxies(Vec<IpNet>);

impl Proxies {
    pub(super) fn new(nets: &[ProxyNet]) -> Self {
        Self(nets.iter().map(|net| net.0).collect())
    }

    pub(super) fn contain(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|net| net.contains(&address))
    }

    /// The origin of a request from a proxy: the last address in its header that is not a proxy's. Any client
    /// may have written the addresses before that. If an address cannot be read, the origin is the proxy that
    /// passed it on.
    pub(super) fn origin(&self, proxy: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut origin = proxy;
        let hops =
            headers.get_all(FORWARDED_FOR).iter().rev().map(|value| value.to_str().unwrap_or_default());
        for hop in hops.flat_map(|hops| hops.rsplit(',')) {
            let Some(address) = address(hop.trim()) else { break };
            origin = address;
            if !self.contain(origin) {
                break;
            }
        }
        origin
    }
}

/// An address as proxies write it, some with the port.
fn address(hop: &str) -> Option<IpAddr> {
    let bare = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']')).unwrap_or(hop);
    let with_port = || hop.parse().map(|address: SocketAddr| address.ip());
    bare.parse().or_else(|_| with_port()).ok().map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn proxies() -> Proxies {
        Proxies::new(&["192.0.2.0/24".parse().unwrap(), "2001:db8::1".parse().unwrap()])
    }

    fn origin(headers: &[&str]) -> String {
        let mut map = HeaderMap::new();
        for value in headers {
            map.append(FORWARDED_FOR, value.parse().unwrap());
        }
        proxies().origin("192.0.2.1".parse().unwrap(), &map).to_string()
    }

    #[test]
    fn the_last_address_that_is_no_proxys_is_where_a_request_comes_from() {
        for (headers, expected) in [
            (&[][..], "192.0.2.1"),
            (&["198.51.100.7"], "198.51.100.7"),
            (&["203.0.113.9, 198.51.100.7"], "198.51.100.7"),
            (&["198.51.100.7,192.0.2.9 , 2001:db8::1"], "198.51.100.7"),
            (&["203.0.113.9", "198.51.100.7", "192.0.2.9"], "198.51.100.7"),
            (&["192.0.2.8, 192.0.2.9"], "192.0.2.8"),
            (&["198.51.100.7:4711"], "198.51.100.7"),
            (&["2001:db8::2"], "2001:db8::2"),
            (&["[2001:db8::2]"], "2001:db8::2"),
            (&["[2001:db8::2]:4711"], "2001:db8::2"),
            (&["::ffff:198.51.100.7"], "198.51.100.7"),
            (&["198.51.100.7, unknown, 192.0.2.9"], "192.0.2.9"),
            (&["198.51.100.7, "], "192.0.2.1"),
            (&["nonsense"], "192.0.2.1"),
        ] {
            assert_eq!(origin(headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn a_proxy_is_an_address_or_a_network() {
        assert!(proxies().contain("::ffff:192.0.2.77".parse().unwrap()));
        assert!(!proxies().contain("2001:db8::2".parse().unwrap()));
        for text in ["", "proxy.example", "192.0.2.0/33", "192.0.2"] {
            let error = text.parse::<ProxyNet>().unwrap_err();
            assert!(error.contains("is not an address or a network"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_header_is_too_strange(values in prop::collection::vec("[ -~]{0,60}", 0..4)) {
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            origin(&values);
        }
    }
}
