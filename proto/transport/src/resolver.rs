//! The system's resolver, with a bounded number of calls at once.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// Calls of the system's resolver at once. Each blocks a thread, and cannot be cancelled with the dial that it is made for: without a bound,
/// dials that are cancelled at once would pile up such calls. Beyond: dials wait, within their own deadline.
const MAX_CALLS: usize = 16;

/// Resolves names. Clones share the bound.
#[derive(Clone, Debug)]
pub(crate) struct Resolver(Arc<Semaphore>);

impl Default for Resolver {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_CALLS)))
    }
}

impl Resolver {
    /// Returns the addresses of a host in the system's order, which RFC 6724 defines.
    ///
    /// # Errors
    /// The system's.
    ///
    /// # Cancel safety
    /// A call that has begun goes on in its thread, and counts until it returns.
    pub(crate) async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let host = host.to_owned();
        self.call(move || (host.as_str(), port).to_socket_addrs().map(Iterator::collect)).await
    }

    async fn call<T: Send + 'static>(&self, call: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let permit = Arc::clone(&self.0).acquire_owned().await.map_err(io::Error::other)?;
        let called = spawn_blocking(move || {
            let _permit = permit;
            call()
        });
        called.await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn calls_of_the_resolver_that_nobody_waits_for_still_count() {
        let resolver = Resolver::default();
        let mut stuck = Vec::new();
        for _ in 0..MAX_CALLS {
            let (release, released) = std::sync::mpsc::sync_channel::<()>(1);
            let (begun, begins) = tokio::sync::oneshot::channel();
            let call = resolver.call(move || {
                begun.send(()).ok();
                released.recv().ok();
                Ok(())
            });
            tokio::select! {
                biased;
                _ = call => panic!("it hangs"),
                begins = begins => begins.unwrap(),
            }
            stuck.push(release);
        }
        assert_eq!(resolver.0.available_permits(), 0, "the dials are gone, their calls are not");
        drop(stuck);
        resolver.resolve("localhost", 1).await.unwrap();
        assert_eq!(resolver.resolve("::1", 22).await.unwrap(), ["[::1]:22".parse().unwrap()]);
    }
}
