//! Which offers get a place: whether the agent takes streams at all, and the limits of its configuration, of the relay and of the process.
//!
//! Does not own: the places themselves ([`crate::streams`]).

use std::sync::Arc;

use moorline_proto::control::{Attempt, RejectCode};
use moorline_proto::id::StreamId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::settings::Settings;
use crate::streams::{NotAdmitted, StreamGuard, Streams};

/// Decides whether an offer gets a place among the streams of an agent.
#[derive(Debug)]
pub(crate) struct Admission {
    pub(crate) streams: Streams,
    pub(crate) settings: watch::Receiver<Arc<Settings>>,
    /// Streams for which the process has file descriptors.
    pub(crate) streams_for_descriptors: u32,
    /// No more offers are accepted.
    pub(crate) retire: CancellationToken,
    /// The streams are reset.
    pub(crate) end_streams: CancellationToken,
}

/// The place of an offer, and later of its stream.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) guard: StreamGuard,
    /// Cancelled when the offer is cancelled or replaced, or when the agent stops.
    pub(crate) cancel: CancellationToken,
}

/// Why an offer gets no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It is rejected with this code and this detail.
    Reject(RejectCode, &'static str),
    /// A later attempt of the same stream is under way.
    Outdated,
}

impl Admission {
    /// Takes a place for an offer.
    ///
    /// # Errors
    /// [`Refused`].
    pub(crate) fn admit(&self, stream: StreamId, attempt: Attempt, relay_max_streams: u32) -> Result<Admitted, Refused> {
        if self.retire.is_cancelled() {
            return Err(Refused::Reject(RejectCode::Busy, "the device accepts no more streams"));
        }
        let wanted = self.settings.borrow().max_streams.min(relay_max_streams);
        let max_streams = usize::try_from(wanted.min(self.streams_for_descriptors)).unwrap_or(usize::MAX);
        let cancel = self.end_streams.child_token();
        let admitted = self.streams.admit(stream, attempt, max_streams, cancel.clone());
        let guard = admitted.map_err(|refused| match refused {
            NotAdmitted::Full if wanted > self.streams_for_descriptors => {
                Refused::Reject(RejectCode::Internal, "the device has no file descriptors left for another stream")
            }
            NotAdmitted::Full => Refused::Reject(RejectCode::Busy, "the device has as many streams as it may have"),
            NotAdmitted::Opened => Refused::Reject(RejectCode::Internal, "an earlier attempt reached the target"),
            NotAdmitted::Outdated => Refused::Outdated,
        })?;
        Ok(Admitted { guard, cancel })
    }
}
