//! Close codes of the protocol, and when a device reconnects after each.

use std::time::Duration;

/// A close code of the protocol, on legs and control channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CloseReason {
    /// Both directions ended, or the device stops on purpose.
    Finished,
    /// A framing error (RFC 6455).
    Framing,
    /// Text that is not UTF-8 (RFC 6455).
    BadUtf8,
    /// A message over its size limit (RFC 6455).
    TooBig,
    /// The node stops.
    RelayDraining,
    /// The far side reset its connection, broke the protocol, or closed with any code but 1000.
    Reset,
    /// The far side's leg was lost without a Close, or timed out.
    PeerLost,
    /// No byte within the idle timeout.
    IdleTimeout,
    /// The grant or the stream expired.
    Expired,
    /// An operator ended it.
    Killed,
    /// The device or the caller is no longer authorized.
    Revoked,
    /// A newer control channel of the device took over, or the leg was joined again, or its offer was repeated.
    Superseded,
    /// A limit of bytes or time was reached.
    Limit,
    /// After `refused`, or a device leg whose stream was not opened.
    Refused,
    /// The peer violated the protocol; the reason says how.
    Protocol,
    /// Control channel: the proof is invalid, or the device is unknown.
    Unauthenticated,
    /// Control channel: the proof is valid, but the device is disabled or pending.
    Forbidden,
}

/// When a device reconnects after its control channel was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReconnectPolicy {
    /// With exponential backoff and full jitter, from 1 s to 60 s.
    Backoff,
    /// After this time: a bug, or a wrong address.
    After(Duration),
    /// After about this time, half more or less: an operator has to act, and the device logs so.
    Rarely(Duration),
    /// Not while a newer channel of the same instance is up.
    UnlessSuperseded,
}

impl CloseReason {
    /// All of them, ordered by code.
    pub const ALL: &'static [Self] = &[
        Self::Finished,
        Self::Framing,
        Self::BadUtf8,
        Self::TooBig,
        Self::RelayDraining,
        Self::Reset,
        Self::PeerLost,
        Self::IdleTimeout,
        Self::Expired,
        Self::Killed,
        Self::Revoked,
        Self::Superseded,
        Self::Limit,
        Self::Refused,
        Self::Protocol,
        Self::Unauthenticated,
        Self::Forbidden,
    ];

    /// The code in the Close frame.
    pub const fn code(self) -> u16 {
        match self {
            Self::Finished => 1000,
            Self::Framing => 1002,
            Self::BadUtf8 => 1007,
            Self::TooBig => 1009,
            Self::RelayDraining => 1012,
            Self::Reset => 4001,
            Self::PeerLost => 4002,
            Self::IdleTimeout => 4003,
            Self::Expired => 4004,
            Self::Killed => 4005,
            Self::Revoked => 4006,
            Self::Superseded => 4007,
            Self::Limit => 4008,
            Self::Refused => 4010,
            Self::Protocol => 4400,
            Self::Unauthenticated => 4401,
            Self::Forbidden => 4403,
        }
    }

    /// The name that the Close frame's reason begins with and that logs show.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Framing => "framing",
            Self::BadUtf8 => "bad_utf8",
            Self::TooBig => "too_big",
            Self::RelayDraining => "relay_draining",
            Self::Reset => "reset",
            Self::PeerLost => "peer_lost",
            Self::IdleTimeout => "idle_timeout",
            Self::Expired => "expired",
            Self::Killed => "killed",
            Self::Revoked => "revoked",
            Self::Superseded => "superseded",
            Self::Limit => "limit",
            Self::Refused => "refused",
            Self::Protocol => "protocol",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
        }
    }

    /// The reason for a code, if the protocol defines it.
    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.code() == code)
    }

    /// The reason for the Close frame: the name, followed by a colon and `detail` unless that is empty, truncated to what a frame can hold.
    pub fn text(self, detail: &str) -> String {
        if detail.is_empty() {
            return self.name().to_owned();
        }
        truncated_reason(&format!("{}: {detail}", self.name())).to_owned()
    }

    /// When a device reconnects whose control channel was closed with this reason. Unknown codes are treated like a lost connection.
    pub const fn reconnect_policy(self) -> ReconnectPolicy {
        match self {
            Self::Protocol => ReconnectPolicy::After(Duration::from_secs(60)),
            Self::Unauthenticated | Self::Forbidden | Self::Revoked => ReconnectPolicy::Rarely(Duration::from_secs(300)),
            Self::Superseded => ReconnectPolicy::UnlessSuperseded,
            Self::Finished
            | Self::Framing
            | Self::BadUtf8
            | Self::TooBig
            | Self::RelayDraining
            | Self::Reset
            | Self::PeerLost
            | Self::IdleTimeout
            | Self::Expired
            | Self::Killed
            | Self::Limit
            | Self::Refused => ReconnectPolicy::Backoff,
        }
    }
}

impl std::fmt::Display for CloseReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// The text, truncated at a character boundary to the 123 bytes that a Close frame's reason may have (RFC 6455, 5.5).
pub fn truncated_reason(text: &str) -> &str {
    const MAX: usize = 123;
    if text.len() <= MAX {
        return text;
    }
    let end = (0..=MAX).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_close_is_the_name_and_the_detail_in_123_bytes() {
        assert_eq!(CloseReason::Reset.text(""), "reset");
        assert_eq!(CloseReason::Protocol.text("bytes after end"), "protocol: bytes after end");
        assert_eq!(CloseReason::Protocol.text(&"x".repeat(1_000)).len(), 123);
        assert_eq!(CloseReason::Killed.text(&"\u{1f512}".repeat(1_000)).len(), 120, "no character is split");
    }
}
