//! Changes of the registry together with their enforcement. Each is one task: a request whose client goes away never leaves half of it done.
//!
//! The order is always the same: make the change durable, raise the [revision](crate::core::Revision), end what no longer stands.

use std::sync::Arc;

use moorline_proto::causes::Causes;
use moorline_proto::id::DeviceId;
use moorline_proto::proof::{PublicKey, Thumbprint};
use tokio::sync::oneshot;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::access::permit::AdminPermit;
use crate::access::revocation::Revocation;
use crate::core::Core;
use crate::limits::RECHECK_INTERVAL;
use crate::store::{Put, StoreError};

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The permit is for something else.
    #[error("the permit does not allow changing a device")]
    NotPermitted,
    /// The registry did not take it.
    #[error("the registry did not take the change")]
    Store(#[from] StoreError),
    /// The relay stopped meanwhile.
    #[error("the relay stopped while the change was made: look whether it was")]
    Interrupted,
}

/// Registers a device with these keys, or replaces the keys that it has. Channels and streams that stand on a key which is gone end with 4006.
///
/// # Errors
/// [`ChangeError`].
///
/// # Cancel safety
/// The change and its enforcement go on without the caller.
pub async fn put(core: &Arc<Core>, permit: AdminPermit, keys: Vec<PublicKey>) -> Result<Put, ChangeError> {
    let core_of_task = Arc::clone(core);
    in_task(core, async move {
        let (device, revocation) = scope(&permit)?;
        let put = core_of_task.registry.put_device(&device, &keys, core_of_task.clock.now()).await?;
        let kept: Vec<Thumbprint> = keys.iter().map(PublicKey::thumbprint).collect();
        let streams = enforce(&core_of_task, &device, &kept, revocation);
        info!(%device, by = %permit.basis().caller, token_id = permit.basis().token_id.as_deref(), ?put, streams, "device registered");
        Ok(put)
    })
    .await
}

/// Removes a device. Its channel and its streams end with 4006. Answers whether there was one.
///
/// # Errors
/// [`ChangeError`].
///
/// # Cancel safety
/// The change and its enforcement go on without the caller.
pub async fn remove(core: &Arc<Core>, permit: AdminPermit) -> Result<bool, ChangeError> {
    let core_of_task = Arc::clone(core);
    in_task(core, async move {
        let (device, revocation) = scope(&permit)?;
        let removed = core_of_task.registry.remove_device(&device).await?;
        let streams = enforce(&core_of_task, &device, &[], revocation);
        info!(%device, by = %permit.basis().caller, token_id = permit.basis().token_id.as_deref(), removed, streams, "device removed");
        Ok(removed)
    })
    .await
}

fn scope(permit: &AdminPermit) -> Result<(DeviceId, Revocation), ChangeError> {
    permit.device().cloned().zip(Revocation::by(permit)).ok_or(ChangeError::NotPermitted)
}

/// Ends everything that was authenticated with a key of the device that is not kept. Returns the number of streams.
fn enforce(core: &Core, device: &DeviceId, kept: &[Thumbprint], revocation: Revocation) -> usize {
    core.revision.raise();
    // Streams first, so that those that wait for the device's answer are refused with the reason.
    let streams = core.streams.revoke_device(device, kept, revocation);
    core.directory.revoke(device, revocation, |handle| !kept.contains(&handle.about().principal.key_id));
    streams
}

async fn in_task<T: Send + 'static>(
    core: &Core,
    change: impl Future<Output = Result<T, ChangeError>> + Send + 'static,
) -> Result<T, ChangeError> {
    let (sender, done) = oneshot::channel();
    core.tasks.spawn("change", async move {
        let result = change.await;
        // Whoever asked may have gone.
        drop(sender.send(result));
    });
    done.await.map_err(|_| ChangeError::Interrupted)?
}

/// Looks up the registration of every connected device, now and then, until the relay closes.
pub async fn recheck(core: Arc<Core>) {
    loop {
        tokio::select! {
            () = sleep(RECHECK_INTERVAL) => {}
            () = core.lifecycle.closing() => return,
        }
        if let Err(error) = recheck_once(&core).await {
            warn!(error = %Causes(&error), "the registrations of connected devices could not be looked up");
        }
    }
}

/// Ends every channel whose device, or key, is not registered any more, with the streams that stand on it.
async fn recheck_once(core: &Core) -> Result<(), StoreError> {
    for handle in core.directory.connected() {
        let principal = &handle.about().principal;
        let record = core.registry.device(&principal.device).await?;
        if let Some(revocation) = Revocation::of(principal, record.as_ref()) {
            let kept: Vec<Thumbprint> = record.iter().flat_map(|record| &record.keys).map(|key| key.kid).collect();
            core.streams.revoke_device(&principal.device, &kept, revocation);
            handle.revoke(revocation);
            info!(device = %principal.device, session = handle.about().session, "the device's registration is gone");
        }
    }
    Ok(())
}
