//! A relay, and the caller's token for it: what every request of a caller stands on.
//!
//! Does not own: what is asked (streams: [`mod@crate::open`]; devices: [`crate::devices`]).

use std::sync::Arc;

use moorline_proto::join::Join;
use moorline_proto::secret::Secret;
use moorline_transport::dial::{Dialer, TrustError};

use crate::profile::Profile;

/// Asks a relay for streams and about devices. Cheap to clone: clones share all of it.
///
/// Nothing is connected until something is asked; each question and each stream has a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) dialer: Dialer,
    pub(crate) token: Option<Secret>,
}

impl Client {
    /// A client for the relay of a join string. Without a token it can do nothing but [`Client::join`] what others negotiated.
    ///
    /// # Errors
    /// [`TrustError`]: the CA certificate in the join string is none, or this machine has no CA certificates of its own.
    pub fn new(join: &Join, token: Option<Secret>) -> Result<Self, TrustError> {
        Ok(Self::with_dialer(Dialer::new(join.url.clone(), join.ca.as_deref())?, token))
    }

    /// A client that reaches its relay by a dialer of the program's own making: over pipes within the process, say.
    pub fn with_dialer(dialer: Dialer, token: Option<Secret>) -> Self {
        Self { inner: Arc::new(Inner { dialer, token }) }
    }

    /// A client with what a profile says.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn from_profile(profile: Profile) -> Result<Self, TrustError> {
        Self::new(&profile.join, Some(profile.token))
    }
}
