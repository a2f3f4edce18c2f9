//! Every task has a name, an owner and an end. This is the one place of the relay that may spawn.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::sync::lock;

/// All tasks of one relay. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    abort: CancellationToken,
    running: Arc<Mutex<BTreeMap<&'static str, Arc<AtomicUsize>>>>,
}

/// Tasks that had not ended when the time for it was over; they were aborted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tasks that did not end in time: {0:?}")]
pub struct Late(pub BTreeMap<&'static str, usize>);

/// Counts one running task under its name. Small: every task holds one for life.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(of_name: &Arc<AtomicUsize>) -> Self {
        of_name.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(of_name))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Tasks {
    /// Runs `work` until it ends. It ends by itself, so that it can still close its connection: see [`crate::lifecycle::Lifecycle`].
    pub fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let counted = Counted::new(lock(&self.running).entry(name).or_default());
        let abort = self.abort.clone();
        // Boxed: the futures around it would each hold a copy of its size for as long as it runs.
        let work = Box::pin(work);
        self.tracker.spawn(async move {
            abort.run_until_cancelled(work).await;
            drop(counted); // held where it came in: named before, it would be held twice
        });
    }

    /// How many tasks run now, by name. Names whose tasks have all ended are left out.
    pub fn running(&self) -> BTreeMap<&'static str, usize> {
        let running = lock(&self.running);
        running.iter().map(|(&name, count)| (name, count.load(Ordering::Relaxed))).filter(|&(_, count)| count > 0).collect()
    }

    /// Waits at most `grace` for every task to end, then aborts and names the late ones.
    ///
    /// # Errors
    /// [`Late`], if there were any.
    pub async fn finish(self, grace: Duration) -> Result<(), Late> {
        self.tracker.close();
        if timeout(grace, self.tracker.wait()).await.is_ok() {
            return Ok(());
        }
        let late = self.running();
        self.abort.cancel();
        self.tracker.wait().await;
        Err(Late(late))
    }
}
