//! The caller's token as it is now, and where a renewed one comes from once the relay says that it has expired.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use moorline_proto::problem::{Problem, ProblemCode};
use moorline_proto::secret::Secret;
use tokio::sync::watch;
use tracing::{info, warn};

/// Reads the token again. May block on the disk.
type Source = Arc<dyn Fn() -> Result<Secret, Box<dyn Error + Send + Sync>> + Send + Sync>;

/// The token that requests carry. Replaced as a whole: a request has the old one or the new one.
pub(crate) struct CallerToken {
    current: watch::Sender<Option<Secret>>,
    source: Option<Source>,
}

impl CallerToken {
    pub(crate) fn new(token: Option<Secret>) -> Self {
        Self { current: watch::Sender::new(token), source: None }
    }

    /// The same token, which `source` renews.
    pub(crate) fn with_source(&self, source: Source) -> Self {
        Self { current: watch::Sender::new(self.current()), source: Some(source) }
    }

    /// The same token and source, for another client.
    pub(crate) fn again(&self) -> Self {
        Self { current: watch::Sender::new(self.current()), source: self.source.clone() }
    }

    fn current(&self) -> Option<Secret> {
        self.current.borrow().clone()
    }

    /// The tokens from now on.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<Secret>> {
        self.current.subscribe()
    }

    /// Sends a request with the present token. If the relay refuses that as expired, sends it once more with a renewed one, if there is one.
    ///
    /// # Cancel safety
    /// Dropping the future drops the current request.
    pub(crate) async fn send<T, E, F>(
        &self,
        problem: impl Fn(&E) -> Option<&Problem>,
        mut request: impl FnMut(Option<Secret>) -> F,
    ) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        let token = self.current();
        let refused = match request(token.clone()).await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let is_expired = problem(&refused).and_then(Problem::known_code) == Some(ProblemCode::TokenExpired);
        match if is_expired { self.renewed(token).await } else { None } {
            Some(renewed) => request(Some(renewed)).await,
            None => Err(refused),
        }
    }

    /// A token other than `old`: the present one if another request has renewed it meanwhile, or else what the source returns now.
    pub(crate) async fn renewed(&self, old: Option<Secret>) -> Option<Secret> {
        let current = self.current();
        if current != old {
            return current;
        }
        let source = Arc::clone(self.source.as_ref()?);
        // Other streams must not wait for the disk.
        let token = match tokio::task::spawn_blocking(move || source()).await {
            Ok(Ok(token)) => token,
            Ok(Err(error)) => {
                warn!(%error, "cannot read the token again");
                return None;
            }
            Err(error) => {
                warn!(%error, "reading the token again failed");
                return None;
            }
        };
        if Some(&token) == old.as_ref() {
            return None;
        }
        info!("the token was renewed");
        self.current.send_replace(Some(token.clone()));
        Some(token)
    }
}

impl fmt::Debug for CallerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallerToken").field("current", &self.current()).field("has_source", &self.source.is_some()).finish()
    }
}
