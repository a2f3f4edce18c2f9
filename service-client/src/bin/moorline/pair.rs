//! `[ADDRESS:]PORT:SERVICE`: where to listen, and the service behind it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use moorline::ServiceName;

/// A local address, and the service that its connections reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) local: SocketAddr,
    pub(crate) service: ServiceName,
}

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (local, service) = text.rsplit_once(':').ok_or("expected [ADDRESS:]PORT:SERVICE, like 8080:http")?;
        let service = service.parse::<ServiceName>().map_err(|error| error.to_string())?;
        let (address, port) = match local.rsplit_once(':') {
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), local),
            Some((address, port)) => (listen_address(address)?, port),
        };
        let port = port.parse().map_err(|_| format!("{port:?} is not a port from 0 to 65535"))?;
        Ok(Self { local: SocketAddr::new(address, port), service })
    }
}

fn listen_address(text: &str) -> Result<IpAddr, String> {
    let v6 = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).map(|inside| inside.parse().map(IpAddr::V6));
    let address = match (v6, text) {
        (Some(v6), _) => v6.ok(),
        (None, "localhost") => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        (None, text) => text.parse().ok().map(IpAddr::V4),
    };
    address.ok_or_else(|| format!("{text:?} is not an IP address to listen on (write IPv6 in brackets)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_listen_on_loopback_unless_told_otherwise() {
        let cases = [
            ("8080:http", "127.0.0.1:8080", "http"),
            ("0:ssh", "127.0.0.1:0", "ssh"),
            ("localhost:80:a", "127.0.0.1:80", "a"),
            ("0.0.0.0:8080:http", "0.0.0.0:8080", "http"),
            ("[::1]:8080:http", "[::1]:8080", "http"),
        ];
        for (text, local, service) in cases {
            let pair = Pair { local: local.parse().unwrap(), service: service.parse().unwrap() };
            assert_eq!(text.parse(), Ok(pair), "{text}");
        }
        for wrong in
            ["8080", "http", "8080:", ":http", "70000:http", "8080:Http", "::1:8080:http", "host:8080:http", "[1.2.3.4]:1:a", "-1:a"]
        {
            assert!(wrong.parse::<Pair>().is_err(), "{wrong}");
        }
    }
}
