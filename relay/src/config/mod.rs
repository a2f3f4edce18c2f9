//! The relay's configuration: as it is written ([`mod@file`]), and as it is used ([`Config`], made by [`check`] alone).

use std::net::SocketAddr;
use std::path::PathBuf;

use moorline_proto::id::{Issuer, NodeId};

use crate::limits::{Limits, Times};
use crate::net::client_address::{ClientAddressSource, TrustedProxies};

pub mod check;
pub mod file;

pub use check::ConfigError;

/// What the relay runs by. Nothing in it is missing or contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This process among the relay's nodes.
    pub node: NodeId,
    /// Short name of the relay's own issuer of callers' tokens.
    pub issuer: Issuer,
    /// Host names and addresses that the relay answers to: lower case, IPv6 without brackets; the first is the one to hand out.
    pub names: Vec<String>,
    /// Ports that are dialled; where there are none, those of the listeners.
    pub ports: Vec<u16>,
    /// Where it listens; at least one.
    pub listeners: Vec<Listener>,
    /// Certificate and key; there if a listener has TLS.
    pub tls: Option<TlsFiles>,
    /// How long it waits for things.
    pub times: Times,
    /// How much there may be of things.
    pub limits: Limits,
    /// Origins whose pages may connect, as browsers write them: `https://app.example.com`.
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
    /// What is spoken there.
    pub transport: Transport,
    /// Load balancers that are trusted to name the client's address.
    pub trusted_proxies: TrustedProxies,
    /// How they name it.
    pub client_address_source: ClientAddressSource,
}

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// HTTP within TLS.
    Tls,
    /// HTTP alone: behind a load balancer that ends TLS.
    Plain,
}

/// Files of the relay's certificate, as absolute or relative to the working directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM: the certificate, then what stands between it and the CA.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
}
