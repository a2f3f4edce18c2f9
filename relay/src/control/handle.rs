//! A way to reach one connected device: cheap to clone, never waits. The session is at the other end of it.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use moorline_proto::bounds::INFO_CHARS;
use moorline_proto::control::{Cancel, Hello, Offer, Service};
use moorline_proto::id::{DeviceId, Instance, ServiceName};
use moorline_proto::proof::Thumbprint;
use moorline_proto::text::Text;
use moorline_proto::timestamp::Timestamp;
use tokio::sync::{Notify, oneshot, watch};

/// Orders that wait for a device that is not keeping up: an offer and its cancel for each of as many streams as one device may have, since all
/// may come in one moment. What is left of them when the device falls silent is found by its deadlines.
const ORDERS: usize = 1_024;

/// What a session is told to do.
#[derive(Debug)]
pub enum Command {
    /// Ask the device; `heard` is told of the first frame after that.
    Offer {
        /// The message.
        offer: Box<Offer>,
        /// Fires with the device's next frame, of any kind.
        heard: oneshot::Sender<()>,
    },
    /// Take an offer back.
    Cancel(Cancel),
}

/// What ends a session from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DisconnectCommand {
    /// A newer control channel of the same device took over.
    Superseded {
        /// The newer one's.
        by: Instance,
    },
    /// The device was taken from the registry, or lost its leave.
    Revoked,
}

/// How a control channel came to its end, as those see it who wait for the device's answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChannelClosed {
    /// Lost, closed, dead.
    Lost,
    /// A newer control channel took over.
    Superseded {
        /// The newer one's.
        by: Instance,
    },
}

/// Why an order was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The device is not keeping up.
    #[error("too many orders wait for the device")]
    Busy,
    /// It has left.
    #[error("the control channel has ended")]
    ChannelClosed,
}

/// A way to reach one connected device. Clones reach the same one.
#[derive(Clone, Debug)]
pub struct DeviceHandle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    about: About,
    services: Mutex<Arc<[Service]>>,
    queue: Mutex<Queue>,
    wake: Notify,
    gone: watch::Sender<Option<ChannelClosed>>,
}

#[derive(Debug, Default)]
struct Queue {
    orders: VecDeque<Command>,
    parting: Option<DisconnectCommand>,
}

/// What is known of a connected device, besides its services.
#[derive(Debug)]
pub struct About {
    /// Names this control channel in logs.
    pub session: String,
    /// The device.
    pub device: DeviceId,
    /// The start of the agent that this is.
    pub instance: Instance,
    /// The key that it proved to have.
    pub kid: Thumbprint,
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
    /// From what a device said in its `hello`.
    pub fn new(session: String, hello: &Hello, kid: Thumbprint, address: IpAddr, since: Timestamp) -> Self {
        Self {
            session,
            device: hello.device.clone(),
            instance: hello.instance.clone(),
            kid,
            address,
            since,
            agent: hello.agent.clone(),
            hostname: hello.hostname.clone(),
            os: hello.os.clone(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DeviceHandle {
    /// A handle whose session is about to begin.
    pub fn new(about: About, services: Vec<Service>) -> Self {
        Self(Arc::new(Shared {
            about,
            services: Mutex::new(services.into()),
            queue: Mutex::default(),
            wake: Notify::new(),
            gone: watch::Sender::new(None),
        }))
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

    /// Hands an order to the session.
    ///
    /// # Errors
    /// [`SendError::Busy`] if the device is not keeping up, [`SendError::ChannelClosed`] if it has left.
    pub fn send(&self, order: Command) -> Result<(), SendError> {
        if self.0.gone.borrow().is_some() {
            return Err(SendError::ChannelClosed);
        }
        {
            let mut queue = lock(&self.0.queue);
            if queue.orders.len() >= ORDERS {
                return Err(SendError::Busy);
            }
            queue.orders.push_back(order);
        }
        self.0.wake.notify_one();
        Ok(())
    }

    /// Ends the session; whoever waits for the device knows at once, without waiting for the old connection.
    pub fn part(&self, parting: DisconnectCommand) {
        self.set_gone(match &parting {
            DisconnectCommand::Superseded { by } => ChannelClosed::Superseded { by: by.clone() },
            DisconnectCommand::Revoked => ChannelClosed::Lost,
        });
        lock(&self.0.queue).parting.get_or_insert(parting);
        self.0.wake.notify_one();
    }

    /// Says that the control channel has ended. What was said first stands.
    pub fn set_gone(&self, gone: ChannelClosed) {
        self.0.gone.send_if_modified(|was| {
            let first = was.is_none();
            was.get_or_insert(gone);
            first
        });
    }

    /// Whether the control channel lives.
    pub fn is_here(&self) -> bool {
        self.0.gone.borrow().is_none()
    }

    /// Waits until the control channel has ended. Cancel safe.
    pub async fn gone(&self) -> ChannelClosed {
        let mut gone = self.0.gone.subscribe();
        let ended = gone.wait_for(Option::is_some).await.ok().and_then(|gone| gone.clone());
        ended.unwrap_or(ChannelClosed::Lost)
    }

    pub(super) fn set_services(&self, services: Vec<Service>) {
        *lock(&self.0.services) = services.into();
    }

    /// The session's side: what to do next. Cancel safe.
    pub(super) async fn next(&self) -> Next {
        loop {
            let wake = self.0.wake.notified();
            {
                let mut queue = lock(&self.0.queue);
                if let Some(parting) = queue.parting.take() {
                    return Next::Part(parting);
                }
                if let Some(order) = queue.orders.pop_front() {
                    return Next::Obey(order);
                }
                // An idle device holds no queue.
                queue.orders.shrink_to_fit();
            }
            wake.await;
        }
    }
}

/// What a session does next.
#[derive(Debug)]
pub(super) enum Next {
    /// Carry out an order.
    Obey(Command),
    /// End.
    Part(DisconnectCommand),
}
