//! Which stream a leg belongs to, and by what its side passes from one to the next. Pure.

use moorline_proto::control::{Accept, Reject};
use moorline_proto::leg::LegText;
use moorline_proto::message::Decoded;
use moorline_proto::reuse::{Ask, ReuseText};

use crate::access::principal::AskingCaller;
use crate::splice::leg_end::LegEnd;

/// On whose authority a leg may be used again.
#[derive(Clone, Debug)]
pub enum Reuse {
    /// The session of the device whose leg it is.
    Device,
    /// A caller's token.
    Caller(Box<AskingCaller>),
}

/// Where a leg stands, which decides what its side may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LegUse {
    /// It belongs to a stream.
    Stream,
    /// A caller's leg without a stream: `ask` may come.
    IdleCaller,
    /// A device's leg without a stream: nothing may come.
    IdleDevice,
    /// A device's leg on which a stream was offered: `accept` or `reject` may come.
    Offered,
}

/// What a side says on a leg to pass to another stream, or from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// A caller wants a stream.
    Ask(Box<Ask>),
    /// The device takes the stream that was offered on the leg.
    Accept(Box<Accept>),
    /// It does not.
    Reject(Box<Reject>),
}

/// Reads a text message on a leg that does not belong to a stream, and returns where the leg stands behind it. Nothing for one that is ignored.
///
/// # Errors
/// [`LegEnd::Broke`].
pub(super) fn read(text: &str, now: LegUse) -> Result<Option<(Said, LegUse)>, LegEnd> {
    match (now, ReuseText::decode(text)) {
        (LegUse::IdleCaller, Ok(Decoded::Known(ReuseText::Ask(ask)))) => Ok(Some((Said::Ask(ask), LegUse::Stream))),
        (LegUse::Offered, Ok(Decoded::Known(ReuseText::Accept(accept)))) => Ok(Some((Said::Accept(Box::new(accept)), LegUse::Stream))),
        (LegUse::Offered, Ok(Decoded::Known(ReuseText::Reject(reject)))) => Ok(Some((Said::Reject(Box::new(reject)), LegUse::IdleDevice))),
        (_, Ok(Decoded::Known(message))) => Err(LegEnd::protocol(&format!("{} {}", message.kind(), now.place()))),
        (_, Ok(Decoded::Unknown(kind))) if LegText::TYPES.contains(&kind.as_str()) => {
            Err(LegEnd::protocol(&format!("{kind} {}", now.place())))
        }
        (_, Ok(Decoded::Unknown(_))) => Ok(None),
        (_, Err(error)) => Err(LegEnd::protocol(&error.to_string())),
    }
}

impl LegUse {
    /// For errors: where something must not come.
    pub(super) fn place(self) -> &'static str {
        match self {
            Self::Stream => "on an open stream",
            Self::IdleCaller | Self::IdleDevice => "on an idle leg",
            Self::Offered => "before accept",
        }
    }
}

#[cfg(test)]
mod tests {
    use moorline_proto::close::CloseReason;

    use super::*;

    const ASK: &str = r#"{"type":"ask","device":"lamp-1","service":"ssh"}"#;
    const ACCEPT: &str = r#"{"type":"accept","stream":"7f1a3c5e9b2d4f608192a3b4c5d6e7f8"}"#;
    const REJECT: &str = r#"{"type":"reject","stream":"7f1a3c5e9b2d4f608192a3b4c5d6e7f8","code":"busy"}"#;
    const OTHERS: [&str; 7] = [
        r#"{"type":"idle","keep_ms":1,"ping_ms":1000}"#,
        r#"{"type":"cancel","stream":"7f1a3c5e9b2d4f608192a3b4c5d6e7f8","code":"killed"}"#,
        r#"{"type":"opened"}"#,
        r#"{"type":"refused"}"#,
        r#"{"type":"end"}"#,
        r#"{"type":"delivered"}"#,
        "hello",
    ];

    #[test]
    fn each_use_of_a_leg_takes_its_own_words_alone() {
        let taken = |now, text| read(text, now).map(|said| said.map(|(_, then)| then));
        for (now, allowed) in [
            (LegUse::IdleCaller, &[(ASK, LegUse::Stream)][..]),
            (LegUse::IdleDevice, &[]),
            (LegUse::Offered, &[(ACCEPT, LegUse::Stream), (REJECT, LegUse::IdleDevice)]),
        ] {
            for text in [ASK, ACCEPT, REJECT].into_iter().chain(OTHERS) {
                match allowed.iter().find(|(own, _)| *own == text) {
                    Some((_, then)) => assert_eq!(taken(now, text), Ok(Some(*then)), "{now:?}: {text}"),
                    None => assert!(matches!(taken(now, text), Err(LegEnd::Broke(CloseReason::Protocol, _))), "{now:?}: {text}"),
                }
            }
            assert_eq!(taken(now, r#"{"type":"from_the_future"}"#), Ok(None), "{now:?}");
        }
    }
}
