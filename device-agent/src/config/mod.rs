//! The agent's configuration: as written ([`mod@file`]) and as used ([`check`]).

pub mod check;
pub mod file;

pub use check::{Config, ConfigError};
