//! The address of a client: which load balancers are trusted to name it, how they do, and what counts as one address. Pure: no I/O.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use ipnet::{IpNet, PrefixLenError};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// How a load balancer names the client's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAddressSource {
    /// In `X-Forwarded-For` of each request. Other peers may connect too; their address is their own.
    ForwardedFor,
    /// In a PROXY protocol header at the start of each connection. Other peers may not connect.
    ProxyProtocol,
}

/// What counts as one address where connections are limited: an IPv4 address, or an IPv6 /64, which is what one site or host gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressPrefix(IpAddr);

/// Networks of load balancers. Cheap to clone; empty by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Arc<[IpNet]>);

/// Why a text is not a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// It is neither an address nor a network.
    #[error("neither a network like 10.0.0.0/8 or 2001:db8::/32 nor an address")]
    Form,
    /// Bits are set behind the prefix: more would be trusted than the text shows.
    #[error("the address does not end where the prefix does; write {0}, or the address alone")]
    HostBits(IpNet),
    /// An IPv4 network in IPv6 form. Addresses are compared in IPv4's own form, so it would never match.
    #[error("write IPv4 networks in IPv4's own form")]
    Mapped,
}

/// Parses a network, or an address as a network of one.
///
/// # Errors
/// [`NetworkError`].
pub fn network(text: &str) -> Result<IpNet, NetworkError> {
    let single = |address: IpAddr| -> Result<IpNet, PrefixLenError> { IpNet::new(address, if address.is_ipv4() { 32 } else { 128 }) };
    let network = match text.parse::<IpAddr>() {
        Ok(address) => single(address).map_err(|_| NetworkError::Form)?,
        Err(_) => text.parse::<IpNet>().map_err(|_| NetworkError::Form)?,
    };
    match network {
        IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some() => Err(NetworkError::Mapped),
        _ if network.addr() != network.network() => Err(NetworkError::HostBits(network.trunc())),
        _ => Ok(network),
    }
}

impl AddressPrefix {
    /// The prefix of an address.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(v4.into()),
            IpAddr::V6(v6) => Self(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into()),
        }
    }
}

impl TrustedProxies {
    /// Trusts these networks.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks.into())
    }

    /// Whether no network is trusted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of the networks contains an address, IPv4 in its own form.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }

    /// The prefix that a connection from `address` counts for; none for a trusted proxy, which connects for many clients.
    pub(crate) fn prefix_of(&self, address: IpAddr) -> Option<AddressPrefix> {
        (!self.contains(address)).then(|| AddressPrefix::of(address))
    }

    /// The client's address of a request that came from `peer`: the first one, going back from the peer, that is no trusted proxy.
    ///
    /// Each proxy appends the address that connected to it. So the entry that a trusted proxy appended is true, and everything further left
    /// may be forged. An entry that cannot be parsed ends the walk at the last trusted proxy.
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

/// Parses `192.0.2.1`, `2001:db8::1` or `[2001:db8::1]`; the first and the last may have a port.
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

    /// The client's address of a request from `peer` with these header lines.
    fn from(peer: &str, lines: &[&str]) -> IpAddr {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(X_FORWARDED_FOR, http::HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        trusted().forwarded(ip(peer), &headers)
    }

    #[test]
    fn networks_are_parsed_and_misleading_ones_are_refused() {
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
    fn other_peers_are_not_trusted() {
        assert_eq!(from("203.0.113.9", &["198.51.100.1"]), ip("203.0.113.9"));
        assert_eq!(from("192.0.2.2", &["198.51.100.1"]), ip("192.0.2.2"), "next to a trusted one");
        assert_eq!(TrustedProxies::default().forwarded(ip("10.0.0.1"), &HeaderMap::new()), ip("10.0.0.1"));
    }

    #[test]
    fn a_load_balancer_names_the_client() {
        assert_eq!(from("10.0.0.1", &[]), ip("10.0.0.1"), "its own health check");
        assert_eq!(from("10.0.0.1", &["198.51.100.1"]), ip("198.51.100.1"));
        assert_eq!(from("192.0.2.1", &[" 198.51.100.1\t"]), ip("198.51.100.1"));
        assert_eq!(from("2001:db8::7", &["2a00::1"]), ip("2a00::1"));
    }

    #[test]
    fn entries_written_by_the_client_are_not_trusted() {
        assert_eq!(from("10.0.0.1", &["10.9.9.9, 198.51.100.1"]), ip("198.51.100.1"), "a spoofed hop that looks trusted");
        assert_eq!(from("10.0.0.1", &["1.1.1.1, 10.9.9.9, 198.51.100.1, 10.0.0.2"]), ip("198.51.100.1"), "through two balancers");
        assert_eq!(from("10.0.0.1", &["1.1.1.1", "198.51.100.1"]), ip("198.51.100.1"), "a line of its own");
        assert_eq!(from("10.0.0.1", &["1.1.1.1, 198.51.100.1", "10.0.0.2"]), ip("198.51.100.1"), "lines are one list");
    }

    #[test]
    fn a_client_within_the_trusted_networks_is_the_first_entry() {
        assert_eq!(from("10.0.0.1", &["10.5.5.5, 10.0.0.2"]), ip("10.5.5.5"));
    }

    #[test]
    fn an_entry_that_cannot_be_parsed_ends_the_walk_at_the_last_trusted_proxy() {
        for broken in ["", "unknown", "198.51.100.300", "198.51.100.1:", "198.51.100.1:99999", "[2a00::1", "[198.51.100.1]", "\u{e9}"] {
            assert_eq!(from("10.0.0.1", &[&format!("1.1.1.1, {broken}")]), ip("10.0.0.1"), "{broken:?}");
            assert_eq!(from("10.0.0.1", &[&format!("1.1.1.1, {broken}, 10.0.0.2")]), ip("10.0.0.2"), "{broken:?}");
        }
    }

    #[test]
    fn an_entry_may_have_a_port_and_ipv4_may_be_in_ipv6_form() {
        assert_eq!(from("10.0.0.1", &["198.51.100.1:4711"]), ip("198.51.100.1"));
        assert_eq!(from("10.0.0.1", &["[2a00::1]:4711"]), ip("2a00::1"));
        assert_eq!(from("10.0.0.1", &["[2a00::1]"]), ip("2a00::1"));
        assert_eq!(from("10.0.0.1", &["::ffff:198.51.100.1"]), ip("198.51.100.1"));
        assert_eq!(from("10.0.0.1", &["198.51.100.1, ::ffff:10.0.0.2"]), ip("198.51.100.1"), "a trusted one in another notation");
    }

    #[test]
    fn one_ipv4_address_and_one_ipv6_site_count_as_one() {
        let prefix = |text: &str| AddressPrefix::of(ip(text));
        assert_eq!(prefix("192.0.2.1"), prefix("::ffff:192.0.2.1"));
        assert_ne!(prefix("192.0.2.1"), prefix("192.0.2.2"));
        assert_eq!(prefix("2001:db8:0:1::1"), prefix("2001:db8:0:1:ffff:ffff:ffff:ffff"));
        assert_ne!(prefix("2001:db8:0:1::1"), prefix("2001:db8:0:2::1"));
        assert_eq!((trusted().prefix_of(ip("10.1.2.3")), trusted().prefix_of(ip("192.0.2.2"))), (None, Some(prefix("192.0.2.2"))));
    }
}
