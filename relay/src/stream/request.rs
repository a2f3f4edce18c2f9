//! What a stream begins with: the request, in good form and permitted, and where its device is.

use moorline_proto::api::OpenStream;
use tokio::time::Instant;

use crate::access::permit::StreamPermit;
use crate::control::handle::DeviceHandle;
use crate::stream::slots::{DeviceSlot, WaitingSlot};

/// How a caller opens a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// Negotiates and joins in one request.
    Connect,
    /// Negotiates by `POST`; the leg comes with a token of its own.
    Negotiation,
}

/// A request for a stream, in good form and permitted.
#[derive(Debug)]
pub struct StreamRequest {
    /// What is asked for.
    pub open: OpenStream,
    /// The permission for it.
    pub permit: StreamPermit,
    /// The caller's name for this request.
    pub key: Option<String>,
    /// One request, or negotiation first.
    pub via: Via,
    /// When the request came.
    pub since: Instant,
}

/// Where a stream begins.
#[derive(Debug)]
pub(super) enum Start {
    /// The device is here, exposes the service, and has a slot.
    Offer(DeviceHandle, DeviceSlot),
    /// The device is offline and waited for.
    Wait(WaitingSlot),
}
