//! Leg tokens: which side of which stream a token joins, while the stream can be joined. Only digests of tokens are kept.

use moorline_proto::control::Attempt;
use moorline_proto::id::StreamId;
use moorline_proto::secret::Secret;

use crate::digest::Digest;
use crate::random;
use crate::splice::Side;

/// The tokens of one stream.
#[derive(Debug, Default)]
pub(super) struct LegTokens {
    device: Option<(Digest, Attempt)>,
    caller: Option<Digest>,
}

/// What a token joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LegOf {
    /// The caller leg.
    Caller,
    /// The device leg of this attempt to offer the stream.
    Device(Attempt),
}

impl LegOf {
    /// The side of the stream.
    pub fn side(self) -> Side {
        match self {
            Self::Caller => Side::Caller,
            Self::Device(_) => Side::Device,
        }
    }
}

/// Why a token does not join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// No such stream, or not this token's.
    #[error("no such stream, or not this token's")]
    Unknown,
    /// The stream was opened: the token has been used.
    #[error("the stream was opened already")]
    Used,
    /// The stream is over.
    #[error("the stream is over")]
    Over,
}

/// The digest of a stream's token.
pub(super) fn token_digest(stream: StreamId, token: &Secret) -> Digest {
    Digest::of(&[stream.to_string().as_bytes(), token.reveal().as_bytes()]) // the digest stays, the text does not
}

impl LegTokens {
    /// A new token for the device leg of an attempt; the one before joins nothing any more.
    pub(super) fn renew_device(&mut self, stream: StreamId, attempt: Attempt) -> Secret {
        let token = random::leg_token();
        self.device = Some((token_digest(stream, &token), attempt));
        token
    }

    /// A new token for the caller leg; the one before joins nothing any more.
    pub(super) fn renew_caller(&mut self, stream: StreamId) -> Secret {
        let token = random::leg_token();
        self.caller = Some(token_digest(stream, &token));
        token
    }

    /// What the token joins. Takes as long for a wrong one.
    pub(super) fn find(&self, token: &Digest) -> Option<LegOf> {
        let device = self.device.filter(|(digest, _)| digest.is(token)).map(|(_, attempt)| LegOf::Device(attempt));
        let caller = self.caller.filter(|digest| digest.is(token)).map(|_| LegOf::Caller);
        device.or(caller)
    }

    /// Whether somebody has a token for the caller leg.
    pub(super) fn has_caller(&self) -> bool {
        self.caller.is_some()
    }

    /// Every digest, to be remembered when the stream is over.
    pub(super) fn digests(&self) -> impl Iterator<Item = Digest> {
        self.device.map(|(digest, _)| digest).into_iter().chain(self.caller)
    }

    /// The digest of the caller's token.
    pub(super) fn caller(&self) -> Option<Digest> {
        self.caller
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_joins_its_own_side_and_a_renewed_one_takes_its_place() {
        let (stream, other) = (random::stream_id(), random::stream_id());
        let mut tokens = LegTokens::default();
        let (device, caller) = (tokens.renew_device(stream, Attempt::default()), tokens.renew_caller(stream));
        assert_eq!(tokens.find(&token_digest(stream, &device)), Some(LegOf::Device(Attempt::default())));
        assert_eq!(tokens.find(&token_digest(stream, &caller)), Some(LegOf::Caller));
        assert_eq!(tokens.find(&token_digest(other, &caller)), None, "another stream's");
        assert_eq!(tokens.find(&token_digest(stream, &random::leg_token())), None);
        let second = Attempt::default().next();
        let newer = tokens.renew_device(stream, second);
        assert_eq!(tokens.find(&token_digest(stream, &device)), None);
        assert_eq!(tokens.find(&token_digest(stream, &newer)), Some(LegOf::Device(second)));
    }
}
