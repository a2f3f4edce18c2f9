//! Everything that must hold, as scenarios somebody could act out.

mod agent;
mod handshake;
mod splicing;
