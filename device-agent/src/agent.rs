//! The agent: connects, serves the control channel, waits, reconnects. It owns the tasks of all streams, so that a stream outlives the
//! control channel on which it was offered.
//!
//! Two signals end an agent's work. `retire`: it accepts no more offers and does not connect any more, but keeps its streams.
//! `end_streams`: its streams are reset.

use std::sync::Arc;
use std::time::Duration;

use moorline_proto::bounds::IDLE_LEGS;
use moorline_proto::causes::Causes;
use moorline_proto::close::CloseReason;
use moorline_proto::control::{Cancel, Offer, Reject, RejectCode};
use moorline_proto::id::Instance;
use moorline_proto::names::REUSE;
use moorline_proto::text::{Text, printable};
use moorline_transport::dial::{Dialer, TrustError};
use rand::RngExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use crate::admission::{Admission, Admitted, Refused};
use crate::context::OfferContext;
use crate::control_sender::ControlSender;
use crate::handle::AgentHandle;
use crate::handler::Handler;
use crate::idle_legs::IdleLegs;
use crate::limits::{PEER_TEXT_CHARS, RETIRED_SESSION_TIMEOUT, STOP_TIMEOUT, streams_for_descriptors};
use crate::offer::serve_offer;
use crate::reconnect::{DisconnectCause, Reconnection, RetryReason};
use crate::session::{ConnectError, Session, SessionEnd, SessionEvent};
use crate::settings::Settings;
use crate::streams::Streams;
use crate::warm_legs::keep_ready;

/// A device's agent.
pub struct Agent(Arc<Inner>);

pub(crate) struct Inner {
    dialer: Dialer,
    handler: Arc<dyn Handler>,
    instance: Instance,
    pub(crate) settings: watch::Sender<Arc<Settings>>,
    pub(crate) control: ControlSender,
    admission: Arc<Admission>,
    pub(crate) tasks: TaskTracker,
    pub(crate) retire: CancellationToken,
    end_streams: CancellationToken,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.describe("Agent", f)
    }
}

impl Agent {
    /// An agent that asks `handler` about each offer. It does not connect before [`Agent::run`].
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn new(settings: Settings, handler: impl Handler) -> Result<Self, TrustError> {
        let dialer = Dialer::new(settings.join.url.clone(), settings.join.ca.as_deref())?;
        Ok(Self::with_dialer(settings, handler, dialer))
    }

    /// The same with connections of another kind.
    pub fn with_dialer(settings: Settings, handler: impl Handler, dialer: Dialer) -> Self {
        let bits: [u8; 16] = rand::rng().random();
        let instance = data_encoding::HEXLOWER.encode(&bits).parse().expect("32 hex digits are an instance");
        let descriptors = rlimit::Resource::NOFILE.get_soft().unwrap_or(u64::MAX);
        let streams_for_descriptors = streams_for_descriptors(descriptors, settings.warm_legs);
        let settings = watch::Sender::new(Arc::new(settings));
        let (retire, end_streams) = (CancellationToken::new(), CancellationToken::new());
        let admission = Admission {
            streams: Streams::default(),
            settings: settings.subscribe(),
            streams_for_descriptors,
            retire: retire.clone(),
            end_streams: end_streams.clone(),
        };
        Self(Arc::new(Inner {
            dialer,
            handler: Arc::new(handler),
            instance,
            settings,
            control: ControlSender::default(),
            admission: Arc::new(admission),
            tasks: TaskTracker::new(),
            retire,
            end_streams,
        }))
    }

    /// A handle by which the agent is changed while it runs.
    pub fn handle(&self) -> AgentHandle {
        AgentHandle::new(Arc::clone(&self.0))
    }

    /// Keeps the device online until `stop` completes. Then closes the control channel and resets the streams, within 6 s.
    ///
    /// Also returns when the agent was retired and its last stream has ended. An agent runs once:
    ///
    /// ```compile_fail,E0382
    /// # async fn twice(agent: moorline_agent::Agent) {
    /// agent.run(std::future::pending()).await;
    /// agent.run(std::future::pending()).await;
    /// # }
    /// ```
    ///
    /// # Cancel safety
    /// Dropping the future ends the streams.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let inner = &self.0;
        let (max_streams, possible) = (inner.settings.borrow().max_streams, inner.admission.streams_for_descriptors);
        if possible < max_streams {
            warn!(
                max_streams,
                possible, "fewer file descriptors than max_streams needs: raise the limit (LimitNOFILE=), or lower max_streams"
            );
        }
        let _ended_on_drop = (inner.retire.clone().drop_guard(), inner.end_streams.clone().drop_guard());
        let work = async {
            inner.stay_connected().await;
            inner.tasks.close();
            inner.tasks.wait().await;
        };
        let mut work = std::pin::pin!(work);
        tokio::select! {
            () = &mut work => return,
            () = stop => {}
        }
        inner.retire.cancel();
        inner.end_streams.cancel();
        if timeout(STOP_TIMEOUT, work).await.is_err() {
            warn!("the relay does not answer: stopping without its Close");
        }
    }
}

/// A session, and what its offers share.
struct Online {
    session: Session,
    context: Arc<OfferContext>,
    /// Ends the session's idle legs, and the offers on them that are undecided.
    legs: DropGuard,
}

/// How serving a session ended.
enum Served {
    GoAway(Duration),
    Ended(SessionEnd),
    Retired,
}

/// How the change from an old session to a new one ended.
enum Migrated {
    To(Box<Session>),
    Ended(SessionEnd),
    Retired,
}

impl Inner {
    pub(crate) fn describe(&self, name: &str, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{name}({}, {})", self.settings.borrow().device, self.dialer.url())
    }

    /// Connects again and again, until the agent is retired.
    async fn stay_connected(self: &Arc<Self>) {
        let mut reconnection = Reconnection::default();
        while let Some(connected) = self.retire.run_until_cancelled(self.connect()).await {
            let cause = match connected {
                Ok(session) => {
                    let Some(cause) = self.serve(session, &mut reconnection).await else { return };
                    cause
                }
                Err(error) => error.disconnect_cause(),
            };
            let delay = self.delay(&mut reconnection, &cause);
            if self.retire.run_until_cancelled(sleep(delay)).await.is_none() {
                return;
            }
        }
    }

    async fn connect(&self) -> Result<Session, ConnectError> {
        let connected = Box::pin(Session::connect(&self.dialer, self.settings.subscribe(), &self.instance)).await;
        if let Err(error) = &connected {
            let (relay, next) = (self.dialer.url(), error.advice());
            warn!(%relay, error = printable(&Causes(error).to_string(), PEER_TEXT_CHARS), next, "connecting failed");
        }
        connected
    }

    fn delay(&self, reconnection: &mut Reconnection, cause: &DisconnectCause) -> Duration {
        let retry = reconnection.next(cause, Instant::now(), &mut rand::rng());
        let (device, wait_s) = (&self.settings.borrow().device, retry.after.as_secs());
        match retry.reason {
            RetryReason::Transient => info!(wait_ms = retry.after.as_millis(), "reconnecting after a delay"),
            RetryReason::NotAdmitted => {
                error!(%device, wait_s, "the relay does not admit this device: an operator must add it (moorline device add), or its key");
            }
            RetryReason::DuplicateIdentity => {
                error!(%device, wait_s, "duplicate_identity: another machine is online with this device's key");
            }
        }
        retry.after
    }

    /// Serves a session, and those that replace it without a gap, until the device is offline, and returns why. Returns nothing if the agent
    /// is retired.
    async fn serve(self: &Arc<Self>, session: Session, reconnection: &mut Reconnection) -> Option<DisconnectCause> {
        let mut online = self.on_connected(session);
        loop {
            let asked = match self.serve_until_go_away(&mut online).await {
                Served::GoAway(asked) => asked,
                Served::Ended(end) => {
                    let Online { session, legs, .. } = online;
                    drop(legs);
                    reconnection.was_online(session.online_since.elapsed());
                    if let SessionEnd::ProtocolViolation(detail) = &end {
                        session.close(CloseReason::Protocol, detail).await;
                    }
                    return Some(self.on_session_end(&end));
                }
                Served::Retired => {
                    self.retire_session(online).await;
                    return None;
                }
            };
            let newer = match self.migrate(&mut online, asked, reconnection).await {
                Migrated::To(newer) => *newer,
                Migrated::Ended(end) => return Some(self.on_session_end(&end)),
                Migrated::Retired => {
                    self.retire_session(online).await;
                    return None;
                }
            };
            let older = std::mem::replace(&mut online, self.on_connected(newer));
            let inner = Arc::clone(self);
            self.tasks.spawn(async move { inner.retire_session(older).await });
        }
    }

    fn on_connected(&self, session: Session) -> Online {
        self.control.attach(session.sender());
        info!(device = %self.settings.borrow().device, node = %session.welcome.node, session = %session.welcome.session, "online");
        let max = self.settings.borrow().idle_legs.min(IDLE_LEGS);
        let (idle_legs, legs) = IdleLegs::new(max);
        let is_reused = max > 0 && session.welcome.features.iter().any(|feature| feature.as_str() == REUSE);
        let context = Arc::new(OfferContext {
            dialer: if is_reused { self.dialer.with_reuse() } else { self.dialer.clone() },
            handler: Arc::clone(&self.handler),
            control: self.control.clone(),
            admission: Arc::clone(&self.admission),
            max_streams: session.welcome.max_streams,
            legs: idle_legs,
            end_streams: self.end_streams.clone(),
        });
        self.keep_legs_ready(&session, &context);
        Online { session, context, legs }
    }

    /// Starts to keep the session's `warm_legs` ready, if there are to be any and the relay says how.
    fn keep_legs_ready(&self, session: &Session, context: &Arc<OfferContext>) {
        let wanted = self.settings.borrow().warm_legs.min(context.legs.max());
        let Some(warm) = session.welcome.warm.clone().filter(|_| wanted > 0) else { return };
        let (context, tasks) = (Arc::clone(context), self.tasks.clone());
        self.tasks.spawn(async move {
            let legs = context.legs.clone();
            legs.while_kept(Box::pin(keep_ready(context, warm, wanted, tasks))).await;
        });
    }

    fn on_session_end(&self, end: &SessionEnd) -> DisconnectCause {
        warn!(device = %self.settings.borrow().device, reason = %end, "offline");
        end.disconnect_cause(&self.instance)
    }

    async fn serve_until_go_away(self: &Arc<Self>, online: &mut Online) -> Served {
        loop {
            let Some(event) = self.retire.run_until_cancelled(online.session.next()).await else { return Served::Retired };
            match event {
                SessionEvent::Offer(offer) => self.on_offer(offer, &online.context),
                SessionEvent::Cancel(cancel) => self.on_cancel(&cancel),
                SessionEvent::GoAway(after) => return Served::GoAway(after),
                SessionEvent::Ended(end) => return Served::Ended(end),
            }
        }
    }

    /// Opens a new session while the old one goes on. The old one is kept until the new one is open, however often that fails.
    async fn migrate(self: &Arc<Self>, old: &mut Online, asked: Duration, reconnection: &mut Reconnection) -> Migrated {
        let after = reconnection.after_go_away(asked, old.session.online_since.elapsed(), &mut rand::rng());
        info!(after_ms = after.as_millis(), "the relay node is leaving: connecting anew");
        let connect = async {
            sleep(after).await;
            loop {
                match self.connect().await {
                    Ok(session) => return session,
                    Err(error) => {
                        // In a statement of its own: the source of randomness must not be held across an await.
                        let retry = reconnection.next(&error.disconnect_cause(), Instant::now(), &mut rand::rng());
                        sleep(retry.after).await;
                    }
                }
            }
        };
        let mut connect = std::pin::pin!(Box::pin(connect));
        loop {
            let served = tokio::select! {
                newer = &mut connect => return Migrated::To(Box::new(newer)),
                served = self.serve_until_go_away(old) => served,
            };
            match served {
                Served::GoAway(_) => {}
                // Superseded by the session that is being opened, whose `welcome` is on its way; or closed by the leaving node. In both
                // cases the delay that the relay gave still holds, so that its devices do not all reconnect at once.
                Served::Ended(end) if end.is_superseded_by(&self.instance) || end.is_drained() => {
                    let newer = self.retire.run_until_cancelled(&mut connect).await;
                    return newer.map_or(Migrated::Retired, |newer| Migrated::To(Box::new(newer)));
                }
                Served::Ended(end) => return Migrated::Ended(end),
                Served::Retired => return Migrated::Retired,
            }
        }
    }

    /// Serves a session that brings no more streams until the relay closes it. Closes it when the streams are to end, after 10 s at the
    /// latest. Its idle legs are closed at once.
    async fn retire_session(self: &Arc<Self>, online: Online) {
        let Online { mut session, context, legs: _over_at_the_end } = online;
        context.legs.close();
        let until_end = async {
            loop {
                match session.next().await {
                    // Offers that cross with a newer session are repeated there.
                    SessionEvent::Offer(offer) if self.retire.is_cancelled() => self.on_offer(offer, &context),
                    SessionEvent::Offer(_) | SessionEvent::GoAway(_) => {}
                    SessionEvent::Cancel(cancel) => self.on_cancel(&cancel),
                    SessionEvent::Ended(_) => return,
                }
            }
        };
        let ended = self.end_streams.run_until_cancelled(timeout(RETIRED_SESSION_TIMEOUT, until_end)).await;
        if !matches!(ended, Some(Ok(()))) {
            session.close(CloseReason::Finished, "").await;
        }
    }

    fn on_offer(&self, offer: Box<Offer>, context: &Arc<OfferContext>) {
        match self.admission.admit(offer.stream, offer.attempt, context.max_streams) {
            Ok(admitted) => self.spawn_offer(offer, admitted, Arc::clone(context)),
            Err(Refused::Reject(code, detail)) => self.reject_excess(&offer, code, detail),
            Err(Refused::Outdated) => debug!(stream = %offer.stream, "offer ignored: a later attempt is under way"),
        }
    }

    fn spawn_offer(&self, offer: Box<Offer>, admitted: Admitted, context: Arc<OfferContext>) {
        self.tasks.spawn(async move { Box::pin(serve_offer(context, offer, admitted)).await });
    }

    fn reject_excess(&self, offer: &Offer, code: RejectCode, detail: &str) {
        debug!(stream = %offer.stream, %code, detail, "offer rejected");
        let Offer { stream, attempt, .. } = *offer;
        self.control.try_reject(Reject { stream, attempt, code, detail: Some(Text::truncated(detail)) });
    }

    fn on_cancel(&self, cancel: &Cancel) {
        // The offer may be unknown: a cancel crosses with the answer.
        if self.admission.streams.cancel(&cancel.stream) {
            info!(stream = %cancel.stream, code = %cancel.code, "offer cancelled");
        }
    }
}
