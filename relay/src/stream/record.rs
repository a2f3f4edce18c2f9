//! The end record: everything that is known of a stream when it ends, also of one that was refused. One line in the log.

use std::net::IpAddr;
use std::time::Duration;

use moorline_proto::api::OpenStream;
use moorline_proto::id::{CallerId, DeviceId, ServiceName, StreamId};
use moorline_proto::problem::Timeline;
use moorline_proto::proof::Thumbprint;
use moorline_proto::timestamp::Timestamp;
use tracing::info;

use crate::access::permit::Basis;

/// What a stream is about; fixed from the start.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Its name.
    pub stream: StreamId,
    /// To which device.
    pub device: DeviceId,
    /// To which of its services.
    pub service: ServiceName,
    /// Who asked for it, by which token, rule and key, from where.
    pub basis: Basis,
    /// In the caller's own words, sanitised.
    pub reason: Option<String>,
    /// When it was asked for.
    pub since: Timestamp,
}

impl Facts {
    /// Of a stream to a device that is asked for now.
    pub fn new(stream: StreamId, device: DeviceId, basis: Basis, open: &OpenStream, since: Timestamp) -> Self {
        Self { stream, device, service: open.service.clone(), basis, reason: open.reason.as_ref().map(ToString::to_string), since }
    }

    /// Who asked for it.
    pub fn caller(&self) -> &CallerId {
        &self.basis.caller
    }

    /// From which network address.
    pub fn address(&self) -> IpAddr {
        self.basis.address
    }
}

/// How a stream ended.
#[derive(Clone, Debug)]
pub struct EndRecord<'a> {
    /// What it was about.
    pub facts: &'a Facts,
    /// The key that the device's channel was proved with, if the device was asked.
    pub device_key: Option<Thumbprint>,
    /// The word for how it ended: a close code's name, a problem's code, or what a side did.
    pub result: &'a str,
    /// Bytes from the caller to the device.
    pub to_device_bytes: u64,
    /// Bytes from the device to the caller.
    pub to_caller_bytes: u64,
    /// From the request to the end.
    pub lasted: Duration,
    /// Where the time went before it was opened.
    pub timeline: &'a Timeline,
}

impl<'a> EndRecord<'a> {
    /// Of a stream that was refused before anybody was asked.
    pub fn refused(facts: &'a Facts, result: &'a str, lasted: Duration, timeline: &'a Timeline) -> Self {
        Self { facts, device_key: None, result, to_device_bytes: 0, to_caller_bytes: 0, lasted, timeline }
    }

    /// Writes the record to the log.
    pub fn log(&self) {
        let Facts { stream, device, service, basis, reason, .. } = self.facts;
        let Basis { caller, token_id, key_id, rule, address, .. } = basis;
        info!(
            %stream,
            %device,
            %service,
            %caller,
            %address,
            rule = rule.map(tracing::field::display),
            token_id = token_id.as_deref(),
            caller_key = %key_id,
            device_key = self.device_key.map(tracing::field::display),
            reason = reason.as_deref(),
            result = self.result,
            to_device_bytes = self.to_device_bytes,
            to_caller_bytes = self.to_caller_bytes,
            lasted_ms = u64::try_from(self.lasted.as_millis()).unwrap_or(u64::MAX),
            timeline = serde_json::to_string(self.timeline).unwrap_or_default(),
            "stream ended"
        );
    }
}
