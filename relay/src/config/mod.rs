//! The relay's configuration: as written ([`mod@file`]), and as used ([`Config`], which only [`check`] makes).

use std::net::SocketAddr;
use std::path::PathBuf;

use moorline_proto::id::{Issuer, NodeId};

use crate::limits::{Limits, Times};
use crate::net::client_address::{ClientAddressSource, TrustedProxies};

pub mod check;
pub mod file;
mod ranges;

/// A complete and consistent configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This process among the relay's nodes.
    pub node: NodeId,
    /// Short name of the relay's own issuer of callers' tokens.
    pub issuer: Issuer,
    /// Host names and addresses that the relay answers to: lower case, IPv6 without brackets; the first is the one to hand out.
    pub names: Vec<String>,
    /// Ports that devices and callers dial. Empty: those of the listeners.
    pub ports: Vec<u16>,
    /// At least one.
    pub listeners: Vec<Listener>,
    /// Certificate and key. Present if a listener uses TLS.
    pub tls: Option<TlsFiles>,
    /// Timeouts and intervals.
    pub times: Times,
    /// Limits.
    pub limits: Limits,
    /// Whether an open stream goes on when its caller's token ends.
    pub streams_outlive_tokens: bool,
    /// Origins whose web pages may connect, as browsers write them: `https://app.example.com`.
    pub origins: Vec<String>,
}

impl Config {
    /// The `iss` claim of tokens that this relay signs itself.
    pub fn own_iss(&self) -> String {
        format!("moorline:relay:{}", self.issuer)
    }
}

/// One address that the relay listens at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Address and port; port 0 takes a free one.
    pub address: SocketAddr,
    /// The transport.
    pub transport: Transport,
    /// Load balancers that are trusted to name the client's address.
    pub trusted_proxies: TrustedProxies,
    /// How they name it.
    pub client_address_source: ClientAddressSource,
}

/// The transport of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// HTTP over TLS.
    Tls,
    /// HTTP without TLS: behind a load balancer that terminates it.
    Plain,
}

/// Files of the relay's certificate, as absolute or relative to the working directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM: the certificate, then any intermediate certificates.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{} cannot be read", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("{} is not valid", file.display())]
    Toml {
        /// The file.
        file: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value breaks a rule.
    #[error("{key} = {value}: {rule}")]
    Value {
        /// The key, with its table.
        key: String,
        /// The value as written.
        value: String,
        /// The rule that it breaks.
        rule: String,
    },
}

/// The error of a value that breaks a rule.
fn wrong(key: impl Into<String>, value: impl ToString, rule: impl ToString) -> ConfigError {
    ConfigError::Value { key: key.into(), value: value.to_string(), rule: rule.to_string() }
}
