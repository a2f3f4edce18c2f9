//! The test harness: relays, devices, callers and hostile peers for the scenarios.
//!
//! [`memory`] runs a relay in this process over in-memory pipes, so that its clock can be paused; [`world`] runs the real programs.

pub mod balancer;
pub mod connect_flood;
pub mod database;
pub mod decoders;
pub mod faulty_pipe;
pub mod frames;
pub mod held_registry;
pub mod leg_sequences;
pub mod link;
pub mod memory;
pub mod middlebox;
pub mod namespace;
pub mod observed;
pub mod old_way;
pub mod patterns;
pub mod programs;
pub mod short_streams;
pub mod sources;
pub mod sshd;
pub mod streams;
pub mod targets;
pub mod unauthenticated_peer;
pub mod vectors;
pub mod warm;
pub mod wire;
mod wire_leg;
pub mod world;
