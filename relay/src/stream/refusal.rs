//! Why a stream did not come about, and what everybody concerned is told: the caller, the device, the log.

use std::time::Duration;

use moorline_proto::close::CloseReason;
use moorline_proto::control::{CancelCode, RejectCode};
use moorline_proto::id::{DeviceId, ServiceName};
use moorline_proto::problem::{Problem, ProblemCode};
use moorline_proto::timestamp::Timestamp;

/// Why a stream did not come about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
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
    /// The device has as many streams as it may.
    #[error("{0} has as many streams as the relay lets a device have")]
    TooManyStreams(DeviceId),
    /// The relay has as many streams, or waits for as many devices, as it may.
    #[error("the relay has as many {0} as it may")]
    Overloaded(&'static str),
    /// The device is connected and says nothing, or was lost while it was asked.
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
    /// The device said no.
    #[error("the device answered {code}")]
    Rejected {
        /// Its code.
        code: RejectCode,
        /// Its own words.
        detail: Option<String>,
    },
    /// The caller hung up.
    #[error("the caller hung up")]
    CallerGone,
    /// The caller's leg broke the protocol.
    #[error("the caller's leg broke the protocol: {words}")]
    CallerBroke {
        /// The close code.
        reason: CloseReason,
        /// How.
        words: String,
    },
    /// Ended from outside.
    #[error("the stream was cut: {0}")]
    Cut(CloseReason),
    /// The same key with another question.
    #[error("this Idempotency-Key came with another request before")]
    Conflict,
    /// The same key after the stream was opened.
    #[error("the stream of this Idempotency-Key was opened already")]
    Used,
}

impl Refused {
    /// A service that the device does not name.
    pub fn not_exposed(device: &DeviceId, service: &ServiceName) -> Self {
        Self::NotExposed { device: device.clone(), service: service.to_string() }
    }

    /// What the caller is told.
    pub fn code(&self) -> ProblemCode {
        match self {
            Self::Offline { .. } => ProblemCode::DeviceOffline,
            Self::NotExposed { .. } => ProblemCode::ServiceNotExposed,
            Self::TooManyStreams(_) => ProblemCode::TooManyStreams,
            Self::Overloaded(_) => ProblemCode::Overloaded,
            Self::Unresponsive(_) => ProblemCode::DeviceUnresponsive,
            Self::TimedOut { .. } | Self::CallerGone | Self::CallerBroke { .. } => ProblemCode::HandshakeTimeout,
            Self::Rejected { code, .. } => code.problem(),
            Self::Cut(CloseReason::Killed) => ProblemCode::Killed,
            Self::Cut(CloseReason::Revoked) => ProblemCode::Revoked,
            Self::Cut(_) => ProblemCode::Draining,
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
            problem.retry_after_s = Some(5);
        }
        problem
    }

    /// What the device is told about an offer that it may still be busy with; nothing where it knows, or cannot be told.
    pub fn cancel(&self) -> Option<CancelCode> {
        match self {
            Self::TimedOut { .. } => Some(CancelCode::HandshakeTimeout),
            Self::CallerGone | Self::CallerBroke { .. } => Some(CancelCode::CallerGone),
            Self::Cut(CloseReason::Killed) => Some(CancelCode::Killed),
            Self::Cut(CloseReason::Revoked) => Some(CancelCode::Revoked),
            Self::Cut(_) => Some(CancelCode::Draining),
            Self::Offline { .. }
            | Self::NotExposed { .. }
            | Self::TooManyStreams(_)
            | Self::Overloaded(_)
            | Self::Unresponsive(_)
            | Self::Rejected { .. }
            | Self::Conflict
            | Self::Used => None,
        }
    }

    /// The word for the log.
    pub fn result(&self) -> &'static str {
        match self {
            Self::CallerGone => "caller_gone",
            Self::CallerBroke { .. } => "caller_broke_protocol",
            other => other.code().as_str(),
        }
    }
}
