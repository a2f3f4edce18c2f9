//! A relay and the caller's token for it: the base of every request.
//!
//! Does not own: the requests themselves (streams: [`mod@crate::open`]; devices: [`crate::devices`]).

use std::error::Error;
use std::sync::Arc;

use moorline_proto::join::Join;
use moorline_proto::secret::Secret;
use moorline_transport::dial::{Dialer, TrustError};

use crate::caller_token::CallerToken;
use crate::pool::{MAX_IDLE_LEGS, Pool};
use crate::profile::Profile;

/// Opens streams and manages devices through one relay. Cheap to clone: clones share everything.
///
/// Nothing is connected until the first request. Each request and each stream has a connection of its own; but the connection of a stream that
/// ended in order carries a later one, if the relay grants that ([`Client::with_idle_legs`]).
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) dialer: Dialer,
    pub(crate) token: CallerToken,
    pub(crate) pool: Arc<Pool>,
}

impl Inner {
    fn new(dialer: Dialer, token: CallerToken, max_idle: usize) -> Self {
        let pool = Arc::new(Pool::new(token.watch(), max_idle));
        Self { dialer, token, pool }
    }
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
        Self { inner: Arc::new(Inner::new(dialer, CallerToken::new(token), MAX_IDLE_LEGS)) }
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
        let Inner { dialer, token, pool } = &*self.inner;
        Self { inner: Arc::new(Inner::new(dialer.clone(), token.with_source(Arc::new(source)), pool.max())) }
    }

    /// The same client, which keeps at most this many idle connections to the relay for later streams. Default, and most: 64. None, with zero,
    /// is for a program that opens one stream.
    ///
    /// They are those of streams that ended in order, and are kept for as long as the relay keeps them. They belong to one token: a renewed one
    /// closes them, and so does the end of the last clone of this client.
    pub fn with_idle_legs(self, max: usize) -> Self {
        let Inner { dialer, token, .. } = &*self.inner;
        Self { inner: Arc::new(Inner::new(dialer.clone(), token.again(), max)) }
    }

    /// A client with the relay and the token of a profile.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn from_profile(profile: Profile) -> Result<Self, TrustError> {
        Self::new(&profile.join, Some(profile.token))
    }
}
