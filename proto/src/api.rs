//! Bodies of the HTTP API's requests and responses.

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::bounds::{
    ABOUT_ENTRIES, CURSOR_CHARS, DEADLINE_MAX_S, DEVICE_KEYS, DEVICES_PER_PAGE, FEATURES, INFO_CHARS, MAX_STREAMS, REASON_CHARS, SERVICES,
    SHORT_NAME_CHARS, SUBJECT_CHARS, URL_CHARS, WAIT_MAX_S,
};
use crate::code::codes;
use crate::control::Service;
use crate::id::{DeviceId, Feature, NodeId, ServiceName, StreamId};
use crate::proof::{Jwk, KeyAlgorithm, PublicKey, Thumbprint};
use crate::secret::Secret;
use crate::text::{Data, Text, bounded, list_of_at_most, printable_text};
use crate::timestamp::Timestamp;
use crate::whole::{between, between_if_any, count, whole};

/// Response to `GET /v1/about`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The program's version.
    #[serde(deserialize_with = "printable_text::<_, INFO_CHARS>")]
    pub version: String,
    /// Versions of the protocol that it speaks.
    #[serde(deserialize_with = "list_of_at_most::<_, _, ABOUT_ENTRIES>")]
    pub protocol: Vec<u32>,
    /// The node that answered.
    pub node: NodeId,
    /// Features that it supports beyond version 1.
    #[serde(deserialize_with = "list_of_at_most::<_, _, ABOUT_ENTRIES>")]
    pub features: Vec<Feature>,
    /// Host names and addresses to let through a firewall.
    #[serde(deserialize_with = "hosts")]
    pub hosts: Vec<String>,
    /// Ports to let through a firewall.
    #[serde(deserialize_with = "list_of_at_most::<_, _, ABOUT_ENTRIES>")]
    pub ports: Vec<u16>,
    /// The relay's limits.
    pub limits: AboutLimits,
    /// The relay's wall-clock time.
    pub time: Timestamp,
}

/// Limits that a relay announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AboutLimits {
    /// Longest deadline for opening a stream, in seconds; clamped to [`DEADLINE_MAX_S`].
    #[serde(deserialize_with = "between::<_, 0, DEADLINE_MAX_S>")]
    pub deadline_max_s: u64,
    /// Longest wait for an offline device, in seconds; clamped to [`WAIT_MAX_S`].
    #[serde(deserialize_with = "between::<_, 0, WAIT_MAX_S>")]
    pub wait_max_s: u64,
    /// Streams of one device, open and undecided; clamped to [`MAX_STREAMS`].
    #[serde(deserialize_with = "count::<_, { MAX_STREAMS.0 }, { MAX_STREAMS.1 }>")]
    pub streams_per_device: u32,
}

/// Body of `POST /v1/devices/{device}/streams`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OpenStream {
    /// The service to reach.
    pub service: ServiceName,
    /// Deadline for opening the stream, in seconds: 1 to the operator's maximum, 60 by default. Clamped to [`DEADLINE_MAX_S`]; the relay refuses 0.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "between_if_any::<_, 0, DEADLINE_MAX_S>")]
    pub deadline_s: Option<u64>,
    /// How long to wait for an offline device, in seconds: 0 by default. Clamped to [`WAIT_MAX_S`].
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "between_if_any::<_, 0, WAIT_MAX_S>")]
    pub wait_s: Option<u64>,
    /// Why, shown to the device and recorded in the audit log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Text<REASON_CHARS>>,
    /// Opaque data for the device's program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Data>,
    /// Features that the caller would use if the device supports them.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "list_of_at_most::<_, _, FEATURES>")]
    pub features: Vec<Feature>,
}

codes! {
    /// State of a negotiated stream.
    pub enum NegotiationState {
        /// The device is offline; the relay waits for it.
        Waiting = "waiting",
        /// The offer was sent to the device.
        Offered = "offered",
        /// The device accepted.
        Accepted = "accepted",
    }
}

/// Response to `POST /v1/devices/{device}/streams`: 201 if accepted, 202 otherwise.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StreamTicket {
    /// The stream.
    pub stream: StreamId,
    /// Its state.
    pub state: NegotiationState,
    /// Where the caller joins its leg: a path, or an absolute URL on the host that it dialled.
    #[serde(deserialize_with = "bounded::<_, URL_CHARS>")]
    pub url: String,
    /// Opens the caller leg, once.
    #[serde(serialize_with = "reveal")]
    pub token: Secret,
    /// When the token expires.
    pub expires_at: Timestamp,
}

fn reveal<S: serde::Serializer>(token: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(token.reveal()) // sent to the caller that joins the leg
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

/// Deserializes the hosts of [`About`].
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
        enum Form {
            Pem(String),
            Jwk(Jwk),
        }
        let form = Form::deserialize(deserializer).map_err(|_| D::Error::custom("a key is SPKI in PEM as a string, or a JWK"))?;
        let key = match &form {
            Form::Pem(pem) => PublicKey::from_pem(pem),
            Form::Jwk(jwk) => PublicKey::from_jwk(jwk),
        };
        key.map(Self).map_err(D::Error::custom)
    }
}

/// Body of `PUT /v1/devices/{device}`: replaces the device's keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PutDevice {
    /// Its public keys, 1 to 3.
    #[serde(deserialize_with = "list_of_at_most::<_, _, DEVICE_KEYS>")]
    pub keys: Vec<RegisteredKey>,
}

/// A device of the registry, and whether it is online.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its name.
    pub device: DeviceId,
    /// Its public keys.
    #[serde(deserialize_with = "list_of_at_most::<_, _, DEVICE_KEYS>")]
    pub keys: Vec<DeviceKey>,
    /// When it was added.
    pub created: Timestamp,
    /// When it was last online; the present time while it is online.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Timestamp>,
    /// Its control channel, while it is online.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub online: Option<Online>,
}

/// One public key of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceKey {
    /// Its thumbprint.
    pub kid: Thumbprint,
    /// Its signature algorithm.
    pub algorithm: KeyAlgorithm,
    /// When it was added.
    pub created: Timestamp,
    /// When a proof with it was last verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used: Option<Timestamp>,
}

/// A device's present control channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Online {
    /// The node that holds it.
    pub node: NodeId,
    /// Its session in that node's logs.
    #[serde(deserialize_with = "printable_text::<_, INFO_CHARS>")]
    pub session: String,
    /// Since when.
    pub since: Timestamp,
    /// The device's network address.
    pub address: std::net::IpAddr,
    /// Program and version.
    pub agent: Text<INFO_CHARS>,
    /// The services that it exposes.
    #[serde(deserialize_with = "list_of_at_most::<_, _, SERVICES>")]
    pub services: Vec<Service>,
    /// The machine's host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Text<INFO_CHARS>>,
    /// Operating system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<Text<INFO_CHARS>>,
    /// Streams, open and undecided.
    #[serde(deserialize_with = "count::<_, 0, { u32::MAX }>")]
    pub streams: u32,
}

/// Response to `GET /v1/devices`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceList {
    /// The devices that the caller may see, ordered by id.
    #[serde(deserialize_with = "list_of_at_most::<_, _, DEVICES_PER_PAGE>")]
    pub devices: Vec<Device>,
    /// Cursor of the next page, for `?after=`. Opaque: it reveals nothing about devices that the caller may not see.
    /// At most [`CURSOR_CHARS`] letters, digits, `-`, `.`, `_` and `~`, so that it needs no encoding in a query.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "cursor")]
    pub next: Option<String>,
}

/// Deserializes a cursor, which the client puts into a query.
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
    #[serde(deserialize_with = "printable_text::<_, CALLER_CHARS>")]
    pub caller: String,
    /// `waiting`, `offered`, `accepted` or `opened`.
    #[serde(deserialize_with = "printable_text::<_, SHORT_NAME_CHARS>")]
    pub state: String,
    /// When it was requested.
    pub since: Timestamp,
    /// Bytes sent to the device.
    #[serde(deserialize_with = "whole")]
    pub to_device_bytes: u64,
    /// Bytes sent to the caller.
    #[serde(deserialize_with = "whole")]
    pub to_caller_bytes: u64,
}

/// Response to `GET /v1/streams`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamList {
    /// The streams that the caller may see.
    pub streams: Vec<LiveStream>,
}
