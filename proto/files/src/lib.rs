//! Creates files, and reads private ones such as keys, tokens and configurations.
//!
//! A private file is opened first and then checked through its descriptor, so the file that is checked is the file that is read. A symbolic
//! link as the last component of a path is never followed.
//!
//! Knows nothing of the files' contents and locations.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod create;
mod read;

pub use create::{CreateError, create};
pub use read::{PrivateFileError, check_private, read_private};
