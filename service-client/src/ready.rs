//! Keeps one idle leg ready, so that the first stream costs one round trip, too.
//!
//! Does not own: the idle legs ([`crate::pool`]).

use std::convert::Infallible;
use std::time::Duration;

use http::HeaderMap;
use moorline_proto::names::CONNECT;
use moorline_proto::problem::Problem;
use moorline_proto::secret::Secret;
use moorline_transport::backoff::{Backoff, Pauses};
use moorline_transport::dial::{DialError, Refusal};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;

use crate::client::Client;
use crate::open_error::{OpenError, unreachable_or_refused};

/// To open an idle leg.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a relay that does not know idle legs is asked again: it may have been updated.
const UNSUPPORTED_PAUSE: Duration = Duration::from_secs(5 * 60);
/// A leg that was idle for this long before it was gone was not lost at once: no pause is needed before the next one.
const LASTING: Duration = Duration::from_secs(10);

/// Why there is no idle leg.
#[derive(Debug, thiserror::Error)]
enum NotReady {
    #[error("the relay does not know idle legs")]
    Unsupported,
    /// It was opened, and was gone before it was of use.
    #[error("it was lost at once")]
    LostAtOnce,
    #[error(transparent)]
    Failed(OpenError),
}

impl NotReady {
    /// A relay without idle legs has nothing at their path.
    fn of(error: DialError) -> Self {
        match error.refusal() {
            Some(Refusal { status: 404 | 405, .. }) => Self::Unsupported,
            Some(_) | None => Self::Failed(unreachable_or_refused(error)),
        }
    }

    fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Unsupported | Self::LostAtOnce => None,
            Self::Failed(error) => error.problem(),
        }
    }
}

impl Client {
    /// Keeps one idle leg ready, for as long as it is polled: a program that expects streams saves the round trips of a new connection with each
    /// one's first. The leg is replaced once it was used or is gone, after a pause where that fails. With a relay that does not know idle legs,
    /// and for a client that keeps none ([`Client::with_idle_legs`]), it does nothing.
    ///
    /// # Cancel safety
    /// Dropping the future drops a leg that is being opened. The idle ones stay.
    pub async fn keep_leg_ready(&self) -> Infallible {
        if !self.inner.pool.keeps_legs() {
            return std::future::pending().await;
        }
        let mut backoff = Backoff::new(Pauses::CHANNEL);
        loop {
            let taken = self.inner.pool.emptied().await;
            let pause = match self.open_and_lose(taken).await {
                Ok(()) => {
                    backoff.reset();
                    continue;
                }
                Err(NotReady::Unsupported) => UNSUPPORTED_PAUSE,
                Err(NotReady::LostAtOnce | NotReady::Failed(_)) => backoff.pause(&mut rand::rng()),
            };
            sleep(pause).await;
        }
    }

    /// Opens an idle leg, and waits until there is none any more. `taken` were taken from the pool before.
    async fn open_and_lose(&self, taken: u64) -> Result<(), NotReady> {
        self.open_idle().await.inspect_err(|error| debug!(%error, "no idle leg is ready"))?;
        let begun = Instant::now();
        let was_taken = self.inner.pool.emptied().await > taken;
        if was_taken || begun.elapsed() > LASTING { Ok(()) } else { Err(NotReady::LostAtOnce) }
    }

    /// Opens an idle leg and puts it into the pool. A token that has expired is renewed as for a stream.
    async fn open_idle(&self) -> Result<(), NotReady> {
        Box::pin(self.inner.token.send(NotReady::problem, |token| self.open_idle_with(token))).await
    }

    async fn open_idle_with(&self, token: Option<Secret>) -> Result<(), NotReady> {
        let deadline = Instant::now() + READY_TIMEOUT;
        let leg = self.inner.dialer.with_reuse().leg(CONNECT, &HeaderMap::new(), token.as_ref(), deadline).await.map_err(NotReady::of)?;
        if !leg.is_reusable() {
            return Err(NotReady::Unsupported);
        }
        let Ok(idle) = timeout_at(deadline, leg.idle()).await else {
            return Err(NotReady::Failed(OpenError::TimedOut { waited: READY_TIMEOUT }));
        };
        self.inner.pool.put(token.as_ref(), idle.map_err(|end| NotReady::Failed(OpenError::Ended(end)))?);
        Ok(())
    }
}
