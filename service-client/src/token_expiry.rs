//! Tells a program that lives longer than its token when the token is about to expire.

use std::time::{Duration, SystemTime};

use moorline_proto::claims::unverified_expiry;
use moorline_proto::secret::Secret;
use moorline_proto::timestamp::Timestamp;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::client::Client;

/// How often the time of day is looked at: a machine that slept or whose clock was set is late by this much at most.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(60);

impl Client {
    /// Tells when the token is about to expire, `before` it does. Reads the `exp` claim without verifying it: for messages alone.
    #[allow(clippy::disallowed_methods, reason = "a token's end is wall time; what comes of it is a message")]
    pub fn token_expiry(&self, before: Duration) -> TokenExpiry {
        TokenExpiry::new(self.clone(), before, Box::new(|| SystemTime::now().into()))
    }
}

/// The ends of a client's tokens, each told once: made by [`Client::token_expiry`].
#[must_use = "nothing is told unless it is asked for"]
pub struct TokenExpiry {
    client: Client,
    tokens: watch::Receiver<Option<Secret>>,
    before: Duration,
    now: Box<dyn Fn() -> Timestamp + Send + Sync>,
    /// The token that was told last.
    told: Option<Secret>,
}

impl TokenExpiry {
    pub(crate) fn new(client: Client, before: Duration, now: Box<dyn Fn() -> Timestamp + Send + Sync>) -> Self {
        let tokens = client.inner.token.watch();
        Self { client, tokens, before, now, told: None }
    }

    /// Waits until a token that was not told yet expires soon, and returns when it does. A token that was renewed meanwhile
    /// ([`Client::with_token_source`]) takes the place of the old one and is not told before its own time.
    ///
    /// Waits for ever for a token that has no readable end.
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> SystemTime {
        loop {
            let token = self.tokens.borrow_and_update().clone();
            let end = token.as_ref().filter(|token| Some(*token) != self.told.as_ref()).and_then(unverified_expiry);
            let Some(end) = end else {
                drop(self.tokens.changed().await); // the client holds the sender
                continue;
            };
            let left = Duration::from_millis(end.as_millis().saturating_sub((self.now)().as_millis())).saturating_sub(self.before);
            if !left.is_zero() {
                tokio::select! {
                    () = sleep(left.min(CLOCK_CHECK_INTERVAL)) => {}
                    changed = self.tokens.changed() => drop(changed),
                }
                continue;
            }
            if self.client.inner.token.renewed(token.clone()).await.is_none() {
                self.told = token;
                return end.into();
            }
        }
    }
}

impl std::fmt::Debug for TokenExpiry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenExpiry").field("before", &self.before).finish_non_exhaustive()
    }
}
