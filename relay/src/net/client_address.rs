//! Which load balancers are believed about whom they bring, and what `X-Forwarded-For` then says. Pure: no I/O.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use ipnet::{IpNet, PrefixLenError};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Networks of load balancers. Cheap to clone; empty by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Arc<[IpNet]>);

/// Why a text names no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// No address, or no prefix behind it.
    #[error("neither a network like 10.0.0.0/8 or 2001:db8::/32 nor an address")]
    Form,
    /// Bits behind the prefix: more is trusted than the text shows.
    #[error("the address does not end where the prefix does; write {0}, or the address alone")]
    HostBits(IpNet),
    /// IPv4 written as IPv6. Peers' addresses are never seen so.
    #[error("write IPv4 networks in IPv4's own form")]
    Mapped,
}

/// Reads a network, or an address as the network of it alone.
///
/// # Errors
/// [`NetworkError`].
pub fn network(text: &str) -> Result<IpNet, NetworkError> {
    let alone = |address: IpAddr| -> Result<IpNet, PrefixLenError> { IpNet::new(address, if address.is_ipv4() { 32 } else { 128 }) };
    let network = match text.parse::<IpAddr>() {
        Ok(address) => alone(address).map_err(|_| NetworkError::Form)?,
        Err(_) => text.parse::<IpNet>().map_err(|_| NetworkError::Form)?,
    };
    match network {
        IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some() => Err(NetworkError::Mapped),
        _ if network.addr() != network.network() => Err(NetworkError::HostBits(network.trunc())),
        _ => Ok(network),
    }
}

impl TrustedProxies {
    /// Trusts these networks.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks.into())
    }

    /// Whether nobody is trusted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an address, IPv4 in its own form, is in one of the networks.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }

    /// The address that a request from `peer` comes from: the first one, going back from the peer, that is no trusted proxy.
    ///
    /// Each proxy wrote down who came to it, at the end of what it was given. So each that is trusted is believed about the one before
    /// it. What cannot be read ends the way back, at the last trusted one; all further to the left may be anybody's invention.
    pub(crate) fn forwarded(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if !self.contains(peer) {
            return peer;
        }
        let lines = headers.get_all(X_FORWARDED_FOR).iter().rev();
        let hops = lines.flat_map(|line| line.as_bytes().rsplit(|&byte| byte == b','));
        let mut address = peer;
        for hop in hops {
            match hop_address(hop) {
                Some(before) => address = before,
                None => return address,
            }
            if !self.contains(address) {
                return address;
            }
        }
        address
    }
}

/// `192.0.2.1`, `2001:db8::1`, `[2001:db8::1]`, each but the second with a port or without.
fn hop_address(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?.trim_matches([' ', '\t']);
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).filter(|inner| inner.contains(':'));
    let address = match bare.unwrap_or(text).parse() {
        Ok(address) => address,
        Err(_) => text.parse::<SocketAddr>().ok()?.ip(),
    };
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn trusted() -> TrustedProxies {
        TrustedProxies::new(vec![network("10.0.0.0/8").unwrap(), network("192.0.2.1").unwrap(), network("2001:db8::/32").unwrap()])
    }

    /// What a request from `peer` with these lines is taken to come from.
    fn from(peer: &str, lines: &[&str]) -> IpAddr {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(X_FORWARDED_FOR, http::HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        trusted().forwarded(ip(peer), &headers)
    }

    #[test]
    fn networks_are_read_and_traps_are_refused() {
        assert_eq!(network("10.0.0.0/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(network("192.0.2.1").unwrap().to_string(), "192.0.2.1/32");
        assert_eq!(network("2001:db8::1").unwrap().to_string(), "2001:db8::1/128");
        assert_eq!(network("10.1.2.3/8"), Err(NetworkError::HostBits("10.0.0.0/8".parse().unwrap())));
        assert_eq!(network("::ffff:10.0.0.0/104"), Err(NetworkError::Mapped));
        for text in ["", "10.0.0.0/33", "10.0.0", "balancer", "10.0.0.0/", "[::1]/128", "10.0.0.0/8 "] {
            assert_eq!(network(text), Err(NetworkError::Form), "{text}");
        }
    }

    #[test]
    fn nobody_else_is_believed() {
        assert_eq!(from("203.0.113.9", &["198.51.100.1"]), ip("203.0.113.9"));
        assert_eq!(from("192.0.2.2", &["198.51.100.1"]), ip("192.0.2.2"), "beside a trusted one");
        assert_eq!(TrustedProxies::default().forwarded(ip("10.0.0.1"), &HeaderMap::new()), ip("10.0.0.1"));
    }

    #[test]
    fn a_balancer_is_believed_about_whom_it_brings() {
        assert_eq!(from("10.0.0.1", &[]), ip("10.0.0.1"), "its own health check");
        assert_eq!(from("10.0.0.1", &["198.51.100.1"]), ip("198.51.100.1"));
        assert_eq!(from("192.0.2.1", &[" 198.51.100.1\t"]), ip("198.51.100.1"));
        assert_eq!(from("2001:db8::7", &["2a00::1"]), ip("2a00::1"));
    }

    #[test]
    fn what_a_client_wrote_before_it_is_not_believed() {
        assert_eq!(from("10.0.0.1", &["10.9.9.9, 198.51.100.1"]), ip("198.51.100.1"), "a spoofed hop that looks trusted");
        assert_eq!(from("10.0.0.1", &["1.1.1.1, 10.9.9.9, 198.51.100.1, 10.0.0.2"]), ip("198.51.100.1"), "through two balancers");
        assert_eq!(from("10.0.0.1", &["1.1.1.1", "198.51.100.1"]), ip("198.51.100.1"), "a line of its own");
        assert_eq!(from("10.0.0.1", &["1.1.1.1, 198.51.100.1", "10.0.0.2"]), ip("198.51.100.1"), "lines are one list");
    }

    #[test]
    fn a_caller_within_the_trusted_networks_is_the_furthest_that_they_vouch_for() {
        assert_eq!(from("10.0.0.1", &["10.5.5.5, 10.0.0.2"]), ip("10.5.5.5"));
    }

    #[test]
    fn what_cannot_be_read_ends_the_way_at_the_last_trusted_one() {
        for broken in ["", "unknown", "198.51.100.300", "198.51.100.1:", "198.51.100.1:99999", "[2a00::1", "[198.51.100.1]", "\u{e9}"] {
            assert_eq!(from("10.0.0.1", &[&format!("1.1.1.1, {broken}")]), ip("10.0.0.1"), "{broken:?}");
            assert_eq!(from("10.0.0.1", &[&format!("1.1.1.1, {broken}, 10.0.0.2")]), ip("10.0.0.2"), "{broken:?}");
        }
    }

    #[test]
    fn a_hop_may_have_a_port_and_ipv4_may_look_like_ipv6() {
        assert_eq!(from("10.0.0.1", &["198.51.100.1:4711"]), ip("198.51.100.1"));
        assert_eq!(from("10.0.0.1", &["[2a00::1]:4711"]), ip("2a00::1"));
        assert_eq!(from("10.0.0.1", &["[2a00::1]"]), ip("2a00::1"));
        assert_eq!(from("10.0.0.1", &["::ffff:198.51.100.1"]), ip("198.51.100.1"));
        assert_eq!(from("10.0.0.1", &["198.51.100.1, ::ffff:10.0.0.2"]), ip("198.51.100.1"), "a trusted one in disguise");
    }
}
