//! The exclusive lock on a state folder: one relay runs on it at a time.
//!
//! Two relays on one folder would share a registry but not what they know of it: a device removed at one would stay online at the
//! other. The lock is `flock` on a file of the folder, so the system releases it when the process ends, however it ends. The file
//! stays, with the process id of its last holder.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process;

use rustix::fs::{Mode, OFlags};

/// Name of the lock in a state folder.
pub const LOCK_FILE: &str = "lock";

/// What is read of the file at most: a process id and some.
const MAX_BYTES: u64 = 32;

/// Why a state folder was not locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds the lock.
    #[error("another relay{} runs on {}", pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(), state.display())]
    Held {
        /// The state folder.
        state: PathBuf,
        /// The process that holds the lock, where it wrote its id.
        pid: Option<u32>,
    },
    /// The lock's file cannot be opened, locked or written.
    #[error("{} cannot be locked", file.display())]
    File {
        /// The lock's file.
        file: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// Holds a state folder. Dropping it releases the folder.
#[derive(Debug)]
#[must_use = "the folder is locked only while this is held"]
pub struct StateLock(#[expect(dead_code, reason = "held for its lock")] File);

impl StateLock {
    /// Locks the folder. Does not wait.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn acquire(state: &Path) -> Result<Self, LockError> {
        let path = state.join(LOCK_FILE);
        let failed = |source| LockError::File { file: path.clone(), source };
        // Closed on exec, so that no child inherits the lock.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map(File::from).map_err(|error| failed(error.into()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(LockError::Held { state: state.into(), pid: holder(file) }),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        write_pid(&mut file).map_err(failed)?;
        Ok(Self(file))
    }
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", process::id())
}

/// The process that the file names.
fn holder(file: File) -> Option<u32> {
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_folder_is_locked_once_until_it_is_released() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(LOCK_FILE), "4294967295 and more, of a process that is long gone").unwrap();
        let held = StateLock::acquire(folder.path()).unwrap();
        let Err(LockError::Held { state, pid }) = StateLock::acquire(folder.path()) else { panic!("locked twice") };
        assert_eq!((state.as_path(), pid), (folder.path(), Some(process::id())));
        drop(held);
        drop(StateLock::acquire(folder.path()).unwrap());
    }

    #[test]
    fn a_lock_without_a_readable_process_id_is_still_held() {
        let folder = tempfile::tempdir().unwrap();
        let _held = StateLock::acquire(folder.path()).unwrap();
        fs::write(folder.path().join(LOCK_FILE), "\u{7}?").unwrap();
        let error = StateLock::acquire(folder.path()).unwrap_err();
        assert!(matches!(error, LockError::Held { pid: None, .. }), "{error:?}");
        assert!(error.to_string().starts_with("another relay runs on "), "{error}");
    }

    #[test]
    fn a_symbolic_link_as_the_lock_file_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = folder.path().join("elsewhere");
        std::os::unix::fs::symlink(&elsewhere, folder.path().join(LOCK_FILE)).unwrap();
        assert!(matches!(StateLock::acquire(folder.path()), Err(LockError::File { .. })));
        assert!(!elsewhere.exists());
    }
}
