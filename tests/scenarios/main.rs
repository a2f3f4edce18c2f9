//! Everything that must hold, as scenarios somebody could act out.

mod handshake;
mod splicing;
