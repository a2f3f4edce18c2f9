//! `relay.toml` as written. Every key is here once: its documentation, its default, its place in the shipped file.
//!
//! Does not own: the ranges and rules of values ([`crate::config::check`]).

use std::fmt::Write as _;
use std::path::Path;

use serde::Deserialize;

/// Defines a table of the file: a struct whose keys are all optional, and its lines in the shipped file.
macro_rules! table {
    ($(#[doc = $about:literal])+ $name:ident, $type:ty; $($(#[doc = $doc:literal])+ $key:ident = $default:expr;)+) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $($(#[doc = $doc])+ pub $key: Option<$type>,)+ }

        impl $name {
            /// Keys with their documentation and default, as the shipped file states them.
            const KEYS: &'static [(&'static str, &'static [&'static str], &'static str)] =
                &[$((stringify!($key), &[$($doc),+], $default),)+];
        }
    };
}

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// This process among the relay's nodes: 1 to 32 of `a-z 0-9 -`. Default `n1`.
    pub node: Option<String>,
    /// Short name of the relay's own issuer of callers' tokens: 1 to 32 of `a-z 0-9 -`. Default `relay`.
    pub issuer: Option<String>,
    /// Host names and addresses that devices and callers dial; tokens and proofs are made for them. At least one. Default `localhost`.
    pub names: Option<Vec<String>>,
    /// Ports that devices and callers dial, as `/v1/about` tells them. Default those of the listeners.
    pub ports: Option<Vec<u16>>,
    /// Origins whose web pages may connect: `https://app.example.com`. Default none.
    pub origins: Option<Vec<String>>,
    /// Whether an open stream goes on when its caller's token ends. Streams that are not open yet never do. Default `true`.
    pub streams_outlive_tokens: Option<bool>,
    /// Where the relay listens; at least one.
    #[serde(default)]
    pub listeners: Vec<Listener>,
    /// Certificate and key of TLS listeners.
    #[serde(default)]
    pub tls: Tls,
    /// Timeouts and intervals.
    #[serde(default)]
    pub times: Times,
    /// Limits.
    #[serde(default)]
    pub limits: Limits,
}

/// One `[[listeners]]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Address and port: `0.0.0.0:443`, `[::]:443`. Port 0 takes a free one.
    pub address: String,
    /// `tls`, or `plain` behind a load balancer that terminates TLS. Default `tls`.
    pub transport: Option<String>,
    /// Whether every connection begins with a PROXY protocol header, version 1 or 2, before TLS. Default `false`.
    pub proxy_protocol: Option<bool>,
    /// Networks of load balancers, `10.0.0.0/8`, that are trusted to name the client's address. Default none.
    pub trusted_proxies: Option<Vec<String>>,
}

table! {
    /// Certificate and key of TLS listeners. Paths are relative to the folder of this file.
    Tls, String;
    /// PEM: the certificate, then any intermediate certificates.
    certificate = r#""tls.pem""#;
    /// PEM: its private key. A file of the relay's user with mode 0600 or less, or of root with 0640 or less.
    key = r#""tls.key""#;
}

table! {
    /// Timeouts and intervals, from 10ms to 7days unless stated otherwise.
    Times, String;
    /// From the offer to the opened stream, where the caller names no deadline. At most deadline_max.
    deadline = r#""60s""#;
    /// The longest deadline that a caller can ask for. At most 24h.
    deadline_max = r#""5m""#;
    /// The longest that a caller can wait for an offline device. 0s forbids waiting.
    wait_max = r#""1h""#;
    /// A leg on which nothing was sent for this long is pinged. At most 1h. Keep it below half of a load balancer's idle timeout.
    ping = r#""25s""#;
    /// How often a device pings its control channel, or is pinged. At most heartbeat_max.
    heartbeat = r#""25s""#;
    /// The longest interval that a device may announce. At most 1h. Keep it below half of a load balancer's idle timeout.
    heartbeat_max = r#""150s""#;
    /// A side of a half-closed stream that still owes its end, or the word that it has everything, may be silent for this long.
    half_closed_idle = r#""10m""#;
    /// How long a leg is kept for another stream once its own is over. At most 5m.
    idle_leg = r#""5m""#;
    /// How long after its end a stream's tokens are still answered with stream_expired.
    closed_stream_retention = r#""5m""#;
    /// For the TLS handshake.
    tls_handshake_timeout = r#""10s""#;
    /// How long an HTTP answer may make no progress towards the client, before its connection is dropped.
    http_write_timeout = r#""10s""#;
    /// From the opening of a control channel to the device's hello.
    hello_timeout = r#""10s""#;
    /// For any frame of the device after an offer.
    offer_ack_timeout = r#""10s""#;
    /// The longest that a negotiation request (Prefer: wait) is held for the device's answer.
    prefer_wait_max = r#""20s""#;
}

table! {
    /// Limits, from 1.
    Limits, i64;
    /// Streams of one device, open and undecided. Beyond: 429.
    streams_per_device = "512";
    /// Streams of this node, open and undecided. Beyond: 503.
    streams = "10_000";
    /// Streams of one caller, open and undecided. Beyond: 429. Default a quarter of streams.
    streams_per_caller = "2_500";
    /// Streams that one caller has asked for and that are not opened yet. Beyond: 429. Default half of streams_per_device.
    undecided_per_caller = "256";
    /// Streams with which one caller waits for offline devices. Beyond: 429. Default a tenth of waiting_callers.
    waiting_per_caller = "100";
    /// Callers that wait for an offline device. Beyond: 503.
    waiting_callers = "1_000";
    /// Connections that have not authenticated. Beyond: the address that holds most loses its oldest, or the next one waits.
    unauthenticated_connections = "512";
    /// How many of them one address may hold (IPv4 address, IPv6 /64), except for trusted_proxies. Beyond: closed. Default: a quarter of them.
    unauthenticated_per_address = "128";
    /// Connections of any kind; two for each stream and one for each device. Beyond: closed. Keep it under the limit of file descriptors.
    connections = "15_000";
    /// Connections of one caller. Beyond: 503.
    connections_per_caller = "2_048";
}

impl File {
    /// Reads the text of a `relay.toml`.
    ///
    /// # Errors
    /// TOML's own error, which shows the line and names the key.
    pub fn from_toml(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }
}

/// The values of a new relay's file that are not defaults.
#[derive(Clone, Copy, Debug)]
pub struct NewRelay<'a> {
    /// Checked: see [`crate::config::Config::node`].
    pub node: &'a str,
    /// Checked.
    pub issuer: &'a str,
    /// Checked, at least one.
    pub names: &'a [String],
    /// Address and port of the one listener.
    pub listen: &'a str,
    /// Paths of certificate and key, if not in the state folder.
    pub tls: Option<(&'a Path, &'a Path)>,
}

/// The text of a new relay's `relay.toml`: its own values, and every other key as a comment that states the default.
pub fn shipped(new: &NewRelay<'_>) -> String {
    let list: Vec<String> = new.names.iter().map(|name| quoted(name)).collect();
    let mut text = format!(
        "# Moorline relay. A key that is commented out has the value that it shows.\n\n\
         # This process among the relay's nodes: 1 to 32 of a-z 0-9 -.\nnode = {}\n\n\
         # Short name of the relay's own issuer of callers' tokens: 1 to 32 of a-z 0-9 -.\nissuer = {}\n\n\
         # Host names and addresses that devices and callers dial; tokens and proofs are made for them.\n\
         # A name that is added here must be in the certificate too.\nnames = [{}]\n\n\
         # Ports that they dial, where a load balancer has other ports than the listeners; /v1/about lists them.\n#ports = []\n\n\
         # Origins whose web pages may connect: \"https://app.example.com\".\n#origins = []\n\n\
         # Whether an open stream goes on when its caller's token ends. Streams that are not open yet never do.\n#streams_outlive_tokens = true\n\n\
         # Where the relay listens; at least one. transport is \"tls\", or \"plain\" behind a load balancer that terminates TLS.\n\
         [[listeners]]\naddress = {}\ntransport = \"tls\"\n\
         # Networks of load balancers: \"10.0.0.0/8\". Their X-Forwarded-For is trusted; nobody else's is.\n\
         #trusted_proxies = []\n\
         # Every connection comes from trusted_proxies and begins with a PROXY protocol header. X-Forwarded-For is then ignored.\n\
         #proxy_protocol = false\n",
        quoted(new.node),
        quoted(new.issuer),
        list.join(", "),
        quoted(new.listen),
    );
    let tls = new.tls.map(|(certificate, key)| [quoted(&certificate.to_string_lossy()), quoted(&key.to_string_lossy())]);
    let about = "Certificate and key of TLS listeners. Paths are relative to the folder of this file.";
    write_table(&mut text, "tls", about, Tls::KEYS, tls.as_ref().map_or(&[], |paths| paths));
    write_table(&mut text, "times", "Timeouts and intervals, from 10ms to 7days.", Times::KEYS, &[]);
    write_table(&mut text, "limits", "Limits, from 1.", Limits::KEYS, &[]);
    text
}

fn write_table(text: &mut String, name: &str, about: &str, keys: &[(&str, &[&str], &str)], values: &[String]) {
    let mut write = |line: std::fmt::Arguments<'_>| text.write_fmt(line).expect("writing into memory does not fail");
    write(format_args!("\n# {about}\n[{name}]\n"));
    for (index, (key, docs, default)) in keys.iter().enumerate() {
        for doc in *docs {
            write(format_args!("#{doc}\n"));
        }
        match values.get(index) {
            Some(value) => write(format_args!("{key} = {value}\n")),
            None => write(format_args!("#{key} = {default}\n")),
        }
    }
}

/// Text as a TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW_RELAY: NewRelay<'_> = NewRelay { node: "n1", issuer: "relay", names: &[], listen: "0.0.0.0:443", tls: None };

    #[test]
    fn unknown_keys_are_errors_that_name_the_key() {
        for (text, key) in [
            ("nod = 'n1'", "nod"),
            ("[times]\npings = '1s'", "pings"),
            ("[[listeners]]\naddress = '0.0.0.0:1'\ntls = true", "tls"),
            ("[limits]\nstreams = 'many'", "streams"),
        ] {
            let error = File::from_toml(text).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("line"), "{error}");
        }
    }

    #[test]
    fn paths_with_quotes_survive_the_shipped_file() {
        let (certificate, key) = (Path::new("/etc/a \"b\"\\c.pem"), Path::new("/etc/it's.key"));
        let file = File::from_toml(&shipped(&NewRelay { tls: Some((certificate, key)), ..NEW_RELAY })).unwrap();
        assert_eq!(file.tls.certificate.as_deref().map(Path::new), Some(certificate));
        assert_eq!(file.tls.key.as_deref().map(Path::new), Some(key));
    }
}
