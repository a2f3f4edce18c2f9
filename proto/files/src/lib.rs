//! Creates files, reads private ones such as keys, tokens and configurations, and reads and writes inherited descriptors.
//!
//! A private file is opened first and then checked through its descriptor, so the file that is checked is the file that is read. Symbolic
//! links are followed to read a file, and to replace one; a new file is never created through one.
//!
//! Knows nothing of the files' contents and locations.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod blocking;
mod create;
mod error;
mod read;
mod replace;

pub use blocking::Blocking;
pub use create::{CreateError, create};
pub use error::PrivateFileError;
pub use read::{Link, check_private, read_private};
pub use replace::{ReplaceError, replace};
