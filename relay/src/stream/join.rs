//! Where the two sides of a stream meet: by leg token at a stream's seat, before its deadline.
//!
//! **Invariant:** knows nothing of sockets, HTTP or devices' answers; it matches tokens and hands on values of type `E` to whoever holds
//! the seat. **Invariant:** a token opens one side of one stream, until that stream is opened; its text is kept nowhere, only its hash.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use moorline_proto::id::{DeviceId, StreamId};
use moorline_proto::secret::Secret;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::mpsc;

use crate::random;
use crate::ttl_map::TtlMap;

/// Events that wait at a seat: a few joins, an answer, a cut.
const EVENTS: usize = 8;

/// Streams that were over lately and are remembered, at most.
const OVER: usize = 20_000;

/// Which side's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenOf {
    /// The device leg's.
    Device,
    /// The caller leg's.
    Caller,
}

/// All seats. Clones share them.
#[derive(Debug)]
pub struct Rendezvous<E>(Arc<Inside<E>>);

impl<E> Clone for Rendezvous<E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Inside<E> {
    seats: DashMap<StreamId, Place<E>>,
    over: TtlMap<StreamId, Tokens>,
}

#[derive(Debug)]
struct Place<E> {
    device: DeviceId,
    tokens: Tokens,
    opened: bool,
    mail: mpsc::Sender<E>,
}

/// Hashes of the tokens; a side without one cannot join by token.
#[derive(Clone, Copy, Debug, Default)]
struct Tokens {
    device: Option<Hash>,
    caller: Option<Hash>,
}

type Hash = [u8; 32];

fn hash(token: &Secret) -> Hash {
    Sha256::digest(token.reveal()).into() // the hash stays, the text does not
}

impl Tokens {
    /// Whose token it is. Takes as long for a wrong one.
    fn whose(&self, token: &Hash) -> Option<TokenOf> {
        let is = |known: Option<Hash>| bool::from(known.unwrap_or_default().ct_eq(token)) && known.is_some();
        let (device, caller) = (is(self.device), is(self.caller));
        device.then_some(TokenOf::Device).or(caller.then_some(TokenOf::Caller))
    }
}

/// Why a token does not join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// No such stream, or not this token's.
    #[error("no such stream, or not this token's")]
    Unknown,
    /// The stream was opened: the token has done its work.
    #[error("the stream was opened already")]
    Used,
    /// The stream is over.
    #[error("the stream is over")]
    Over,
}

/// A stream's seat: its holder gets what comes for the stream. Dropping it gives the seat up; its tokens are remembered for a while.
#[must_use = "the stream can be joined only while this is held"]
#[derive(Debug)]
pub struct Seat<E> {
    rendezvous: Rendezvous<E>,
    stream: StreamId,
}

impl<E> Rendezvous<E> {
    /// Streams that are over are remembered for `closed_stream_retention`.
    pub fn new(closed_stream_retention: Duration) -> Self {
        Self(Arc::new(Inside { seats: DashMap::new(), over: TtlMap::new(closed_stream_retention, OVER) }))
    }

    /// A seat for a new stream to a device, and where its mail arrives.
    pub fn seat(&self, stream: StreamId, device: DeviceId) -> (Seat<E>, mpsc::Sender<E>, mpsc::Receiver<E>) {
        let (mail, inbox) = mpsc::channel(EVENTS);
        let place = Place { device, tokens: Tokens::default(), opened: false, mail: mail.clone() };
        self.0.seats.insert(stream, place);
        (Seat { rendezvous: self.clone(), stream }, mail, inbox)
    }

    /// Whose token it is, and where that side's leg is to be handed in.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub fn claim(&self, stream: StreamId, token: &Secret) -> Result<(TokenOf, mpsc::Sender<E>), ClaimError> {
        let token = hash(token);
        if let Some(place) = self.0.seats.get(&stream) {
            let whose = place.tokens.whose(&token).ok_or(ClaimError::Unknown)?;
            return if place.opened { Err(ClaimError::Used) } else { Ok((whose, place.mail.clone())) };
        }
        let was = self.0.over.get(&stream).and_then(|tokens| tokens.whose(&token));
        Err(was.map_or(ClaimError::Unknown, |_| ClaimError::Over))
    }

    /// Hands something in for a stream in the name of its device. False if the stream is not that device's, or its seat takes no more:
    /// answers race with cancels, and nobody waits for a device's words.
    pub fn from_device(&self, device: &DeviceId, stream: StreamId, event: E) -> bool {
        let place = self.0.seats.get(&stream);
        place.is_some_and(|place| place.device == *device && place.mail.try_send(event).is_ok())
    }

    /// How many streams have a seat.
    pub fn len(&self) -> usize {
        self.0.seats.len()
    }

    /// Whether no stream has a seat.
    pub fn is_empty(&self) -> bool {
        self.0.seats.is_empty()
    }
}

impl<E> Seat<E> {
    /// A new token for a side; the one before it is good for nothing any more.
    pub fn token(&self, side: TokenOf) -> Secret {
        renew(&self.rendezvous, self.stream, side).unwrap_or_else(random::leg_token)
    }

    /// Whether somebody has a token for the caller's side.
    pub fn caller_has_token(&self) -> bool {
        self.rendezvous.0.seats.get(&self.stream).is_some_and(|place| place.tokens.caller.is_some())
    }

    /// Both sides have joined: tokens have done their work.
    pub fn opened(&self) {
        if let Some(mut place) = self.rendezvous.0.seats.get_mut(&self.stream) {
            place.opened = true;
        }
    }
}

/// A new token for a side of a stream that has a seat and was not opened; what was its token before is good for nothing any more.
fn renew<E>(rendezvous: &Rendezvous<E>, stream: StreamId, side: TokenOf) -> Option<Secret> {
    let mut place = rendezvous.0.seats.get_mut(&stream).filter(|place| !place.opened)?;
    let token = random::leg_token();
    let hash = Some(hash(&token));
    match side {
        TokenOf::Device => place.tokens.device = hash,
        TokenOf::Caller => place.tokens.caller = hash,
    }
    Some(token)
}

impl<E> Rendezvous<E> {
    /// A fresh caller token for a stream that was asked for again; nothing if it was opened or is over.
    pub fn renew_caller_token(&self, stream: StreamId) -> Option<Secret> {
        renew(self, stream, TokenOf::Caller)
    }
}

impl<E> Drop for Seat<E> {
    fn drop(&mut self) {
        if let Some((stream, place)) = self.rendezvous.0.seats.remove(&self.stream) {
            self.rendezvous.0.over.put(stream, place.tokens);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> DeviceId {
        "lamp-1".parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_opens_its_own_side_of_its_own_stream_until_that_is_opened_or_over() {
        let desk = Rendezvous::<&str>::new(Duration::from_secs(300));
        let (stream, other) = (random::stream_id(), random::stream_id());
        let (seat, _mail, mut inbox) = desk.seat(stream, device());
        let (_other_seat, _other_mail, _other_inbox) = desk.seat(other, device());
        let (device_token, caller_token) = (seat.token(TokenOf::Device), seat.token(TokenOf::Caller));

        let (side, mail) = desk.claim(stream, &caller_token).unwrap();
        assert_eq!(side, TokenOf::Caller);
        mail.send("a leg").await.unwrap();
        assert_eq!(inbox.recv().await, Some("a leg"));
        assert_eq!(desk.claim(stream, &device_token).unwrap().0, TokenOf::Device, "joining again is allowed before opened");
        assert_eq!(desk.claim(other, &device_token).unwrap_err(), ClaimError::Unknown);
        assert_eq!(desk.claim(stream, &random::leg_token()).unwrap_err(), ClaimError::Unknown);

        seat.opened();
        assert_eq!(desk.claim(stream, &device_token).unwrap_err(), ClaimError::Used);
        drop(seat);
        assert_eq!(desk.claim(stream, &device_token).unwrap_err(), ClaimError::Over);
        assert_eq!(desk.claim(stream, &random::leg_token()).unwrap_err(), ClaimError::Unknown);
        tokio::time::advance(Duration::from_secs(301)).await;
        assert_eq!(desk.claim(stream, &device_token).unwrap_err(), ClaimError::Unknown);
    }

    #[tokio::test]
    async fn a_renewed_token_takes_the_place_of_the_old_one() {
        let desk = Rendezvous::<()>::new(Duration::from_secs(300));
        let stream = random::stream_id();
        let (seat, _mail, _inbox) = desk.seat(stream, device());
        let old = seat.token(TokenOf::Caller);
        let new = desk.renew_caller_token(stream).unwrap();
        assert_eq!(desk.claim(stream, &old).unwrap_err(), ClaimError::Unknown);
        assert!(desk.claim(stream, &new).is_ok());
        seat.opened();
        assert!(desk.renew_caller_token(stream).is_none());
    }

    #[tokio::test]
    async fn a_device_speaks_for_its_own_streams_only() {
        let desk = Rendezvous::<&str>::new(Duration::from_secs(300));
        let stream = random::stream_id();
        let (_seat, _mail, mut inbox) = desk.seat(stream, device());
        assert!(!desk.from_device(&"lamp-2".parse().unwrap(), stream, "accept"));
        assert!(desk.from_device(&device(), stream, "accept"));
        assert_eq!(inbox.recv().await, Some("accept"));
        assert!(!desk.from_device(&device(), random::stream_id(), "accept"));
    }
}
