//! The mode of a created file does not depend on the umask, which belongs to the whole process: this test has one of its own.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rustix::fs::Mode;
use rustix::process::umask;

#[test]
fn a_file_has_its_content_and_exactly_its_mode_whatever_the_umask_is() {
    let folder = tempfile::tempdir().unwrap();
    for mask in [0o000, 0o022, 0o077, 0o777] {
        umask(Mode::from_raw_mode(mask));
        for mode in [0o600, 0o640, 0o644] {
            let path = folder.path().join(format!("{mask:o}-{mode:o}"));
            moorline_files::create(&path, mode, b"content").unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode, "umask {mask:o}");
            assert_eq!(fs::read(&path).unwrap(), b"content");
        }
    }
}
