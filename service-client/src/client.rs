//! A relay and the caller's token for it: the base of every request.
//!
//! Does not own: the requests themselves (streams: [`mod@crate::open`]; devices: [`crate::devices`]).

use std::sync::Arc;

use moorline_proto::join::Join;
use moorline_proto::secret::Secret;
use moorline_transport::dial::{Dialer, TrustError};

use crate::profile::Profile;

/// Opens streams and manages devices through one relay. Cheap to clone: clones share everything.
///
/// Nothing is connected until the first request; each request and each stream has a connection of its own.
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
    /// A client for the relay of a join string. Without a token it can only [`Client::join`] streams that others negotiated.
    ///
    /// # Errors
    /// [`TrustError`]: the CA in the join string is not a certificate, or this machine has no CA certificates.
    pub fn new(join: &Join, token: Option<Secret>) -> Result<Self, TrustError> {
        Ok(Self::with_dialer(Dialer::new(join.url.clone(), join.ca.as_deref())?, token))
    }

    /// A client that dials with a given dialer, for example over in-process pipes.
    pub fn with_dialer(dialer: Dialer, token: Option<Secret>) -> Self {
        Self { inner: Arc::new(Inner { dialer, token }) }
    }

    /// A client with the relay and the token of a profile.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn from_profile(profile: Profile) -> Result<Self, TrustError> {
        Self::new(&profile.join, Some(profile.token))
    }
}
