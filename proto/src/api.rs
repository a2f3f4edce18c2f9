//! Bodies of requests and answers of the HTTP API.

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::bounds::{
    ABOUT_ENTRIES, CURSOR_CHARS, DEADLINE_MAX_S, DEVICE_KEYS, DEVICES_PER_PAGE, FEATURES, INFO_CHARS, MAX_STREAMS, REASON_CHARS, SERVICES,
    SHORT_NAME_CHARS, SUBJECT_CHARS, URL_CHARS, WAIT_MAX_S,
};
use crate::clamp::{between, between_if_any, count};
use crate::code::codes;
use crate::control::Service;
use crate::id::{DeviceId, Feature, NodeId, ServiceName, StreamId};
use crate::proof::{Jwk, KeyAlgorithm, PublicKey, Thumbprint};
use crate::secret::Secret;
use crate::text::{Data, Text, bounded, list_of_at_most, shown};
use crate::timestamp::Timestamp;

/// Answer to `GET /v1/about`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The program's version.
    #[serde(deserialize_with = "shown::<_, INFO_CHARS>")]
    pub version: String,
    /// Versions of the protocol that it speaks.
    #[serde(deserialize_with = "list_of_at_most::<_, _, ABOUT_ENTRIES>")]
    pub protocol: Vec<u32>,
    /// The node that answered.
    pub node: NodeId,
    /// What it knows beyond version 1.
    #[serde(deserialize_with = "list_of_at_most::<_, _, ABOUT_ENTRIES>")]
    pub features: Vec<Feature>,
    /// Host names and addresses to let through a firewall.
    #[serde(deserialize_with = "hosts")]
    pub hosts: Vec<String>,
    /// Ports to let through a firewall.
    #[serde(deserialize_with = "list_of_at_most::<_, _, ABOUT_ENTRIES>")]
    pub ports: Vec<u16>,
    /// What one may ask for at most.
    pub limits: AboutLimits,
    /// The relay's wall time.
    pub time: Timestamp,
}

/// What one may ask for at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AboutLimits {
    /// The handshake's deadline, in seconds; clamped to [`DEADLINE_MAX_S`].
    #[serde(deserialize_with = "between::<_, 0, DEADLINE_MAX_S>")]
    pub deadline_max_s: u64,
    /// Waiting for an offline device, in seconds; clamped to [`WAIT_MAX_S`].
    #[serde(deserialize_with = "between::<_, 0, WAIT_MAX_S>")]
    pub wait_max_s: u64,
    /// Streams of one device, open and undecided; clamped to [`MAX_STREAMS`].
    #[serde(deserialize_with = "count::<_, { MAX_STREAMS.0 }, { MAX_STREAMS.1 }>")]
    pub streams_per_device: u32,
}

/// Body of `POST /v1/devices/{device}/streams`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OpenStream {
    /// What to reach.
    pub service: ServiceName,
    /// The handshake's deadline in seconds: 1 to the operator's maximum, 60 by default. Clamped to [`DEADLINE_MAX_S`]; the relay refuses 0.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "between_if_any::<_, 0, DEADLINE_MAX_S>")]
    pub deadline_s: Option<u64>,
    /// How long to wait for an offline device, in seconds: 0 by default. Clamped to [`WAIT_MAX_S`].
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "between_if_any::<_, 0, WAIT_MAX_S>")]
    pub wait_s: Option<u64>,
    /// Shown to the device and in the audit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Text<REASON_CHARS>>,
    /// For the far side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Data>,
    /// What the caller would use if the device knows it too.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "list_of_at_most::<_, _, FEATURES>")]
    pub features: Vec<Feature>,
}

codes! {
    /// How far a negotiated stream has come.
    pub enum NegotiationState {
        /// The device is offline and waited for.
        Waiting = "waiting",
        /// The device was asked.
        Offered = "offered",
        /// The device said yes.
        Accepted = "accepted",
    }
}

/// Answer to `POST /v1/devices/{device}/streams`: 201 once accepted, else 202.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StreamTicket {
    /// The stream.
    pub stream: StreamId,
    /// How far it has come.
    pub state: NegotiationState,
    /// Where the caller joins its leg: a path, or an absolute address of the host that it dialled.
    #[serde(deserialize_with = "bounded::<_, URL_CHARS>")]
    pub url: String,
    /// Opens the caller leg, once.
    #[serde(serialize_with = "reveal")]
    pub token: Secret,
    /// When it must have joined.
    pub expires_at: Timestamp,
}

fn reveal<S: serde::Serializer>(token: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(token.reveal()) // to the caller that the leg is for
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

/// Reads the hosts of [`About`].
fn hosts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let hosts: Vec<Text<INFO_CHARS>> = list_of_at_most::<_, _, ABOUT_ENTRIES>(deserializer)?;
    Ok(hosts.into_iter().map(Into::into).collect())
}

/// A public key as it is registered: SPKI in PEM as a string, or a JWK as an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisteredKey(pub PublicKey);

impl Serialize for RegisteredKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.to_jwk().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RegisteredKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Pem(String),
            Jwk(Jwk),
        }
        let written = Written::deserialize(deserializer).map_err(|_| D::Error::custom("a key is SPKI in PEM as a string, or a JWK"))?;
        let key = match &written {
            Written::Pem(pem) => PublicKey::from_pem(pem),
            Written::Jwk(jwk) => PublicKey::from_jwk(jwk),
        };
        key.map(Self).map_err(D::Error::custom)
    }
}

/// Body of `PUT /v1/devices/{device}`: the device as it shall be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PutDevice {
    /// Its public keys, 1 to 3.
    #[serde(deserialize_with = "list_of_at_most::<_, _, DEVICE_KEYS>")]
    pub keys: Vec<RegisteredKey>,
}

/// One device of the registry, and where it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its name.
    pub device: DeviceId,
    /// Its public keys.
    #[serde(deserialize_with = "list_of_at_most::<_, _, DEVICE_KEYS>")]
    pub keys: Vec<DeviceKey>,
    /// When it was added.
    pub created: Timestamp,
    /// When it was last online; now, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Timestamp>,
    /// Where it is connected, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub online: Option<Online>,
}

/// One public key of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceKey {
    /// Its thumbprint.
    pub kid: Thumbprint,
    /// How it signs.
    pub algorithm: KeyAlgorithm,
    /// When it was added.
    pub created: Timestamp,
    /// When a proof of it was last good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used: Option<Timestamp>,
}

/// A device's control channel, as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Online {
    /// The node that holds it.
    pub node: NodeId,
    /// Its session in that node's logs.
    #[serde(deserialize_with = "shown::<_, INFO_CHARS>")]
    pub session: String,
    /// Since when.
    pub since: Timestamp,
    /// The device's network address.
    pub address: std::net::IpAddr,
    /// Program and version.
    pub agent: Text<INFO_CHARS>,
    /// What it exposes.
    #[serde(deserialize_with = "list_of_at_most::<_, _, SERVICES>")]
    pub services: Vec<Service>,
    /// What the machine calls itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Text<INFO_CHARS>>,
    /// Operating system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<Text<INFO_CHARS>>,
    /// Streams, open and undecided.
    pub streams: u32,
}

/// Answer to `GET /v1/devices`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceList {
    /// By device id, those that the caller may see.
    #[serde(deserialize_with = "list_of_at_most::<_, _, DEVICES_PER_PAGE>")]
    pub devices: Vec<Device>,
    /// Ask again with `?after=` this for the rest. Opaque: it names no device, since the next one may be one that the caller must not see.
    /// At most [`CURSOR_CHARS`] letters, digits, `-`, `.`, `_` and `~`, so that it stands in a query as it is.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "cursor")]
    pub next: Option<String>,
}

/// Reads a cursor, which the client puts into a query.
fn cursor<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let cursor = Option::<String>::deserialize(deserializer)?;
    match &cursor {
        Some(text) if !is_cursor(text) => {
            Err(D::Error::custom(format_args!("a cursor has 1 to {CURSOR_CHARS} letters, digits, '-', '.', '_' and '~'")))
        }
        _ => Ok(cursor),
    }
}

/// Whether the text has the form of a cursor: 1 to [`CURSOR_CHARS`] letters, digits, `-`, `.`, `_` and `~`.
pub fn is_cursor(text: &str) -> bool {
    (1..=CURSOR_CHARS).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~'))
}

/// Characters of a caller as it is printed: issuer, colon, subject.
const CALLER_CHARS: usize = SHORT_NAME_CHARS + 1 + SUBJECT_CHARS;

/// One live stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveStream {
    /// Its name.
    pub stream: StreamId,
    /// The device.
    pub device: DeviceId,
    /// The service.
    pub service: ServiceName,
    /// The caller, `issuer:subject`.
    #[serde(deserialize_with = "shown::<_, CALLER_CHARS>")]
    pub caller: String,
    /// `waiting`, `offered`, `accepted` or `opened`.
    #[serde(deserialize_with = "shown::<_, SHORT_NAME_CHARS>")]
    pub state: String,
    /// When it was asked for.
    pub since: Timestamp,
    /// Bytes that went to the device.
    pub to_device_bytes: u64,
    /// Bytes that went to the caller.
    pub to_caller_bytes: u64,
}

/// Answer to `GET /v1/streams`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamList {
    /// Those that the caller may see.
    pub streams: Vec<LiveStream>,
}
