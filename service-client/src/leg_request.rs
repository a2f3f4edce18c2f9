//! The request for a caller leg, sent as often as necessary: first on an idle leg, if there is one, then on new ones.
//!
//! ```text
//!   idle leg ── ask ─────▶ opened                 one round trip
//!            └─ died, or closed without an answer ─▶ connect at once, with the same key
//!   connect ─────────────▶ 101 … opened           lost before: again after a pause
//! ```
//!
//! Does not own: when to retry ([`crate::retry`]), which idle legs there are ([`crate::pool`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::HeaderMap;
use moorline_proto::leg::{Opened, Peer};
use moorline_proto::reuse::Ask;
use moorline_proto::secret::Secret;
use moorline_transport::dial::Dialer;
use moorline_transport::leg::{self, Leg};
use tokio::io::AsyncRead;
use tokio::time::Instant;
use tracing::debug;

use crate::early::{EarlyBytes, NotOpened};
use crate::open_error::{OpenError, is_recoverable, is_replaceable, request_error};
use crate::pool::Pool;
use crate::refusal::problem_retry_after;
use crate::retry::{AttemptError, retry_until};
use crate::stream::Stream;

/// To reach the relay and receive its 101, which the relay never delays.
const DIAL_TIMEOUT: Duration = Duration::from_secs(20);

/// The request for a caller leg.
pub(crate) struct LegRequest {
    pub(crate) dialer: Dialer,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) bearer: Option<Secret>,
    /// A ticket has none, and is for one stream: once it is refused, another join only returns `stream_expired`.
    pub(crate) reuse: Option<Reuse>,
}

/// The same request for an idle leg.
pub(crate) struct Reuse {
    ask: Ask,
    /// Where such legs are.
    pool: Arc<Pool>,
    /// Idle legs are tried once: if one has died, others may have.
    was_tried: AtomicBool,
}

impl Reuse {
    pub(crate) fn new(ask: Ask, pool: &Arc<Pool>) -> Self {
        Self { ask, pool: Arc::clone(pool), was_tried: AtomicBool::new(false) }
    }
}

impl LegRequest {
    /// Sends the request until the stream is open or cannot be, for `waited` at most, and the first bytes with it.
    pub(crate) async fn join<S: AsyncRead + Unpin + ?Sized>(
        &self,
        waited: Duration,
        early: &EarlyBytes<'_, S>,
    ) -> Result<Stream, OpenError> {
        let deadline = Instant::now() + waited;
        let opened = retry_until(deadline, || async {
            let tried = match self.on_idle_leg(early).await {
                Some(asked) => asked,
                None => self.on_new_leg(deadline, early).await,
            };
            if let Err(failed) = &tried {
                debug!(?failed, path = self.path, "an attempt to open a stream failed");
            }
            tried
        });
        opened.await.map_err(|error| OpenError::give_up(error, waited))
    }

    /// Asks on an idle leg. `None` if there is none, or if it ended without an answer: only a new leg tells more then.
    async fn on_idle_leg<S: AsyncRead + Unpin + ?Sized>(
        &self,
        early: &EarlyBytes<'_, S>,
    ) -> Option<Result<Stream, AttemptError<OpenError>>> {
        let Reuse { ask, pool, was_tried } = self.reuse.as_ref()?;
        if was_tried.swap(true, Ordering::Relaxed) {
            return None;
        }
        let leg = pool.take(self.bearer.as_ref())?.ask(ask.clone());
        match self.opened(leg, early).await {
            Err(AttemptError::Lost(OpenError::Ended(end)) | AttemptError::Final(OpenError::Ended(end))) if is_replaceable(&end) => {
                debug!(%end, path = self.path, "an idle leg ended without an answer: a new one takes its place");
                None
            }
            answered => Some(answered),
        }
    }

    async fn on_new_leg<S: AsyncRead + Unpin + ?Sized>(
        &self,
        deadline: Instant,
        early: &EarlyBytes<'_, S>,
    ) -> Result<Stream, AttemptError<OpenError>> {
        let dial_deadline = deadline.min(Instant::now() + DIAL_TIMEOUT);
        let leg = self.dialer.leg(&self.path, &self.headers, self.bearer.as_ref(), dial_deadline).await;
        self.opened(leg.map_err(request_error)?, early).await
    }

    async fn opened<S: AsyncRead + Unpin + ?Sized>(
        &self,
        mut leg: Leg,
        early: &EarlyBytes<'_, S>,
    ) -> Result<Stream, AttemptError<OpenError>> {
        match early.opened(&mut leg).await {
            Ok((opened, early)) if matches!(opened.peer, Peer::Device { .. }) => Ok(self.stream(leg, opened, early)),
            Ok(_) => Err(AttemptError::Final(OpenError::Answer("the peer in `opened` is not a device".to_owned()))),
            Err(NotOpened::Source(error)) => Err(AttemptError::Final(OpenError::Source(error))),
            Err(NotOpened::Leg(leg::OpenError::Refused(problem))) => {
                let later = problem_retry_after(&problem).filter(|_| self.reuse.is_some());
                if let Some(Reuse { pool, .. }) = &self.reuse {
                    pool.reclaim(self.bearer.clone(), leg);
                }
                let error = OpenError::Refused(problem);
                Err(match later {
                    Some(after) => AttemptError::Later { error, after },
                    None => AttemptError::Final(error),
                })
            }
            Err(NotOpened::Leg(leg::OpenError::Ended(end))) if is_recoverable(&end) => Err(AttemptError::Lost(OpenError::Ended(end))),
            Err(NotOpened::Leg(leg::OpenError::Ended(end))) => Err(AttemptError::Final(OpenError::Ended(end))),
        }
    }

    fn stream(&self, leg: Leg, opened: Box<Opened>, early_bytes: u64) -> Stream {
        let stream = Stream::new(leg, opened, early_bytes);
        match &self.reuse {
            Some(Reuse { pool, .. }) => stream.with_pool(pool, self.bearer.clone()),
            None => stream,
        }
    }
}
