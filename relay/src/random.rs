//! Random ids and secrets, from the library that TLS uses. Jitter alone comes from `rand`.

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use moorline_proto::id::StreamId;
use moorline_proto::names::{LEG_TOKEN_PREFIX, WARM_TOKEN_PREFIX};
use moorline_proto::secret::Secret;

/// `N` bytes from a cryptographically secure source.
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system's random source does not fail once it was seeded");
    bytes
}

/// A new stream's id.
pub(crate) fn stream_id() -> StreamId {
    StreamId::from_bytes(bytes())
}

/// A new leg token: 256 bits behind the prefix that secret scanners know.
pub(crate) fn leg_token() -> Secret {
    Secret::new(format!("{LEG_TOKEN_PREFIX}{}", BASE64URL_NOPAD.encode(&bytes::<32>())))
}

/// A new token for idle device legs, of the same strength.
pub(crate) fn warm_token() -> Secret {
    Secret::new(format!("{WARM_TOKEN_PREFIX}{}", BASE64URL_NOPAD.encode(&bytes::<32>())))
}

/// A new session's id: 64 bits, for logs.
pub(crate) fn session() -> String {
    HEXLOWER.encode(&bytes::<8>())
}
