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

use crate::backoff::{Backoff, Because, Trouble};
use crate::offer::{Desk, Handler, carry_out};
use crate::session::{ConnectError, Ended, Event, Session};
use crate::settings::Settings;
use crate::voice::Voice;

/// An old channel that was not superseded by now is closed by the device, this long after the new one's `welcome`.
const OLD_CHANNEL: Duration = Duration::from_secs(10);

/// A device's agent.
#[derive(Clone)]
pub struct Agent(Arc<Inside>);

struct Inside {
    settings: Settings,
    instance: Instance,
    desk: Desk,
    offers: Offers,
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
struct Offers(Arc<Mutex<HashMap<StreamId, CancellationToken>>>);

/// One offer's place; dropping it leaves the place.
struct Place(Offers, StreamId);

impl Drop for Place {
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
        Ok(Self::over(settings, handler, dialer))
    }

    /// The same over connections of another kind.
    pub fn over(settings: Settings, handler: impl Handler, dialer: Dialer) -> Self {
        let bits: [u8; 16] = rand::rng().random();
        let instance = data_encoding::HEXLOWER.encode(&bits).parse().expect("32 hex digits are an instance");
        let desk = Desk { dialer, handler: Arc::new(handler), voice: Voice::default(), trusted_suffix: settings.trusted_suffix.clone() };
        Self(Arc::new(Inside {
            settings,
            instance,
            desk,
            offers: Offers::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }))
    }

    /// Keeps the device online until `stop` resolves; then closes the control channel and ends the streams.
    pub async fn run(&self, stop: impl Future<Output = ()>) {
        let inside = &self.0;
        {
            let mut online = std::pin::pin!(inside.stay_online());
            tokio::select! {
                () = stop => inside.stop.cancel(),
                () = &mut online => {}
            }
            // Says goodbye where a channel is up.
            timeout(Duration::from_secs(6), online).await.ok();
        }
        inside.tasks.close();
        timeout(Duration::from_secs(6), inside.tasks.wait()).await.ok();
    }
}

impl Inside {
    async fn stay_online(&self) {
        let mut backoff = Backoff::default();
        while !self.stop.is_cancelled() {
            let connected = tokio::select! {
                connected = Session::connect(&self.desk.dialer, &self.settings, &self.instance) => connected,
                () = self.stop.cancelled() => return,
            };
            let trouble = match connected {
                Ok(session) => {
                    let (trouble, lasted) = self.hold(session).await;
                    backoff.was_online(lasted);
                    trouble
                }
                Err(error) => {
                    self.not_connected(&error);
                    error.trouble()
                }
            };
            self.pause(&mut backoff, &trouble).await;
        }
    }

    fn not_connected(&self, error: &ConnectError) {
        let relay = &self.settings.join.url;
        warn!(%relay, error = %Causes(error), "not connected");
    }

    async fn pause(&self, backoff: &mut Backoff, trouble: &Trouble) {
        if self.stop.is_cancelled() {
            return;
        }
        let pause = backoff.pause(trouble, Instant::now(), &mut rand::rng());
        let (device, wait_s) = (&self.settings.device, pause.wait.as_secs());
        match pause.because {
            Because::Ordinary => info!(wait_ms = pause.wait.as_millis(), "dialling again"),
            Because::NotAdmitted => {
                error!(%device, wait_s, "the relay does not admit this device: an operator must add it (moorline device add), or its key");
            }
            Because::DuplicateIdentity => error!(%device, wait_s, "duplicate_identity: another machine is online with this device's key"),
        }
        tokio::select! {
            () = sleep(pause.wait) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Runs a session, and the ones that take its place without a gap, until the device is offline. Says why, and how long it was online.
    async fn hold(&self, mut session: Session) -> (Trouble, Duration) {
        let since = session.since;
        self.online(&session);
        loop {
            let after = match self.until_go_away(&mut session).await {
                Turn::GoAway(after) => after,
                Turn::Ended(ended) => {
                    if let Ended::Broke(how) = &ended {
                        session.close(CloseReason::Protocol, how).await;
                    }
                    return (self.ended(&ended), since.elapsed());
                }
                Turn::Stop => {
                    session.close(CloseReason::Finished, "").await;
                    return (Trouble::Passing, since.elapsed());
                }
            };
            match self.renew(&mut session, after).await {
                Renewed::Session(newer) => {
                    self.online(&newer);
                    let older = std::mem::replace(&mut session, *newer);
                    self.tasks.spawn(retire(older));
                }
                Renewed::Ended(ended) => {
                    self.ended(&ended);
                    // Lost while it was to go anyhow: dialled anew at once.
                    match Session::connect(&self.desk.dialer, &self.settings, &self.instance).await {
                        Ok(newer) => {
                            self.online(&newer);
                            session = newer;
                        }
                        Err(error) => {
                            self.not_connected(&error);
                            return (error.trouble(), since.elapsed());
                        }
                    }
                }
                Renewed::Stop => {
                    session.close(CloseReason::Finished, "").await;
                    return (Trouble::Passing, since.elapsed());
                }
            }
        }
    }

    fn online(&self, session: &Session) {
        self.desk.voice.is_now(session.voice());
        info!(device = %self.settings.device, node = %session.welcome.node, session = %session.welcome.session, "online");
    }

    fn ended(&self, ended: &Ended) -> Trouble {
        warn!(device = %self.settings.device, ?ended, "offline");
        ended.trouble(&self.instance)
    }

    async fn until_go_away(&self, session: &mut Session) -> Turn {
        loop {
            let event = tokio::select! {
                event = session.next() => event,
                () = self.stop.cancelled() => return Turn::Stop,
            };
            match event {
                Event::Offer(offer) => self.take(*offer, session.welcome.max_streams),
                Event::Cancel(cancel) => self.cancel(&cancel),
                Event::GoAway(after) => return Turn::GoAway(after),
                Event::Ended(ended) => return Turn::Ended(ended),
            }
        }
    }

    /// Dials anew first, while the old channel goes on; a dial that is refused leaves it as it is, and backs off.
    async fn renew(&self, old: &mut Session, after: Duration) -> Renewed {
        info!(after_ms = after.as_millis(), "the node leaves: dialling anew");
        let dial = async {
            let mut backoff = Backoff::default();
            sleep(after).await;
            loop {
                match Session::connect(&self.desk.dialer, &self.settings, &self.instance).await {
                    Ok(session) => return session,
                    Err(error) => {
                        self.not_connected(&error);
                        // Of its own: no source of randomness is held while it sleeps, so that an agent may be spawned.
                        let pause = backoff.pause(&error.trouble(), Instant::now(), &mut rand::rng());
                        sleep(pause.wait).await;
                    }
                }
            }
        };
        let mut dial = std::pin::pin!(Box::pin(dial));
        loop {
            let turn = tokio::select! {
                newer = &mut dial => return Renewed::Session(Box::new(newer)),
                turn = self.until_go_away(old) => turn,
            };
            match turn {
                Turn::GoAway(_) => {}
                // Superseded by the very channel that is being opened: its welcome is on the way. Or the node is gone, as it said it would
                // be: the time that it named stands, so that a fleet does not come back as one.
                Turn::Ended(ended) if ended.is_superseded_by(&self.instance) || ended.is_drained() => {
                    return tokio::select! {
                        newer = &mut dial => Renewed::Session(Box::new(newer)),
                        () = self.stop.cancelled() => Renewed::Stop,
                    };
                }
                Turn::Ended(ended) => return Renewed::Ended(ended),
                Turn::Stop => return Renewed::Stop,
            }
        }
    }

    fn take(&self, offer: Offer, most: u32) {
        let cancel = self.stop.child_token();
        let stream = offer.stream;
        let place = {
            let mut offers = self.offers.0.lock().unwrap_or_else(PoisonError::into_inner);
            if offers.len() < usize::try_from(most).unwrap_or(usize::MAX) {
                offers.insert(stream, cancel.clone());
                Some(Place(self.offers.clone(), stream))
            } else {
                None
            }
        };
        let Some(place) = place else {
            let detail = Some(Text::truncated("the device has as many streams as it may"));
            // Not waited for here: this is who empties the queue of answers. The relay keeps to `max_streams`, so there are few of these.
            let voice = self.desk.voice.clone();
            self.tasks
                .spawn(async move { voice.say(Reject { stream, attempt: Default::default(), code: RejectCode::Busy, detail }).await });
            return;
        };
        let (desk, stop) = (self.desk.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            let _place = place;
            Box::pin(carry_out(desk, offer, cancel, stop)).await;
        });
    }

    fn cancel(&self, cancel: &Cancel) {
        let token = self.offers.0.lock().unwrap_or_else(PoisonError::into_inner).get(&cancel.stream).cloned();
        // Unknown streams are ignored: a cancel races with the answer.
        if let Some(token) = token {
            info!(stream = %cancel.stream, code = %cancel.code, "offer cancelled");
            token.cancel();
        }
    }
}

enum Turn {
    GoAway(Duration),
    Ended(Ended),
    Stop,
}

enum Renewed {
    Session(Box<Session>),
    Ended(Ended),
    Stop,
}

/// The old channel ends when the new one supersedes it, ten seconds later at the latest. What it still brings came too late.
async fn retire(mut old: Session) {
    let ended = async { while !matches!(old.next().await, Event::Ended(_)) {} };
    if timeout(OLD_CHANNEL, ended).await.is_err() {
        old.close(CloseReason::Finished, "").await;
    }
}
