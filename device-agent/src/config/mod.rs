//! The agent's configuration: as written in the file ([`mod@file`]) and after validation ([`check`]).

pub mod check;
pub mod file;

pub use check::{Config, ConfigError};
