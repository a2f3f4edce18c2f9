//! How Moorline's programs create files and read private ones: keys, tokens, configurations.
//!
//! Owns: the checks that keep a private file private. A file is opened first and checked through its descriptor, so that what was
//! checked is what is read. The last component of a path is never followed where it is a symbolic link.
//!
//! Does not own: what stands in the files, and where they are.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod create;
mod read;

pub use create::{CreateError, create};
pub use read::{PrivateFileError, check_private, read_private};
