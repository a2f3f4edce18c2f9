//! The agent: connects, holds the control channel, pauses, connects again. Owns every task that serves an offer, so that a stream
//! outlives the control channel on which it was offered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moorline_proto::causes::Causes;
use moorline_proto::close::CloseReason;
use moorline_proto::control::{Cancel, Offer, Reject, RejectCode};
use moorline_proto::id::{Instance, StreamId};
use moorline_proto::text::Text;
use moorline_transport::dial::{Dialer, TrustError};
use rand::RngExt;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::backoff::{Backoff, DisconnectCause, RetryReason};
use crate::control_sender::ControlSender;
use crate::offer::{Handler, OfferContext, serve_offer};
use crate::session::{ConnectError, Session, SessionEnd, SessionEvent};
use crate::settings::Settings;

/// An old channel that was not superseded by now is closed by the device, this long after the new one's `welcome`.
const OLD_SESSION_TIMEOUT: Duration = Duration::from_secs(10);

/// A device's agent.
#[derive(Clone)]
pub struct Agent(Arc<Inner>);

struct Inner {
    settings: Settings,
    instance: Instance,
    context: OfferContext,
    offers: ActiveOffers,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Agent({}, {:?})", self.0.settings.device, self.0.settings.join.url)
    }
}

/// The offers that are being carried out, by stream. Clones share them.
#[derive(Clone, Debug, Default)]
struct ActiveOffers(Arc<Mutex<HashMap<StreamId, CancellationToken>>>);

/// One offer's place; dropping it leaves the place.
struct OfferGuard(ActiveOffers, StreamId);

impl Drop for OfferGuard {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

impl Agent {
    /// An agent that asks `handler` about each offer. Nothing is dialled before [`Agent::run`].
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn new(settings: Settings, handler: impl Handler) -> Result<Self, TrustError> {
        let dialer = Dialer::new(settings.join.url.clone(), settings.join.ca.as_deref())?;
        Ok(Self::with_dialer(settings, handler, dialer))
    }

    /// The same over connections of another kind.
    pub fn with_dialer(settings: Settings, handler: impl Handler, dialer: Dialer) -> Self {
        let bits: [u8; 16] = rand::rng().random();
        let instance = data_encoding::HEXLOWER.encode(&bits).parse().expect("32 hex digits are an instance");
        let context = OfferContext {
            dialer,
            handler: Arc::new(handler),
            control: ControlSender::default(),
            trusted_suffix: settings.trusted_suffix.clone(),
        };
        Self(Arc::new(Inner {
            settings,
            instance,
            context,
            offers: ActiveOffers::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }))
    }

    /// Keeps the device online until `stop` resolves; then closes the control channel and ends the streams.
    pub async fn run(&self, stop: impl Future<Output = ()>) {
        let inner = &self.0;
        {
            let mut online = std::pin::pin!(inner.stay_connected());
            tokio::select! {
                () = stop => inner.stop.cancel(),
                () = &mut online => {}
            }
            // Says goodbye where a channel is up.
            timeout(Duration::from_secs(6), online).await.ok();
        }
        inner.tasks.close();
        timeout(Duration::from_secs(6), inner.tasks.wait()).await.ok();
    }
}

impl Inner {
    async fn stay_connected(&self) {
        let mut backoff = Backoff::default();
        while !self.stop.is_cancelled() {
            let connected = tokio::select! {
                connected = Session::connect(&self.context.dialer, &self.settings, &self.instance) => connected,
                () = self.stop.cancelled() => return,
            };
            let cause = match connected {
                Ok(session) => {
                    let (cause, lasted) = self.serve(session).await;
                    backoff.was_online(lasted);
                    cause
                }
                Err(error) => {
                    self.log_connect_error(&error);
                    error.disconnect_cause()
                }
            };
            self.wait_before_retry(&mut backoff, &cause).await;
        }
    }

    fn log_connect_error(&self, error: &ConnectError) {
        let relay = &self.settings.join.url;
        warn!(%relay, error = %Causes(error), "not connected");
    }

    async fn wait_before_retry(&self, backoff: &mut Backoff, cause: &DisconnectCause) {
        if self.stop.is_cancelled() {
            return;
        }
        let retry = backoff.next(cause, Instant::now(), &mut rand::rng());
        let (device, wait_s) = (&self.settings.device, retry.after.as_secs());
        match retry.reason {
            RetryReason::Transient => info!(wait_ms = retry.after.as_millis(), "dialling again"),
            RetryReason::NotAdmitted => {
                error!(%device, wait_s, "the relay does not admit this device: an operator must add it (moorline device add), or its key");
            }
            RetryReason::DuplicateIdentity => {
                error!(%device, wait_s, "duplicate_identity: another machine is online with this device's key")
            }
        }
        tokio::select! {
            () = sleep(retry.after) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Runs a session, and the ones that take its place without a gap, until the device is offline. Says why, and how long it was online.
    async fn serve(&self, mut session: Session) -> (DisconnectCause, Duration) {
        let since = session.online_since;
        self.on_connected(&session);
        loop {
            let after = match self.serve_until_go_away(&mut session).await {
                ServeOutcome::GoAway(after) => after,
                ServeOutcome::Ended(ended) => {
                    if let SessionEnd::ProtocolViolation(how) = &ended {
                        session.close(CloseReason::Protocol, how).await;
                    }
                    return (self.on_session_end(&ended), since.elapsed());
                }
                ServeOutcome::Stop => {
                    session.close(CloseReason::Finished, "").await;
                    return (DisconnectCause::Transient, since.elapsed());
                }
            };
            match self.migrate(&mut session, after).await {
                MigrateOutcome::Session(newer) => {
                    self.on_connected(&newer);
                    let older = std::mem::replace(&mut session, *newer);
                    self.tasks.spawn(retire_session(older));
                }
                MigrateOutcome::Ended(ended) => {
                    self.on_session_end(&ended);
                    // Lost while it was to go anyhow: dialled anew at once.
                    match Session::connect(&self.context.dialer, &self.settings, &self.instance).await {
                        Ok(newer) => {
                            self.on_connected(&newer);
                            session = newer;
                        }
                        Err(error) => {
                            self.log_connect_error(&error);
                            return (error.disconnect_cause(), since.elapsed());
                        }
                    }
                }
                MigrateOutcome::Stop => {
                    session.close(CloseReason::Finished, "").await;
                    return (DisconnectCause::Transient, since.elapsed());
                }
            }
        }
    }

    fn on_connected(&self, session: &Session) {
        self.context.control.attach(session.sender());
        info!(device = %self.settings.device, node = %session.welcome.node, session = %session.welcome.session, "online");
    }

    fn on_session_end(&self, ended: &SessionEnd) -> DisconnectCause {
        warn!(device = %self.settings.device, ?ended, "offline");
        ended.disconnect_cause(&self.instance)
    }

    async fn serve_until_go_away(&self, session: &mut Session) -> ServeOutcome {
        loop {
            let event = tokio::select! {
                event = session.next() => event,
                () = self.stop.cancelled() => return ServeOutcome::Stop,
            };
            match event {
                SessionEvent::Offer(offer) => self.on_offer(*offer, session.welcome.max_streams),
                SessionEvent::Cancel(cancel) => self.on_cancel(&cancel),
                SessionEvent::GoAway(after) => return ServeOutcome::GoAway(after),
                SessionEvent::Ended(ended) => return ServeOutcome::Ended(ended),
            }
        }
    }

    /// Dials anew first, while the old channel goes on; a dial that is refused leaves it as it is, and backs off.
    async fn migrate(&self, old: &mut Session, after: Duration) -> MigrateOutcome {
        info!(after_ms = after.as_millis(), "the node leaves: dialling anew");
        let dial = async {
            let mut backoff = Backoff::default();
            sleep(after).await;
            loop {
                match Session::connect(&self.context.dialer, &self.settings, &self.instance).await {
                    Ok(session) => return session,
                    Err(error) => {
                        self.log_connect_error(&error);
                        // Of its own: no source of randomness is held while it sleeps, so that an agent may be spawned.
                        let retry = backoff.next(&error.disconnect_cause(), Instant::now(), &mut rand::rng());
                        sleep(retry.after).await;
                    }
                }
            }
        };
        let mut dial = std::pin::pin!(Box::pin(dial));
        loop {
            let turn = tokio::select! {
                newer = &mut dial => return MigrateOutcome::Session(Box::new(newer)),
                turn = self.serve_until_go_away(old) => turn,
            };
            match turn {
                ServeOutcome::GoAway(_) => {}
                // Superseded by the very channel that is being opened: its welcome is on the way. Or the node is gone, as it said it would
                // be: the time that it named stands, so that a fleet does not come back as one.
                ServeOutcome::Ended(ended) if ended.is_superseded_by(&self.instance) || ended.is_drained() => {
                    return tokio::select! {
                        newer = &mut dial => MigrateOutcome::Session(Box::new(newer)),
                        () = self.stop.cancelled() => MigrateOutcome::Stop,
                    };
                }
                ServeOutcome::Ended(ended) => return MigrateOutcome::Ended(ended),
                ServeOutcome::Stop => return MigrateOutcome::Stop,
            }
        }
    }

    fn on_offer(&self, offer: Offer, max_streams: u32) {
        let cancel = self.stop.child_token();
        let stream = offer.stream;
        let guard = {
            let mut offers = self.offers.0.lock().unwrap_or_else(PoisonError::into_inner);
            if offers.len() < usize::try_from(max_streams).unwrap_or(usize::MAX) {
                offers.insert(stream, cancel.clone());
                Some(OfferGuard(self.offers.clone(), stream))
            } else {
                None
            }
        };
        let Some(guard) = guard else {
            let detail = Some(Text::truncated("the device has as many streams as it may"));
            // Not waited for here: this is who empties the queue of answers. The relay keeps to `max_streams`, so there are few of these.
            let control = self.context.control.clone();
            self.tasks
                .spawn(async move { control.send(Reject { stream, attempt: Default::default(), code: RejectCode::Busy, detail }).await });
            return;
        };
        let (context, stop) = (self.context.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            let _guard = guard;
            Box::pin(serve_offer(context, offer, cancel, stop)).await;
        });
    }

    fn on_cancel(&self, cancel: &Cancel) {
        let token = self.offers.0.lock().unwrap_or_else(PoisonError::into_inner).get(&cancel.stream).cloned();
        // Unknown streams are ignored: a cancel races with the answer.
        if let Some(token) = token {
            info!(stream = %cancel.stream, code = %cancel.code, "offer cancelled");
            token.cancel();
        }
    }
}

enum ServeOutcome {
    GoAway(Duration),
    Ended(SessionEnd),
    Stop,
}

enum MigrateOutcome {
    Session(Box<Session>),
    Ended(SessionEnd),
    Stop,
}

/// The old channel ends when the new one supersedes it, ten seconds later at the latest. What it still brings came too late.
async fn retire_session(mut old: Session) {
    let ended = async { while !matches!(old.next().await, SessionEvent::Ended(_)) {} };
    if timeout(OLD_SESSION_TIMEOUT, ended).await.is_err() {
        old.close(CloseReason::Finished, "").await;
    }
}
