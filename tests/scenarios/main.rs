//! Everything that must hold, as scenarios somebody could act out.

mod agent;
mod handshake;
mod house;
mod http;
mod integrity;
mod python;
mod refusing;
mod returning;
mod splicing;
mod ssh;
