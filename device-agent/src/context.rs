//! What the offers of one session share.

use std::sync::Arc;

use moorline_proto::join::ForeignUrl;
use moorline_transport::dial::Dialer;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::control_sender::ControlSender;
use crate::handler::Handler;
use crate::idle_legs::IdleLegs;

/// What the task of an offer uses.
pub(crate) struct OfferContext {
    /// Dials legs, which ask to be used again where the relay knows that.
    pub(crate) dialer: Dialer,
    pub(crate) handler: Arc<dyn Handler>,
    pub(crate) control: ControlSender,
    pub(crate) admission: Arc<Admission>,
    /// The relay's limit of streams.
    pub(crate) max_streams: u32,
    pub(crate) legs: IdleLegs,
    /// The streams are reset.
    pub(crate) end_streams: CancellationToken,
}

/// The address of a leg.
pub(crate) struct LegEndpoint {
    pub(crate) dialer: Dialer,
    pub(crate) path: String,
}

impl OfferContext {
    /// The address of a leg.
    ///
    /// # Errors
    /// It is not the relay's own.
    pub(crate) fn endpoint(&self, url: &str) -> Result<LegEndpoint, ForeignUrl> {
        let trusted_suffix = self.admission.settings.borrow().trusted_suffix.clone();
        let (url, path) = self.dialer.url().resolve(url, trusted_suffix.as_deref())?;
        Ok(LegEndpoint { dialer: self.dialer.at(url), path })
    }
}
