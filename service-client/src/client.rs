//! A relay and the caller's token for it: the base of every request.
//!
//! Does not own: the requests themselves (streams: [`mod@crate::open`]; devices: [`crate::devices`]).

use std::error::Error;
use std::sync::Arc;

use moorline_proto::join::Join;
use moorline_proto::secret::Secret;
use moorline_transport::dial::{Dialer, TrustError};

use crate::caller_token::CallerToken;
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
    pub(crate) token: CallerToken,
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
        Self { inner: Arc::new(Inner { dialer, token: CallerToken::new(token) }) }
    }

    /// The same client, for a program that lives longer than its token. When the relay refuses the token as expired, `source` is called, and the
    /// request is sent once more with the token that it returns, if that is another one. A second refusal is reported.
    ///
    /// Open streams and requests that are under way keep the token that they have. Clones of the returned client share the renewed token.
    /// `source` is called on a thread where it may block. Its error is logged and must not quote the token; the refusal is then reported.
    ///
    /// ```no_run
    /// # use moorline::{Client, Profile};
    /// # fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let profile = Profile::load("profile.toml".as_ref())?;
    /// let client = Client::from_profile(profile)?.with_token_source(|| Ok(Profile::load("profile.toml".as_ref())?.token));
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_token_source(self, source: impl Fn() -> Result<Secret, Box<dyn Error + Send + Sync>> + Send + Sync + 'static) -> Self {
        let Inner { dialer, token } = &*self.inner;
        Self { inner: Arc::new(Inner { dialer: dialer.clone(), token: token.with_source(Arc::new(source)) }) }
    }

    /// A client with the relay and the token of a profile.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn from_profile(profile: Profile) -> Result<Self, TrustError> {
        Self::new(&profile.join, Some(profile.token))
    }
}
