//! `GET /v1/about`: what one must know before anything else. Anyone may ask.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use moorline_proto::api::{About, AboutLimits};
use moorline_proto::names::HEARTBEAT_FEATURE;

use crate::http::Edge;

/// Versions, features, names and ports, limits, the time.
pub async fn about(State(edge): State<Arc<Edge>>) -> Json<About> {
    Json(About {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: vec![1],
        node: edge.node.clone(),
        features: HEARTBEAT_FEATURE.parse().into_iter().collect(),
        hosts: edge.names.clone(),
        ports: edge.ports.clone(),
        limits: AboutLimits {
            deadline_max_s: edge.times.deadline_max.as_secs(),
            wait_max_s: edge.times.wait_max.as_secs(),
            streams_per_device: edge.limits.streams_per_device.get(),
        },
        time: edge.clock.now(),
    })
}
