//! Creating a file that was not there before.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Why a file was not created. Causes are in `source()`.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Something has this name: a file, a directory, or a symbolic link, wherever it leads.
    #[error("{} already exists", path.display())]
    Exists {
        /// What was to be created.
        path: PathBuf,
    },
    /// The system refused to create it.
    #[error("cannot create {}", path.display())]
    Create {
        /// What was to be created.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It was created but could not be written. It was removed again.
    #[error("cannot write {}", path.display())]
    Write {
        /// What was to be written.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// Creates a file with these permission bits and this content, and returns once it is on disk under its name.
///
/// The file has exactly the bits of `mode`, whatever the umask is, and never more than these. It is created anew: an existing
/// file is not touched, and a symbolic link is not followed, not even one that leads nowhere.
///
/// Blocks on the disk.
///
/// # Errors
/// [`CreateError`]. Nothing is left behind where the content could not be written.
pub fn create(path: impl AsRef<Path>, mode: u32, bytes: &[u8]) -> Result<(), CreateError> {
    let path = path.as_ref();
    let mode = Mode::from_raw_mode(mode & 0o777);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, mode).map(File::from).map_err(|error| match error {
        rustix::io::Errno::EXIST => CreateError::Exists { path: path.to_owned() },
        error => CreateError::Create { path: path.to_owned(), source: error.into() },
    })?;
    fill(file, path, mode, bytes)
}

/// Writes a file that was created a moment ago, and removes it where that fails.
fn fill(file: File, path: &Path, mode: Mode, bytes: &[u8]) -> Result<(), CreateError> {
    write(file, path, mode, bytes).map_err(|source| {
        std::fs::remove_file(path).ok(); // the error to report is the first one
        CreateError::Write { path: path.to_owned(), source }
    })
}

fn write(mut file: File, path: &Path, mode: Mode, bytes: &[u8]) -> io::Result<()> {
    rustix::fs::fchmod(&file, mode)?; // the umask has taken bits away
    file.write_all(bytes)?;
    file.sync_all()?;
    sync_name(path)
}

/// The file's name is on disk once its directory is.
fn sync_name(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match File::open(parent)?.sync_all() {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()), // a file system that cannot
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn mode_of(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn bits_beyond_permissions_are_not_set() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        create(&path, 0o104_600, b"").unwrap();
        assert_eq!(mode_of(&path), 0o600);
    }

    #[test]
    fn an_existing_file_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        create(&path, 0o600, b"first").unwrap();
        let error = create(&path, 0o644, b"second").unwrap_err();
        assert!(matches!(&error, CreateError::Exists { path: named } if *named == path), "{error:?}");
        assert_eq!(error.to_string(), format!("{} already exists", path.display()));
        assert_eq!((fs::read(&path).unwrap(), mode_of(&path)), (b"first".to_vec(), 0o600));
    }

    #[test]
    fn a_symbolic_link_is_never_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link, dangling) = (folder.path().join("target"), folder.path().join("link"), folder.path().join("dangling"));
        fs::write(&target, b"before").unwrap();
        symlink(&target, &link).unwrap();
        symlink(folder.path().join("nowhere"), &dangling).unwrap();
        for path in [&link, &dangling] {
            assert!(matches!(create(path, 0o600, b"after"), Err(CreateError::Exists { .. })), "{}", path.display());
        }
        assert_eq!(fs::read(&target).unwrap(), b"before");
        assert!(!folder.path().join("nowhere").exists());
    }

    #[test]
    fn system_errors_are_reported_with_their_cause() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing").join("key");
        let error = create(&path, 0o600, b"").unwrap_err();
        assert_eq!(error.to_string(), format!("cannot create {}", path.display()));
        let cause = std::error::Error::source(&error).unwrap().downcast_ref::<io::Error>().unwrap();
        assert_eq!(cause.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_file_that_could_not_be_written_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        create(&path, 0o600, b"").unwrap();
        let only_for_reading = File::open(&path).unwrap();
        let error = fill(only_for_reading, &path, Mode::from_raw_mode(0o600), b"content").unwrap_err();
        assert!(matches!(error, CreateError::Write { .. }), "{error:?}");
        assert!(!path.exists());
    }
}
