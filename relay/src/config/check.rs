//! Checks a configuration file and turns it into a [`Config`]. An error names the key and the value.

use std::path::Path;
use std::str::FromStr;

use moorline_proto::join::RelayUrl;

use crate::config::file::{self, File};
use crate::config::ranges::{limits, times};
use crate::config::{Config, ConfigError, Listener, TlsFiles, Transport, wrong};
use crate::net::client_address::{ClientAddressSource, TrustedProxies, network};

/// Name of the configuration in a state folder.
pub const FILE_NAME: &str = "relay.toml";

impl Config {
    /// Reads `relay.toml` in a state folder.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(state: &Path) -> Result<Self, ConfigError> {
        let file = state.join(FILE_NAME);
        let text = std::fs::read_to_string(&file).map_err(|source| ConfigError::Read { file: file.clone(), source })?;
        let written = File::from_toml(&text).map_err(|source| ConfigError::Toml { file, source: Box::new(source) })?;
        Self::check(written, state)
    }

    /// Checks a file's content. Relative paths in it start from `folder`.
    ///
    /// # Errors
    /// [`ConfigError::Value`], for the first value that breaks a rule.
    pub fn check(written: File, folder: &Path) -> Result<Self, ConfigError> {
        let listeners = listeners(&written.listeners)?;
        let with_tls = listeners.iter().any(|listener| listener.transport == Transport::Tls);
        let path = |written: Option<String>, default: &str| folder.join(written.unwrap_or_else(|| default.to_owned()));
        let (certificate, key) = (path(written.tls.certificate, "tls.pem"), path(written.tls.key, "tls.key"));
        Ok(Self {
            node: parsed("node", written.node.as_deref().unwrap_or("n1"))?,
            issuer: parsed("issuer", written.issuer.as_deref().unwrap_or("relay"))?,
            names: names(&written.names.unwrap_or_else(|| vec!["localhost".to_owned()]))?,
            ports: ports(written.ports.unwrap_or_default())?,
            listeners,
            tls: with_tls.then_some(TlsFiles { certificate, key }),
            times: times(&written.times)?,
            limits: limits(&written.limits)?,
            streams_outlive_tokens: written.streams_outlive_tokens.unwrap_or(true),
            origins: origins(written.origins.unwrap_or_default())?,
        })
    }
}

fn parsed<T: FromStr<Err: ToString>>(key: &str, text: &str) -> Result<T, ConfigError> {
    text.parse().map_err(|error: T::Err| wrong(key, format_args!("{text:?}"), error))
}

fn names(written: &[String]) -> Result<Vec<String>, ConfigError> {
    if written.is_empty() {
        return Err(wrong("names", "[]", "at least one name is needed, the one that devices and callers dial"));
    }
    let mut names: Vec<String> = Vec::new();
    for text in written {
        let name = name(text).ok_or_else(|| wrong("names", format_args!("{text:?}"), "neither a host name nor an IP address"))?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// A host name or address in the form that proofs and tokens use: lower case, without port, IPv6 without brackets.
pub fn name(text: &str) -> Option<String> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let host = if bare.contains(':') { format!("[{bare}]") } else { bare.to_owned() };
    let url: RelayUrl = format!("https://{host}").parse().ok()?;
    Some(url.host().to_owned())
}

fn listeners(written: &[file::Listener]) -> Result<Vec<Listener>, ConfigError> {
    if written.is_empty() {
        return Err(wrong("listeners", "[]", "at least one [[listeners]] with an address is needed"));
    }
    let listener = |(index, written): (usize, &file::Listener)| {
        let address = written.address.parse().map_err(|_| {
            let key = format!("listeners[{index}].address");
            wrong(key, format_args!("{:?}", written.address), "not an IP address with a port, like 0.0.0.0:443 or [::]:443")
        })?;
        let transport = match written.transport.as_deref() {
            None | Some("tls") => Transport::Tls,
            Some("plain") => Transport::Plain,
            Some(other) => {
                return Err(wrong(format!("listeners[{index}].transport"), format_args!("{other:?}"), "neither \"tls\" nor \"plain\""));
            }
        };
        let trusted_proxies = trusted_proxies(&format!("listeners[{index}].trusted_proxies"), written.trusted_proxies.as_deref())?;
        let client_address_source =
            if written.proxy_protocol == Some(true) { ClientAddressSource::ProxyProtocol } else { ClientAddressSource::ForwardedFor };
        if client_address_source == ClientAddressSource::ProxyProtocol && trusted_proxies.is_empty() {
            let key = format!("listeners[{index}].proxy_protocol");
            return Err(wrong(key, "true", "needs trusted_proxies, the networks of the balancers that may say who connects"));
        }
        Ok(Listener { address, transport, trusted_proxies, client_address_source })
    };
    written.iter().enumerate().map(listener).collect()
}

fn trusted_proxies(key: &str, written: Option<&[String]>) -> Result<TrustedProxies, ConfigError> {
    let network = |text: &String| network(text).map_err(|error| wrong(key, format_args!("{text:?}"), error));
    written.unwrap_or_default().iter().map(network).collect::<Result<Vec<_>, _>>().map(TrustedProxies::new)
}

fn ports(written: Vec<u16>) -> Result<Vec<u16>, ConfigError> {
    if written.contains(&0) { Err(wrong("ports", 0, "nobody can dial port 0")) } else { Ok(written) }
}

fn origins(written: Vec<String>) -> Result<Vec<String>, ConfigError> {
    for origin in &written {
        let rest = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
        let authority =
            |rest: &str| format!("https://{rest}").parse::<RelayUrl>().is_ok() && !rest.contains(|c: char| c.is_uppercase() || c == '/');
        if !rest.is_some_and(authority) {
            let rule = "not an origin as browsers write it: https://host or https://host:port, lower case, nothing behind";
            return Err(wrong("origins", format_args!("{origin:?}"), rule));
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use moorline_proto::bounds::{DEADLINE_MAX_S, PING_MS, WAIT_MAX_S};
    use moorline_proto::control::ToDevice;
    use moorline_proto::message::Decoded;

    use super::*;
    use crate::config::file::{NewRelay, shipped};
    use crate::limits::{Limits, Times};

    fn check(text: &str) -> Result<Config, ConfigError> {
        Config::check(File::from_toml(text).unwrap(), Path::new("/state"))
    }

    const LEAST: &str = "[[listeners]]\naddress = '0.0.0.0:443'\n";

    fn shipped_text() -> String {
        let names = ["localhost".to_owned()];
        shipped(&NewRelay { node: "n1", issuer: "relay", names: &names, listen: "0.0.0.0:443", tls: None })
    }

    #[test]
    fn the_shipped_file_states_exactly_the_defaults() {
        let default = check(LEAST).unwrap();
        assert_eq!((&default.times, &default.limits), (&Times::default(), &Limits::default()));
        let shipped = shipped_text();
        assert_eq!(check(&shipped).unwrap(), default, "as it is shipped");

        let is_key = |line: &str| line.strip_prefix('#').is_some_and(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
        let lines: Vec<&str> = shipped.lines().map(|line| if is_key(line) { &line[1..] } else { line }).collect();
        let file = File::from_toml(&lines.join("\n")).unwrap();
        assert!(file.tls.key.is_some() && file.times.prefer_wait_max.is_some() && file.limits.connections.is_some());
        assert_eq!(Config::check(file, Path::new("/state")).unwrap(), default, "with every commented key enabled");
    }

    #[test]
    fn configured_values_are_used() {
        let config = check(
            "node = 'n2'\nissuer = 'corp'\nnames = ['Relay.Example.com', '::1', '[::1]', '127.0.0.1']\nports = [443]\norigins = ['https://app.example.com:8443']\n\
             [[listeners]]\naddress = '[::]:443'\n[[listeners]]\naddress = '127.0.0.1:0'\ntransport = 'plain'\n\
             [tls]\ncertificate = '/etc/relay.pem'\nkey = 'own.key'\n[times]\nping = '200ms'\nwait_max = '0s'\n[limits]\nstreams = 7\n",
        )
        .unwrap();
        assert_eq!(config.names, ["relay.example.com", "::1", "127.0.0.1"]);
        assert_eq!(config.own_iss(), "moorline:relay:corp");
        assert_eq!(config.ports, [443]);
        assert_eq!(config.origins, ["https://app.example.com:8443"]);
        let plain = &config.listeners[1];
        assert_eq!((plain.address, plain.transport), ("127.0.0.1:0".parse().unwrap(), Transport::Plain));
        assert_eq!((plain.trusted_proxies.is_empty(), plain.client_address_source), (true, ClientAddressSource::ForwardedFor));
        assert_eq!(config.tls, Some(TlsFiles { certificate: "/etc/relay.pem".into(), key: "/state/own.key".into() }));
        assert_eq!((config.times.ping, config.times.wait_max), (Duration::from_millis(200), Duration::ZERO));
        assert_eq!(config.limits.streams.get(), 7);
    }

    #[test]
    fn the_share_of_an_address_follows_the_number_of_unauthenticated_connections() {
        let share = |limits: &str| check(&format!("{LEAST}[limits]\n{limits}")).unwrap().limits.unauthenticated_per_address.get();
        assert_eq!(share("unauthenticated_connections = 64"), 16);
        assert_eq!(share("unauthenticated_connections = 3"), 1);
        assert_eq!(share("unauthenticated_connections = 64\nunauthenticated_per_address = 64"), 64);
    }

    #[test]
    fn the_default_shares_of_a_caller_follow_the_total_limits() {
        let shares = |text: &str| {
            let limits = check(&format!("{LEAST}[limits]\n{text}")).unwrap().limits;
            [limits.streams_per_caller.get(), limits.undecided_per_caller.get(), limits.waiting_per_caller.get()]
        };
        assert_eq!(shares("streams = 40\nstreams_per_device = 10\nwaiting_callers = 30"), [10, 5, 3]);
        assert_eq!(shares("streams = 1\nstreams_per_device = 1\nwaiting_callers = 1"), [1, 1, 1]);
        assert_eq!(shares("streams = 40\nstreams_per_caller = 40\nundecided_per_caller = 7\nwaiting_per_caller = 9"), [40, 7, 9]);
    }

    #[test]
    fn a_relay_without_tls_needs_no_certificate() {
        let config = check("[[listeners]]\naddress = '127.0.0.1:80'\ntransport = 'plain'").unwrap();
        assert_eq!(config.tls, None);
    }

    #[test]
    fn a_listener_may_stand_behind_balancers() {
        let config = check(&format!("{LEAST}trusted_proxies = ['10.0.0.0/8', '2001:db8::7']\nproxy_protocol = true")).unwrap();
        let listener = &config.listeners[0];
        assert_eq!(listener.client_address_source, ClientAddressSource::ProxyProtocol);
        assert!(listener.trusted_proxies.contains("10.1.2.3".parse().unwrap()));
        assert!(listener.trusted_proxies.contains("2001:db8::7".parse().unwrap()));
    }

    #[test]
    fn the_longest_times_are_those_that_devices_and_callers_do_not_clamp() {
        let longest = "[times]\nping = '1h'\nheartbeat = '1h'\nheartbeat_max = '1h'\ndeadline_max = '24h'\nwait_max = '7days'";
        let times = check(&format!("{LEAST}{longest}")).unwrap().times;
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap();
        let welcome = format!(
            r#"{{"type":"welcome","session":"s1","time":"2027-03-01T08:00:00Z","node":"n1","heartbeat_ms":{},"heartbeat_max_ms":{},"max_streams":1}}"#,
            ms(times.heartbeat),
            ms(times.heartbeat_max)
        );
        let Ok(Decoded::Known(ToDevice::Welcome(welcome))) = ToDevice::decode(&welcome) else { panic!("{welcome}") };
        assert_eq!((welcome.heartbeat_ms, welcome.heartbeat_max_ms), (ms(times.heartbeat), ms(times.heartbeat_max)));
        assert_eq!((ms(times.ping), times.deadline_max.as_secs(), times.wait_max.as_secs()), (PING_MS.1, DEADLINE_MAX_S, WAIT_MAX_S));
    }

    #[test]
    fn errors_name_the_key_and_the_value() {
        for (text, key, value) in [
            ("node = 'N1'", "node", "N1"),
            ("issuer = 'a b'", "issuer", "a b"),
            ("names = []", "names", "[]"),
            ("names = ['a.example', 'b:c']", "names", "b:c"),
            ("origins = ['https://app.example/']", "origins", "https://app.example/"),
            ("ports = [443, 0]", "ports", "0"),
            ("origins = ['app.example']", "origins", "app.example"),
            ("[times]\nping = '25'", "times.ping", "25"),
            ("[times]\nping = '0s'", "times.ping", "0s"),
            ("[times]\nping = '1h 1ms'", "times.ping", "1h 1ms"),
            ("[times]\nheartbeat = '61m'\nheartbeat_max = '1h'", "times.heartbeat", "not from 10ms to 1h"),
            ("[times]\nheartbeat_max = '61m'", "times.heartbeat_max", "not from 10ms to 1h"),
            ("[times]\ndeadline_max = '24h 1s'", "times.deadline_max", "not from 10ms to 1day"),
            ("[times]\ndeadline = '25h'\ndeadline_max = '24h'", "times.deadline", "1day 1h"),
            ("[times]\nwait_max = '7days 1s'", "times.wait_max", "not from 0s to 7days"),
            ("[times]\nclosed_stream_retention = '8days'", "times.closed_stream_retention", "8days"),
            ("[times]\nping = '18446744073709551615s'", "times.ping", "18446744073709551615s"),
            ("[times]\nping = '18446744073709551615years'", "times.ping", "18446744073709551615years"),
            ("[times]\nwait_max = '584942417355years 1s'", "times.wait_max", "584942417355years"),
            ("[times]\ndeadline = '6m'", "times.deadline", "6m"),
            ("[times]\nheartbeat_max = '20s'", "times.heartbeat", "25s"),
            ("[limits]\nstreams = 0", "limits.streams", "0"),
            ("[limits]\nstreams_per_device = -1", "limits.streams_per_device", "-1"),
            ("[limits]\nwaiting_callers = -9223372036854775808", "limits.waiting_callers", "-9223372036854775808"),
            ("[limits]\nconnections = 5_000_000_000", "limits.connections", "5000000000"),
        ] {
            let error = check(&format!("{text}\n{LEAST}")).unwrap_err().to_string();
            assert!(error.starts_with(key) && error.contains(value), "{error}");
        }
        for (text, key, value) in [
            ("", "listeners", "[]"),
            ("[[listeners]]\naddress = 'localhost:443'", "listeners[0].address", "localhost:443"),
            ("[[listeners]]\naddress = '0.0.0.0:443'\ntransport = 'quic'", "listeners[0].transport", "quic"),
            (&format!("{LEAST}proxy_protocol = true"), "listeners[0].proxy_protocol", "true"),
            (&format!("{LEAST}trusted_proxies = ['balancer']"), "listeners[0].trusted_proxies", "balancer"),
            (&format!("{LEAST}trusted_proxies = ['10.0.0.1/8']"), "listeners[0].trusted_proxies", "10.0.0.0/8"),
        ] {
            let error = check(text).unwrap_err().to_string();
            assert!(error.starts_with(key) && error.contains(value), "{error}");
        }
    }
}
