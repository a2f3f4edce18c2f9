//! Compares ids, patterns, opaque data, moments and join strings with `vectors/`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use moorline_proto::claims::Pattern;
use moorline_proto::id::{DeviceId, Feature, Instance, Issuer, NameError, NodeId, ServiceName, StreamId, Subject};
use moorline_proto::join::{Join, RelayUrl, RelayUrlError};
use moorline_proto::text::{Data, DataError};
use moorline_proto::timestamp::Timestamp;
use serde::Deserialize;
use support::{Invalid, Written, vectors};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Names {
    kinds: BTreeMap<String, Kind>,
    patterns: Vec<PatternVector>,
    data: DataVectors,
    timestamps: TimestampVectors,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kind {
    valid: Vec<Written>,
    invalid: Vec<Invalid>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PatternVector {
    pattern: Pattern,
    matches: Vec<Written>,
    not: Vec<Written>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DataVectors {
    valid: Vec<DataVector>,
    invalid: Vec<Invalid>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DataVector {
    base64: Written,
    hex: Written,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TimestampVectors {
    valid: Vec<TimestampVector>,
    invalid: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TimestampVector {
    text: String,
    millis: u64,
    canonical: String,
}

fn name_error(error: &NameError) -> &'static str {
    match error {
        NameError::Length { .. } => "length",
        NameError::UpperCase { .. } => "upper_case",
        NameError::Character { .. } => "character",
        NameError::Edge { .. } => "edge",
        NameError::DoubleDot { .. } => "double_dot",
    }
}

/// The text as its kind prints it, or the name of its error.
fn reprint(kind: &str, text: &str) -> Result<String, &'static str> {
    macro_rules! name {
        ($name:ty) => {
            text.parse::<$name>().map(|name| name.to_string()).map_err(|error| name_error(&error))
        };
    }
    match kind {
        "device_id" => name!(DeviceId),
        "service_name" => name!(ServiceName),
        "node_id" => name!(NodeId),
        "issuer" => name!(Issuer),
        "subject" => name!(Subject),
        "instance" => name!(Instance),
        "feature" => name!(Feature),
        "stream_id" => text.parse::<StreamId>().map(|stream| stream.to_string()).map_err(|_| "none"),
        "pattern" => text.parse::<Pattern>().map(|pattern| pattern.to_string()).map_err(|_| "none"),
        other => panic!("there is no kind {other:?}"),
    }
}

#[test]
fn names() {
    let file: Names = vectors("names.json");
    for (kind, Kind { valid, invalid }) in &file.kinds {
        for text in valid.iter().map(Written::to_string) {
            assert_eq!(reprint(kind, &text), Ok(text.clone()), "{kind}");
        }
        for vector in invalid {
            assert_eq!(reprint(kind, &vector.text.to_string()), Err(vector.error.as_str()), "{kind} {:?}", vector.text.to_string());
        }
    }
    for PatternVector { pattern, matches, not } in &file.patterns {
        for name in matches {
            assert!(pattern.matches(&name.to_string()), "{pattern} matches {name}");
        }
        for name in not {
            assert!(!pattern.matches(&name.to_string()), "{pattern} does not match {name}");
        }
    }
}

#[test]
fn opaque_data_and_moments() {
    let file: Names = vectors("names.json");
    for vector in file.data.valid {
        let data = Data::from_base64(&vector.base64.to_string()).unwrap();
        assert_eq!(HEXLOWER.encode(data.as_bytes()), vector.hex.to_string());
        assert_eq!(data.to_base64(), vector.base64.to_string());
    }
    for vector in file.data.invalid {
        let error = match Data::from_base64(&vector.text.to_string()) {
            Err(DataError::NotBase64) => "not_base64",
            Err(DataError::TooLong { .. }) => "too_long",
            Ok(data) => panic!("{data:?}"),
        };
        assert_eq!(error, vector.error, "{}", vector.text);
    }
    for vector in file.timestamps.valid {
        let moment: Timestamp = vector.text.parse().unwrap();
        assert_eq!((moment.as_millis(), moment.to_string()), (vector.millis, vector.canonical), "{}", vector.text);
    }
    for text in file.timestamps.invalid {
        assert!(text.parse::<Timestamp>().is_err(), "{text}");
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Joins {
    valid: Vec<JoinVector>,
    invalid: Vec<Invalid>,
    resolve: Vec<Resolve>,
    foreign: Vec<Resolve>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JoinVector {
    text: String,
    host: String,
    port: u16,
    authority: String,
    canonical: String,
    ca: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resolve {
    relay: RelayUrl,
    handed_out: String,
    suffix: Option<String>,
    #[serde(default)]
    url: String,
    #[serde(default)]
    path: String,
}

#[test]
fn join_strings_and_addresses_from_a_relay() {
    let file: Joins = vectors("join.json");
    for vector in file.valid {
        let join: Join = vector.text.parse().unwrap_or_else(|error| panic!("{}: {error}", vector.text));
        assert_eq!((join.url.host(), join.url.port()), (vector.host.as_str(), vector.port), "{}", vector.text);
        assert_eq!((join.url.authority(), join.to_string()), (vector.authority, vector.canonical));
        assert_eq!(join.ca.as_ref().map(|der| BASE64URL_NOPAD.encode(der)), vector.ca);
    }
    for vector in file.invalid {
        let error = match vector.text.to_string().parse::<Join>() {
            Err(RelayUrlError::Scheme) => "scheme",
            Err(RelayUrlError::Extra) => "extra",
            Err(RelayUrlError::Host(_)) => "host",
            Err(RelayUrlError::Port(_)) => "port",
            Err(RelayUrlError::Ca) => "ca",
            Err(RelayUrlError::Certificate(_)) => "certificate",
            Ok(join) => panic!("{}: {join:?}", vector.text),
        };
        assert_eq!(error, vector.error, "{}", vector.text);
    }
    for vector in file.resolve {
        let (url, path) = vector.relay.resolve(&vector.handed_out, vector.suffix.as_deref()).unwrap();
        assert_eq!((url.to_string(), path), (vector.url, vector.path), "{}", vector.handed_out);
    }
    for vector in file.foreign {
        assert!(vector.relay.resolve(&vector.handed_out, vector.suffix.as_deref()).is_err(), "{}", vector.handed_out);
    }
}
