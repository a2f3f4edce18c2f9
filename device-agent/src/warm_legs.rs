//! Keeps as many idle legs of a session ready as the configuration says, whatever has become of those before.

use std::error::Error;
use std::sync::Arc;

use http::HeaderMap;
use moorline_proto::control::Warm;
use moorline_transport::backoff::{Backoff, Pauses};
use moorline_transport::leg::IdleLeg;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::context::{LegEndpoint, OfferContext};
use crate::idle_legs::Counts;
use crate::leg_offer::keep_leg_at;
use crate::limits::CONNECT_TIMEOUT;
use crate::request::loggable;

/// Opens idle legs wherever fewer than `wanted` are there, for as long as the session keeps idle legs. Pauses after each failure, and where legs
/// end for nothing.
pub(crate) async fn keep_ready(context: Arc<OfferContext>, warm: Warm, wanted: u32, tasks: TaskTracker) {
    let endpoint = match context.endpoint(warm.url.as_str()) {
        Ok(endpoint) => endpoint,
        Err(error) => return warn!(error = loggable(&error), "no legs are kept ready: their address is foreign"),
    };
    let (mut counts, mut seen) = (context.legs.counts(), Counts::default());
    let mut backoff = Backoff::new(Pauses::CHANNEL);
    loop {
        let Ok(now) = counts.wait_for(|counts| counts.idle < wanted).await.map(|counts| *counts) else { return };
        if now.useful != seen.useful {
            backoff.reset();
        }
        if now.short_lived != seen.short_lived {
            pause(&mut backoff).await;
        }
        seen = now;
        match open(&endpoint, &warm).await {
            Ok(idle) => match context.legs.place() {
                Some(place) => drop(tasks.spawn(keep_leg_at(Arc::clone(&context), idle, place))),
                None => idle.close().await, // others came back meanwhile
            },
            Err(error) => {
                debug!(error = loggable(&*error), "no leg was opened to be kept ready");
                pause(&mut backoff).await;
            }
        }
    }
}

async fn pause(backoff: &mut Backoff) {
    // In a statement of its own: the source of randomness must not be held across an await.
    let pause = backoff.pause(&mut rand::rng());
    sleep(pause).await;
}

/// Opens one idle leg.
async fn open(endpoint: &LegEndpoint, warm: &Warm) -> Result<IdleLeg, Box<dyn Error + Send + Sync>> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    let leg = endpoint.dialer.leg(&endpoint.path, &HeaderMap::new(), Some(&warm.token), deadline).await?;
    Ok(timeout_at(deadline, leg.idle()).await??)
}
