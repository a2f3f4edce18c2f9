//! The harness: worlds of relays, devices, callers and strangers, in which the scenarios take place.
//!
//! [`memory`] is a world within the process, whose clock can stand still; [`world`] is one of real programs.

pub mod balancer;
pub mod decoders;
pub mod frames;
pub mod link;
pub mod memory;
pub mod patterns;
pub mod programs;
pub mod rough;
pub mod sshd;
pub mod stranger;
pub mod targets;
pub mod vectors;
pub mod window;
pub mod wire;
pub mod world;
