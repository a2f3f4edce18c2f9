//! Everything that must hold, as scenarios somebody could act out.

mod agent;
mod balancers;
mod completeness;
mod decoding;
mod descriptors;
mod ends;
mod flood;
mod framing;
mod half_close;
mod handshake;
mod hardship;
mod house;
mod http;
mod integrity;
mod opening;
mod places;
mod python;
mod refusing;
mod requests;
mod returning;
mod splice_states;
mod splicing;
mod ssh;
mod strangers;
mod tokens;
mod told;
