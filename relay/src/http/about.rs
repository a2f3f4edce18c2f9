//! `GET /v1/about`: what one must know before anything else. Anyone may ask.

use std::sync::Arc;

use axum::Json;
use axum::extract::Request;
use moorline_proto::api::{About, AboutLimits};
use moorline_proto::names::{HEARTBEAT_FEATURE, REUSE};

use crate::core::Core;

/// Versions, features, names and ports, limits, the time.
pub(super) async fn about(core: Arc<Core>, _request: Request) -> Json<About> {
    Json(About {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: vec![1],
        node: core.node.clone(),
        features: [HEARTBEAT_FEATURE, REUSE].into_iter().filter_map(|name| name.parse().ok()).collect(),
        hosts: core.names.clone(),
        ports: core.ports.clone(),
        limits: AboutLimits {
            deadline_max_s: core.times.deadline_max.as_secs(),
            wait_max_s: core.times.wait_max.as_secs(),
            streams_per_device: core.limits.streams_per_device.get(),
        },
        time: core.clock.now(),
    })
}
