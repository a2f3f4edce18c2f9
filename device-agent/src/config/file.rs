//! `agent.toml` as it is written. The comments here are its reference.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The whole file. A key that is not listed here is an error.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The relay's address: `https://host[:port]`.
    pub relay: String,
    /// The device's id: 1 to 128 of `a-z 0-9 - _ .`.
    pub device: String,
    /// The device's private key, PKCS#8 in PEM, readable by its owner alone. Relative to the folder of this file.
    pub key_file: String,
    /// The CA certificate of the relay in PEM: then only this one is trusted. Default: those that the machine trusts.
    #[serde(default)]
    pub ca_file: Option<String>,
    /// Besides the relay's own host, legs may lead to hosts below this domain. Default: none.
    #[serde(default)]
    pub trusted_suffix: Option<String>,
    /// What the device exposes, by service name. Nothing that is not named here can be reached.
    #[serde(default)]
    pub services: BTreeMap<String, ServiceEntry>,
}

/// `[services.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceEntry {
    /// Where it listens: `host:port`, or `unix:/path`.
    pub target: String,
    /// For people who list devices; at most 200 characters. Default: none.
    #[serde(default)]
    pub description: Option<String>,
}

impl File {
    /// Reads the file's text.
    ///
    /// # Errors
    /// What is wrong, with line and key.
    pub fn from_toml(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }
}
