//! A way to reach one connected device: cheap to clone, never waits. The session is at the other end of it.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use moorline_proto::bounds::INFO_CHARS;
use moorline_proto::control::{Cancel, Hello, Offer, Service};
use moorline_proto::id::{Instance, ServiceName};
use moorline_proto::text::Text;
use moorline_proto::timestamp::Timestamp;
use tokio::sync::{SetOnce, oneshot};

use crate::access::principal::DevicePrincipal;
use crate::access::revocation::Revocation;
use crate::control::idle::IdleLegs;
use crate::sync::lock;

/// A command to a session.
#[derive(Debug)]
pub enum Command {
    /// Offer a stream to the device.
    Offer {
        /// The message.
        offer: Box<Offer>,
        /// Fires with the device's next frame, of any kind.
        alive: oneshot::Sender<()>,
    },
    /// Take an offer back.
    Cancel(Cancel),
}

/// How a control channel ended, for those who wait for the device's answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChannelClosed {
    /// Lost, closed, or dead.
    Lost,
    /// The device, or the key that it proved to have, lost its registration.
    Revoked,
    /// A newer control channel took over.
    Superseded {
        /// The newer one's.
        by: Instance,
    },
}

/// Why a command was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The device is not keeping up.
    #[error("too many commands wait for the device")]
    Busy,
    /// Its channel has ended.
    #[error("the control channel has ended")]
    Closed,
}

/// A way to reach one connected device. Clones reach the same one.
#[derive(Clone, Debug)]
pub struct DeviceHandle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    about: About,
    services: Mutex<Arc<[Service]>>,
    commands: Mutex<VecDeque<Command>>,
    commands_max: usize,
    session: AtomicWaker,
    closed: SetOnce<ChannelClosed>,
    idle: IdleLegs,
}

/// What is known of a connected device, besides its services.
#[derive(Debug)]
pub struct About {
    /// Names this control channel in logs.
    pub session: Box<str>,
    /// Who it proved to be.
    pub principal: DevicePrincipal,
    /// Its network address.
    pub address: IpAddr,
    /// Since when.
    pub since: Timestamp,
    /// Program and version.
    pub agent: Text<INFO_CHARS>,
    /// What the machine calls itself.
    pub hostname: Option<Text<INFO_CHARS>>,
    /// Operating system.
    pub os: Option<Text<INFO_CHARS>>,
}

impl About {
    /// From the device's `hello`.
    pub fn new(session: String, hello: &Hello, principal: DevicePrincipal, address: IpAddr, since: Timestamp) -> Self {
        Self {
            session: session.into(),
            principal,
            address,
            since,
            agent: hello.agent.clone(),
            hostname: hello.hostname.clone(),
            os: hello.os.clone(),
        }
    }
}

impl DeviceHandle {
    /// A handle whose session is about to begin. Of `max_streams` streams each may have an offer and its cancel waiting here, since all may come
    /// in one moment; what is left of them when the device falls silent is found by its deadlines.
    pub fn new(about: About, services: Vec<Service>, max_streams: u32) -> Self {
        let max = usize::try_from(max_streams).unwrap_or(usize::MAX).saturating_mul(2);
        Self(Arc::new(Shared {
            about,
            services: Mutex::new(services.into()),
            commands: Mutex::default(),
            commands_max: max,
            session: AtomicWaker::new(),
            closed: SetOnce::new(),
            idle: IdleLegs::default(),
        }))
    }

    /// Its legs that belong to no stream.
    pub fn idle_legs(&self) -> &IdleLegs {
        &self.0.idle
    }

    /// What is known of the device.
    pub fn about(&self) -> &About {
        &self.0.about
    }

    /// What it exposes now.
    pub fn services(&self) -> Arc<[Service]> {
        Arc::clone(&lock(&self.0.services))
    }

    /// Whether it exposes the service.
    pub fn exposes(&self, service: &ServiceName) -> bool {
        self.services().iter().any(|exposed| exposed.name == *service)
    }

    /// Whether both are the same control channel.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Hands a command to the session.
    ///
    /// # Errors
    /// [`SendError::Busy`] if the device is not keeping up, [`SendError::Closed`] if its channel has ended.
    pub fn send(&self, command: Command) -> Result<(), SendError> {
        if !self.is_open() {
            return Err(SendError::Closed);
        }
        {
            let mut commands = lock(&self.0.commands);
            if commands.len() >= self.0.commands_max {
                return Err(SendError::Busy);
            }
            commands.push_back(command);
        }
        self.wake();
        Ok(())
    }

    /// Ends the session because its device, or the key of its proof, is not registered any more. Whoever waits for the device knows at once.
    pub fn revoke(&self, _revocation: Revocation) {
        self.set_closed(ChannelClosed::Revoked);
    }

    /// Ends the session because a newer one took over. Whoever waits for the device knows at once, without waiting for the old connection.
    pub fn supersede(&self, by: &Instance) {
        self.set_closed(ChannelClosed::Superseded { by: by.clone() });
    }

    /// Makes the session look at what has changed for it: a command, or the phase of the relay.
    pub fn wake(&self) {
        self.0.session.wake();
    }

    /// Records that the control channel has ended, and ends its session. The first cause is kept.
    pub fn set_closed(&self, closed: ChannelClosed) {
        if self.0.closed.set(closed).is_ok() {
            self.wake();
        }
    }

    /// Whether the control channel is open.
    pub fn is_open(&self) -> bool {
        self.0.closed.get().is_none()
    }

    /// How the control channel ended, if it has.
    pub fn end(&self) -> Option<ChannelClosed> {
        self.0.closed.get().cloned()
    }

    /// Waits until the control channel has ended. Cancel safe.
    pub async fn closed(&self) -> ChannelClosed {
        self.0.closed.wait().await.clone()
    }

    pub(super) fn set_services(&self, services: Vec<Service>) {
        *lock(&self.0.services) = services.into();
    }

    /// The session's side: what to do next; a command only if it takes one. For one task alone.
    pub(super) fn poll_next(&self, takes_commands: bool, cx: &mut Context<'_>) -> Poll<Next> {
        self.0.session.register(cx.waker());
        if let Some(closed) = self.end() {
            return Poll::Ready(Next::End(closed));
        }
        if !takes_commands {
            return Poll::Pending;
        }
        let mut commands = lock(&self.0.commands);
        match commands.pop_front() {
            Some(command) => Poll::Ready(Next::Command(command)),
            None => {
                commands.shrink_to_fit(); // an idle device holds no queue
                Poll::Pending
            }
        }
    }
}

/// What a session does next.
#[derive(Debug)]
pub(super) enum Next {
    /// Carry out a command.
    Command(Command),
    /// End: it was ended from outside.
    End(ChannelClosed),
}
