//! Why a stream is refused, and how the caller, the device and the end record express it.

use std::time::Duration;

use moorline_proto::close::CloseReason;
use moorline_proto::control::{CancelCode, RejectCode};
use moorline_proto::id::{DeviceId, ServiceName};
use moorline_proto::problem::{Problem, ProblemCode};
use moorline_proto::timestamp::Timestamp;

use crate::access::revocation::Cut;
use crate::limits::{REMEMBERED_REFUSAL_BYTES, RETRY_AFTER_S};
use crate::stream::slots::Exhausted;

/// Why there is no stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The registry has no such device.
    #[error("there is no device {0}")]
    UnknownDevice(DeviceId),
    /// The device is not connected, or did not come in the time that was waited for it.
    #[error("{device} is not connected")]
    Offline {
        /// The device.
        device: DeviceId,
        /// When it was last online.
        last_seen: Option<Timestamp>,
    },
    /// The device does not name the service.
    #[error("{device} exposes no service {service:?}")]
    NotExposed {
        /// The device.
        device: DeviceId,
        /// What was asked for.
        service: String,
    },
    /// A limit is reached.
    #[error("{0}")]
    Exhausted(#[from] Exhausted),
    /// The device is connected but does not answer, or was lost while the offer was pending.
    #[error("{0} was asked and did not answer")]
    Unresponsive(DeviceId),
    /// The deadline passed.
    #[error("not opened within {within:?}; still missing: {missing}")]
    TimedOut {
        /// The deadline.
        within: Duration,
        /// What had not happened by then.
        missing: &'static str,
    },
    /// The device rejected.
    #[error("the device answered {code}")]
    Rejected {
        /// Its code.
        code: RejectCode,
        /// Its `detail`.
        detail: Option<String>,
    },
    /// The caller hung up.
    #[error("the caller hung up")]
    CallerGone,
    /// The caller's leg broke the protocol.
    #[error("the caller's leg broke the protocol: {detail}")]
    CallerBroke {
        /// The close code.
        reason: CloseReason,
        /// What it violated.
        detail: String,
    },
    /// Cut from outside.
    #[error("the stream was cut: {}", .0.reason())]
    Cut(Cut),
    /// The caller's token ended before the stream was opened.
    #[error("the token expired before the stream was opened; get a new one")]
    TokenExpired,
    /// The relay drains or closes.
    #[error("the relay is leaving; ask again, at another node if there is one")]
    Draining,
    /// It cannot be found out where the device is.
    #[error("the relay cannot find out where devices are")]
    DirectoryUnavailable,
    /// The registry failed.
    #[error("the registry did not answer")]
    RegistryFailed,
    /// The same key with another request.
    #[error("this Idempotency-Key came with another request before")]
    Conflict,
    /// The same key after the stream was opened.
    #[error("the stream of this Idempotency-Key was opened already")]
    Used,
}

impl Refusal {
    /// A service that the device does not name.
    pub(super) fn not_exposed(device: &DeviceId, service: &ServiceName) -> Self {
        Self::NotExposed { device: device.clone(), service: service.to_string() }
    }

    /// The problem code that the caller gets.
    pub fn code(&self) -> ProblemCode {
        match self {
            Self::UnknownDevice(_) => ProblemCode::DeviceUnknown,
            Self::Offline { .. } => ProblemCode::DeviceOffline,
            Self::NotExposed { .. } => ProblemCode::ServiceNotExposed,
            Self::Exhausted(Exhausted::Relay | Exhausted::Waiting) => ProblemCode::Overloaded,
            Self::Exhausted(Exhausted::Device | Exhausted::Caller | Exhausted::CallerUndecided | Exhausted::CallerWaiting) => {
                ProblemCode::TooManyStreams
            }
            Self::Unresponsive(_) => ProblemCode::DeviceUnresponsive,
            Self::TimedOut { .. } | Self::CallerGone | Self::CallerBroke { .. } => ProblemCode::HandshakeTimeout,
            Self::Rejected { code, .. } => code.problem(),
            Self::Cut(cut) if cut.reason() == CloseReason::Revoked => ProblemCode::Revoked,
            Self::Cut(_) => ProblemCode::Killed,
            Self::TokenExpired => ProblemCode::TokenExpired,
            Self::Draining => ProblemCode::Draining,
            Self::DirectoryUnavailable => ProblemCode::DirectoryUnavailable,
            Self::RegistryFailed => ProblemCode::Internal,
            Self::Conflict => ProblemCode::Conflict,
            Self::Used => ProblemCode::TokenUsed,
        }
    }

    /// The body of the refusal.
    pub fn problem(&self) -> Problem {
        let mut problem = Problem::new(self.code(), self.to_string());
        match self {
            Self::Offline { last_seen, .. } => problem.last_seen = *last_seen,
            Self::Rejected { detail, .. } => problem.device_detail.clone_from(detail),
            _ => {}
        }
        if matches!(problem.status, 429 | 503) {
            problem.retry_after_s = Some(RETRY_AFTER_S);
        }
        problem
    }

    /// The code of the `cancel` that the device gets for an offer that it may still be handling. None if it needs none, or cannot be reached.
    pub(super) fn cancel(&self) -> Option<CancelCode> {
        match self {
            Self::TimedOut { .. } => Some(CancelCode::HandshakeTimeout),
            Self::CallerGone | Self::CallerBroke { .. } => Some(CancelCode::CallerGone),
            Self::Cut(cut) if cut.reason() == CloseReason::Revoked => Some(CancelCode::Revoked),
            Self::Cut(_) => Some(CancelCode::Killed),
            Self::TokenExpired => Some(CancelCode::Revoked),
            Self::Draining => Some(CancelCode::Draining),
            Self::UnknownDevice(_)
            | Self::Offline { .. }
            | Self::NotExposed { .. }
            | Self::Exhausted(_)
            | Self::Unresponsive(_)
            | Self::Rejected { .. }
            | Self::DirectoryUnavailable
            | Self::RegistryFailed
            | Self::Conflict
            | Self::Used => None,
        }
    }

    /// The `result` of the end record.
    pub(super) fn result(&self) -> &'static str {
        match self {
            Self::CallerGone => "caller_gone",
            Self::CallerBroke { .. } => "caller_broke_protocol",
            other => other.code().as_str(),
        }
    }
}

/// A problem as it is remembered: where it is long, without the device's `detail`.
pub(super) fn remembered(problem: &Problem) -> Problem {
    let mut problem = problem.clone();
    if serde_json::to_vec(&problem).is_ok_and(|bytes| bytes.len() > REMEMBERED_REFUSAL_BYTES) {
        problem.device_detail = None;
    }
    problem
}
