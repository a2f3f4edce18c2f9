//! File descriptors: raising the limit, and recognising errors that mean there are none left.

use std::fs::File;
use std::io;

/// EMFILE and ENFILE, the same on every Unix that this runs on; `io::ErrorKind` has no variant for them.
const NONE_LEFT: [i32; 2] = [24, 23];

/// Raises the soft limit, 1,024 on most machines, to the hard limit. A stream takes two.
pub fn raise_limit() {
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::debug!(%error, "cannot raise the limit of file descriptors");
    }
}

/// Whether an error means that no descriptors are left.
pub fn is_shortage(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| NONE_LEFT.contains(&code))
}

/// Whether a resolver failed because no descriptors are left. It does not always say so when it cannot read its own files.
pub fn is_shortage_of_resolver(error: &io::Error) -> bool {
    is_shortage(error) || File::open("/dev/null").is_err_and(|error| is_shortage(&error))
}
