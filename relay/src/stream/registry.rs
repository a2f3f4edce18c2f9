//! Every stream from the moment it is asked for to its end record: listed, counted against the limits, cut.

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use dashmap::DashMap;
use moorline_proto::api::LiveStream;
use moorline_proto::close::CloseReason;
use moorline_proto::id::{CallerId, DeviceId, ServiceName, StreamId};
use moorline_proto::problem::Timeline;
use moorline_proto::timestamp::Timestamp;
use tokio::sync::watch;
use tracing::info;

use crate::limits::Limits;
use crate::splice::Traffic;

/// How far a stream has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its device is offline and waited for.
    Waiting,
    /// Its device was asked.
    Offered,
    /// Its device said yes.
    Accepted,
    /// Bytes flow.
    Opened,
}

impl State {
    /// The word in lists.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Offered => "offered",
            Self::Accepted => "accepted",
            Self::Opened => "opened",
        }
    }
}

/// What a stream is about; fixed from the start.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Its name.
    pub stream: StreamId,
    /// To which device.
    pub device: DeviceId,
    /// To which of its services.
    pub service: ServiceName,
    /// For whom.
    pub caller: CallerId,
    /// From which network address.
    pub address: IpAddr,
    /// Which rule allowed it.
    pub rule: String,
    /// When it was asked for.
    pub since: Timestamp,
}

/// All streams of this relay. Clones share them.
#[derive(Clone, Debug)]
pub struct Streams {
    live: Arc<DashMap<StreamId, Arc<Entry>>>,
    of_devices: Arc<DashMap<DeviceId, u32>>,
    streams: usize,
    per_device: u32,
}

#[derive(Debug)]
struct Entry {
    facts: Facts,
    state: Mutex<State>,
    traffic: Traffic,
    cut: watch::Sender<Option<CloseReason>>,
}

/// The relay or the device has as many streams as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooMany {
    /// The device's limit.
    #[error("the device has as many streams as it may")]
    OfDevice,
    /// The relay's limit.
    #[error("the relay has as many streams as it may")]
    OfRelay,
}

/// A stream's place in the list; dropping it takes the stream from the list.
#[must_use = "the stream is listed only while this is held"]
#[derive(Debug)]
pub struct Live {
    streams: Streams,
    entry: Arc<Entry>,
}

/// One of a device's places for streams, open and undecided; dropping it gives the place back.
#[must_use = "the place is taken only while this is held"]
#[derive(Debug)]
pub struct DevicePlace {
    of_devices: Arc<DashMap<DeviceId, u32>>,
    device: DeviceId,
}

impl Streams {
    /// As many as the limits say.
    pub fn new(limits: &Limits) -> Self {
        Self {
            live: Arc::default(),
            of_devices: Arc::default(),
            streams: limits.streams.get(),
            per_device: limits.streams_per_device.get(),
        }
    }

    /// Lists a stream.
    ///
    /// # Errors
    /// [`TooMany::OfRelay`].
    pub fn list(&self, facts: Facts) -> Result<Live, TooMany> {
        // Two at the same moment may both pass: the bound is on memory, not on a count that somebody pays for.
        if self.live.len() >= self.streams {
            return Err(TooMany::OfRelay);
        }
        let entry =
            Arc::new(Entry { facts, state: Mutex::new(State::Waiting), traffic: Traffic::default(), cut: watch::Sender::new(None) });
        self.live.insert(entry.facts.stream, Arc::clone(&entry));
        Ok(Live { streams: self.clone(), entry })
    }

    /// One of the device's places.
    ///
    /// # Errors
    /// [`TooMany::OfDevice`].
    pub fn place(&self, device: &DeviceId) -> Result<DevicePlace, TooMany> {
        let mut count = self.of_devices.entry(device.clone()).or_insert(0);
        if *count >= self.per_device {
            return Err(TooMany::OfDevice);
        }
        *count += 1;
        Ok(DevicePlace { of_devices: Arc::clone(&self.of_devices), device: device.clone() })
    }

    /// How many streams the device has, open and undecided.
    pub fn of_device(&self, device: &DeviceId) -> u32 {
        self.of_devices.get(device).map_or(0, |count| *count)
    }

    /// How many streams there are.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Every stream that `shown` lets through.
    pub fn all(&self, shown: impl Fn(&Facts) -> bool) -> Vec<LiveStream> {
        let entries: Vec<Arc<Entry>> = self.live.iter().map(|entry| Arc::clone(entry.value())).collect();
        entries.iter().filter(|entry| shown(&entry.facts)).map(|entry| entry.row()).collect()
    }

    /// What a stream is about, if it lives.
    pub fn facts(&self, stream: StreamId) -> Option<Facts> {
        self.live.get(&stream).map(|entry| entry.facts.clone())
    }

    /// Ends a stream with a reason; the first one stands. False if it is over.
    pub fn cut(&self, stream: StreamId, reason: CloseReason) -> bool {
        let entry = self.live.get(&stream).map(|entry| Arc::clone(entry.value()));
        entry.is_some_and(|entry| {
            entry.cut(reason);
            true
        })
    }

    /// Ends every stream of a device.
    pub fn cut_device(&self, device: &DeviceId, reason: CloseReason) {
        let entries: Vec<Arc<Entry>> = self.live.iter().map(|entry| Arc::clone(entry.value())).collect();
        entries.iter().filter(|entry| entry.facts.device == *device).for_each(|entry| entry.cut(reason));
    }
}

impl Entry {
    fn cut(&self, reason: CloseReason) {
        self.cut.send_if_modified(|was| was.is_none() && was.replace(reason).is_none());
    }

    fn row(&self) -> LiveStream {
        LiveStream {
            stream: self.facts.stream,
            device: self.facts.device.clone(),
            service: self.facts.service.clone(),
            caller: self.facts.caller.to_string(),
            state: self.state.lock().unwrap_or_else(PoisonError::into_inner).as_str().to_owned(),
            since: self.facts.since,
            to_device_bytes: self.traffic.to_device.load(Ordering::Relaxed),
            to_caller_bytes: self.traffic.to_caller.load(Ordering::Relaxed),
        }
    }
}

impl Live {
    /// What the stream is about.
    pub fn facts(&self) -> &Facts {
        &self.entry.facts
    }

    /// Bytes that went each way.
    pub fn traffic(&self) -> &Traffic {
        &self.entry.traffic
    }

    /// Waits until somebody ends the stream, and says with which reason. Cancel safe.
    pub async fn cut(&self) -> CloseReason {
        let mut cut = self.entry.cut.subscribe();
        match cut.wait_for(Option::is_some).await.ok().and_then(|reason| *reason) {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }

    /// The reason, if somebody has ended the stream already.
    pub fn was_cut(&self) -> Option<CloseReason> {
        *self.entry.cut.borrow()
    }

    /// It has come this far.
    pub fn is(&self, state: State) {
        *self.entry.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// The end record: one line for each stream, when it ends.
    pub fn record(&self, result: &str, timeline: &Timeline, lasted_ms: u64) {
        let Facts { stream, device, service, caller, address, rule, .. } = self.facts();
        let row = self.entry.row();
        let timeline = serde_json::to_string(timeline).unwrap_or_default();
        info!(
            %stream,
            %device,
            %service,
            %caller,
            %address,
            rule,
            result,
            to_device_bytes = row.to_device_bytes,
            to_caller_bytes = row.to_caller_bytes,
            lasted_ms,
            timeline,
            "stream ended"
        );
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.streams.live.remove(&self.entry.facts.stream);
    }
}

impl Drop for DevicePlace {
    fn drop(&mut self) {
        if let Some(mut count) = self.of_devices.get_mut(&self.device) {
            *count = count.saturating_sub(1);
        }
        self.of_devices.remove_if(&self.device, |_, count| *count == 0);
    }
}
