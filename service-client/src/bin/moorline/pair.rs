//! `[ADDRESS:]PORT:SERVICE`: where to listen, and the service behind it.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use moorline::ServiceName;

/// Where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ListenAddress {
    /// This port of the loopback addresses of both families.
    Localhost(u16),
    /// This address alone.
    Address(SocketAddr),
}

/// A local address, and the service that its connections reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) local: ListenAddress,
    pub(crate) service: ServiceName,
}

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (local, service) = text.rsplit_once(':').ok_or("expected [ADDRESS:]PORT:SERVICE, like 8080:http")?;
        let service = service.parse::<ServiceName>().map_err(|error| error.to_string())?;
        if is_of_ssh(local, service.as_str()) {
            return Err(format!("this is ssh's form, but a service has a name and no address: PORT:SERVICE, like {}", suggestion(local)));
        }
        let (address, port) = match local.rsplit_once(':') {
            None => (None, local),
            Some(("localhost", port)) => (None, port),
            Some((address, port)) => (Some(ip_address(address)?), port),
        };
        let port = port.parse().map_err(|_| format!("{port:?} is not a port from 0 to 65535"))?;
        let local = address.map_or(ListenAddress::Localhost(port), |ip| ListenAddress::Address(SocketAddr::new(ip, port)));
        Ok(Self { local, service })
    }
}

/// Whether the text has the form of ssh's `-L`, `[ADDRESS:]PORT:HOST:PORT`.
fn is_of_ssh(local: &str, last: &str) -> bool {
    let is_port = |text: &str| text.parse::<u16>().is_ok();
    let Some((front, host)) = local.rsplit_once(':') else { return false };
    is_port(last) && !is_port(host) && is_port(front.rsplit(':').next().unwrap_or(front))
}

/// What was probably meant: the same local port, and a service.
fn suggestion(local: &str) -> String {
    let front = local.rsplit_once(':').map_or(local, |(front, _)| front);
    format!("{front}:ssh; `moorline device show DEVICE` lists the services")
}

fn ip_address(text: &str) -> Result<IpAddr, String> {
    let v6 = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).map(|inside| inside.parse().map(IpAddr::V6));
    let address = match (v6, text) {
        (Some(v6), _) => v6.ok(),
        (None, text) => text.parse().ok().map(IpAddr::V4),
    };
    address.ok_or_else(|| format!("{text:?} is not an IP address to listen on (write IPv6 in brackets)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_ssh_is_answered_with_the_form_of_a_service() {
        for (text, meant) in
            [("2222:localhost:22", "2222:ssh"), ("8080:10.0.0.5:80", "8080:ssh"), ("127.0.0.1:2222:localhost:22", "127.0.0.1:2222:ssh")]
        {
            let error = text.parse::<Pair>().unwrap_err();
            assert!(error.contains("a service has a name") && error.contains(&format!("like {meant}; `moorline device show")), "{error}");
        }
    }

    #[test]
    fn pairs_listen_on_localhost_unless_told_otherwise() {
        let address = |text: &str| ListenAddress::Address(text.parse().unwrap());
        let cases = [
            ("8080:http", ListenAddress::Localhost(8080), "http"),
            ("0:ssh", ListenAddress::Localhost(0), "ssh"),
            ("localhost:80:a", ListenAddress::Localhost(80), "a"),
            ("127.0.0.1:80:a", address("127.0.0.1:80"), "a"),
            ("0.0.0.0:8080:http", address("0.0.0.0:8080"), "http"),
            ("[::1]:8080:http", address("[::1]:8080"), "http"),
        ];
        for (text, local, service) in cases {
            let pair = Pair { local, service: service.parse().unwrap() };
            assert_eq!(text.parse(), Ok(pair), "{text}");
        }
        for wrong in [
            "8080",
            "http",
            "8080:",
            ":http",
            "70000:http",
            "8080:Http",
            "::1:8080:http",
            "host:8080:http",
            "[1.2.3.4]:1:a",
            "-1:a",
            "localhost::a",
        ] {
            assert!(wrong.parse::<Pair>().is_err(), "{wrong}");
        }
    }
}
