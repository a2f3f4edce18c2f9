//! `agent.toml` as written. The comments here are its reference.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The whole file. An unknown key is an error.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Address of the relay: `https://host[:port]`.
    pub relay: String,
    /// Id of the device: 1 to 128 characters of `a-z 0-9 - _ .`.
    pub device: String,
    /// File with the device's private key (PKCS#8 in PEM): of the agent's user with mode 0600 or less, or of root with 0640 or less. Relative
    /// to the folder of this file.
    pub key_file: String,
    /// File with the CA certificate of the relay in PEM; no other CA is trusted then. Relative to the folder of this file.
    /// Default: the CAs that the machine trusts.
    #[serde(default)]
    pub ca_file: Option<String>,
    /// Legs may use hosts below this domain besides the relay's own host. Default: none.
    #[serde(default)]
    pub trusted_suffix: Option<String>,
    /// Streams at once, 1 to 10000. Further offers are rejected as `busy`. The relay's limit holds besides, and so does the process's
    /// limit of file descriptors, of which a stream takes two. Default: 512.
    #[serde(default)]
    pub max_streams: Option<u32>,
    /// Legs of streams that are over to keep for later streams, 0 to 64, on relays that know them. Each is a connection to the relay that is
    /// pinged for some minutes; 0 is for a device that pays for every byte. Default: 64.
    #[serde(default)]
    pub idle_legs: Option<u32>,
    /// Idle legs to keep ready, 0 to `idle_legs`, on relays that know them: a stream that begins on one opens sooner, by the time of a connection. Each
    /// is a connection to the relay that stays open. Default: 0.
    #[serde(default)]
    pub warm_legs: Option<u32>,
    /// The services that callers may reach, by name. Nothing else can be reached.
    #[serde(default)]
    pub services: BTreeMap<String, ServiceEntry>,
}

/// `[services.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceEntry {
    /// Where the service listens: `host:port`, or `unix:/path`.
    pub target: String,
    /// Description for people who list devices, at most 200 characters. Default: none.
    #[serde(default)]
    pub description: Option<String>,
}

impl File {
    /// Parses the text of the file.
    ///
    /// # Errors
    /// The parser's error, which names line and key.
    pub fn from_toml(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }
}
