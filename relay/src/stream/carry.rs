//! The rest of a stream once its outcome is decided: it is spliced or refused, its end record is logged, and its slots are released before its
//! legs are closed.

use std::sync::Arc;

use moorline_proto::bounds::CLOSE_TIMEOUT;
use moorline_proto::close::CloseReason;
use moorline_proto::control::{Accept, CallerInfo, Cancel, CancelCode};
use moorline_proto::id::Feature;
use moorline_proto::leg::{LegText, Opened as OpenedText, Peer};
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::control::handle::Command;
use crate::core::Core;
use crate::directory::Location;
use crate::limits::LAST_SEEN_TIMEOUT;
use crate::splice::{Farewell, Leg, Rules, Side, SpliceEnd, splice};
use crate::stream::actor::{Actor, Failed, Opened};
use crate::stream::handle::Event;
use crate::stream::idle_device;
use crate::stream::leg_close::{self, Kept};
use crate::stream::record::EndRecord;
use crate::stream::refusal::{Refusal, remembered};
use crate::stream::registry::Listing;
use crate::stream::request::Via;
use crate::stream::status::Status;

impl Actor {
    /// Sends `opened` and moves bytes until the stream is over. Returns the caller's leg, if it may be used again.
    pub(super) async fn carry(mut self: Box<Self>, opened: Opened) -> Option<Kept> {
        let Opened { slot, session, accepted_on_leg, accept, caller, device } = opened;
        let texts = self.begin(accept, accepted_on_leg);
        let (end, mut farewell) = self.splice(device, caller, texts).await;
        self.record(end.result());
        let Self { core, listing, key, slot: of_stream, .. } = *self;
        // The stream is over: only its legs are left to close, which holds no slot and can be cut short.
        drop((slot, of_stream, key));
        if let Some(leg) = farewell.take_reusable(Side::Device) {
            core.tasks.spawn("idle", idle_device::keep(Arc::clone(&core), session, leg));
        }
        let kept = farewell.take_reusable(Side::Caller);
        if !farewell.is_done() {
            listing.publish(Status::Closing);
            let closing = close(Arc::clone(&core), listing, farewell);
            if kept.is_some() { core.tasks.spawn("closing", closing) } else { closing.await }
        }
        kept.map(|leg| Kept { leg, was_refused: false })
    }

    /// Makes the stream an open one. Returns what the device and the caller are told, the device only where it does not know.
    fn begin(&mut self, accept: Box<Accept>, accepted_on_leg: bool) -> (Option<LegText>, LegText) {
        if let Some(key) = &self.key {
            key.spend();
        }
        self.undecided = None;
        self.steps.set(|timeline, now| timeline.opened_ms = now);
        self.listing.publish(Status::Opened);
        // A leg that joins after this moment is too late: it is closed here, or by the request that delivers it.
        self.events.close();
        while let Ok(event) = self.events.try_recv() {
            if let Event::Joined(_, leg) = event {
                leg_close::close_unused(&self.core.tasks, leg, CloseReason::Refused, "the stream was opened without it");
            }
        }
        let to_device = (!accepted_on_leg).then(|| self.opened_text(Side::Device, &accept));
        (to_device, self.opened_text(Side::Caller, &accept))
    }

    /// Says `opened`, in one write with the first bytes where they are there, and moves bytes.
    async fn splice(
        &self,
        mut device: Box<Leg>,
        mut caller: Box<Leg>,
        (to_device, to_caller): (Option<LegText>, LegText),
    ) -> (SpliceEnd, Farewell) {
        if let Some(opened) = &to_device {
            device.push_text(opened);
        }
        caller.push_text(&to_caller);
        drop((to_device, to_caller)); // not held for as long as the stream lasts
        let rules = Rules { half_closed_idle: self.core.times.half_closed_idle };
        let (directory, name) = (&self.core.directory, &self.listing.facts().device);
        let orphaned = || !matches!(directory.find(name), Location::Here(_));
        splice(device, caller, rules, self.listing.traffic(), self.ended_from_outside(), orphaned).await
    }

    /// Waits until the stream is ended from outside: cut, with the relay, or with the token of its caller where streams do not outlive that.
    async fn ended_from_outside(&self) -> CloseReason {
        let outlives = self.core.streams_outlive_tokens;
        tokio::select! {
            cut = self.listing.cut() => cut.reason(),
            () = self.core.lifecycle.closing() => CloseReason::RelayDraining,
            () = self.token_ends(), if !outlives => CloseReason::Expired,
        }
    }

    /// The caller, as the device sees it.
    pub(super) fn caller_info(&self) -> CallerInfo {
        let basis = &self.listing.facts().basis;
        CallerInfo {
            issuer: basis.caller.issuer.clone(),
            subject: basis.caller.subject.clone(),
            groups: Vec::new(),
            address: basis.address,
            reason: self.open.reason.clone(),
        }
    }

    fn opened_text(&self, side: Side, accept: &Accept) -> LegText {
        let offered = &self.open.features;
        let features: Vec<Feature> = accept.features.iter().filter(|name| offered.contains(name)).cloned().collect();
        let facts = self.listing.facts();
        let (peer, data) = match side {
            Side::Device => (Peer::Caller(self.caller_info()), self.open.data.clone()),
            Side::Caller => (Peer::Device { device: facts.device.clone() }, accept.data.clone()),
        };
        LegText::Opened(Box::new(OpenedText {
            stream: facts.stream,
            service: facts.service.clone(),
            peer,
            features,
            data,
            ping_ms: u64::try_from(self.core.times.ping.as_millis()).unwrap_or(u64::MAX),
            timeline: *self.steps.timeline(),
        }))
    }

    /// Refuses the stream to both sides. Its slots are released before either side is notified. Returns the caller's leg, if it may be used again.
    pub(super) async fn refuse(self: Box<Self>, failed: Failed) -> Option<Kept> {
        let Failed { refusal, channel, on_leg } = failed;
        let stream = self.listing.facts().stream;
        if let (Some(code), Some(handle)) = (refusal.cancel(), channel)
            && let Err(error) = handle.send(Command::Cancel(Cancel { stream, code }))
        {
            debug!(%stream, %error, "the offer could not be cancelled");
        }
        self.record(refusal.result());
        if let Some(key) = self.key.as_ref().filter(|_| self.target_may_have_bytes(&refusal)) {
            key.spend();
        }
        let joins_until = self.wait_until + self.core.deadline(&self.open);
        let Self { core, via, listing, mut events, key, slot, undecided, mut legs, is_asked, steps, .. } = *self;
        drop((slot, undecided, key));
        match (legs.device.take(), on_leg) {
            (Some(leg), Some(session)) if leg.is_idle() => {
                core.tasks.spawn("idle", idle_device::keep(Arc::clone(&core), session, leg));
            }
            (Some(leg), Some(session)) if leg.is_offered() => {
                let code = refusal.cancel().unwrap_or(CancelCode::CallerGone);
                core.tasks.spawn("idle", idle_device::take_back(Arc::clone(&core), session, leg, (stream, code)));
            }
            (Some(leg), _) => {
                let (reason, detail) = leg.broken().unwrap_or((CloseReason::Refused, refusal.result()));
                let detail = detail.to_owned();
                leg_close::close_unused(&core.tasks, leg, reason, &detail);
            }
            (None, _) => {}
        }
        let mut problem = match &refusal {
            Refusal::Offline { device, .. } => {
                Refusal::Offline { device: device.clone(), last_seen: last_seen(&core, device).await }.problem()
            }
            other => other.problem(),
        };
        (problem.stream, problem.timeline) = (Some(stream), Some(*steps.timeline()));
        let problem = Arc::new(problem);
        let is_gone = matches!(refusal, Refusal::CallerGone | Refusal::CallerBroke { .. });
        let comes_late = legs.caller.is_none() && !is_gone && (via == Via::Connect || listing.caller_has_token());
        if comes_late {
            listing.remember_refusal(Arc::new(remembered(&problem)), joins_until);
        }
        listing.publish(Status::Refused(Arc::clone(&problem)));
        events.close();
        while let Ok(event) = events.try_recv() {
            if let Event::Joined(of, leg) = event {
                let problem = Some(Arc::clone(&problem));
                core.tasks.spawn("closing", leg_close::close_late(problem, of, leg));
            }
        }
        drop(listing);
        match (legs.caller.take()?, refusal) {
            (leg, Refusal::CallerBroke { reason, detail }) => leg.close(reason, &detail, CLOSE_TIMEOUT).await,
            (leg, Refusal::CallerGone) => leg.close(CloseReason::Finished, "", CLOSE_TIMEOUT).await,
            (leg, _) if is_asked => return leg_close::refuse_ask(leg, &problem).await,
            (leg, _) => leg_close::refuse(leg, &problem).await,
        }
        None
    }

    fn record(&self, result: &str) {
        use std::sync::atomic::Ordering::Relaxed;
        let traffic = self.listing.traffic();
        let record = EndRecord {
            facts: self.listing.facts(),
            device_key: self.listing.device_key(),
            result,
            to_device_bytes: traffic.to_device.load(Relaxed),
            to_caller_bytes: traffic.to_caller.load(Relaxed),
            lasted: self.steps.elapsed(),
            timeline: self.steps.timeline(),
        };
        record.log();
    }
}

/// Closes the legs of a stream that is over, and unlists it.
async fn close(core: Arc<Core>, listing: Listing, farewell: Farewell) {
    let was_cut = listing.was_cut();
    tokio::select! {
        () = farewell.close(core.times.half_closed_idle) => {}
        _ = listing.cut(), if !was_cut => debug!(stream = %listing.facts().stream, "closing the legs of a stream was cut short"),
        () = async { core.lifecycle.closing().await; sleep(CLOSE_TIMEOUT).await } => {}
    }
}

/// When the device was last seen, if the registry answers in time.
async fn last_seen(core: &Core, device: &moorline_proto::id::DeviceId) -> Option<moorline_proto::timestamp::Timestamp> {
    let record = timeout(LAST_SEEN_TIMEOUT, core.registry.device(device)).await;
    record.ok()?.ok()??.last_seen
}
