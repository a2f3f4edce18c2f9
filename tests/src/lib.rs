//! The harness: worlds of relays, devices, callers and strangers, in which the scenarios take place.

pub mod memory;
pub mod wire;
