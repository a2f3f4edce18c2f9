//! Reading a file that nobody but its owner may read.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use zeroize::Zeroizing;

/// Bits of a mode that let group or others in.
const OF_GROUP_AND_OTHERS: u32 = 0o077;

/// Why a file is not read as a private one. Causes are in `source()`.
#[derive(Debug, thiserror::Error)]
pub enum PrivateFileError {
    /// The system refused to open it.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The path ends in a symbolic link.
    #[error("{} is a symbolic link: name the file itself", path.display())]
    SymbolicLink {
        /// The link.
        path: PathBuf,
    },
    /// A directory, a pipe, a socket or a device.
    #[error("{} is not a regular file", path.display())]
    NotRegular {
        /// What was opened.
        path: PathBuf,
    },
    /// It belongs to somebody else, who can change it.
    #[error("{} belongs to user {owner}, must belong to user {expected} or root", path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// User id of its owner.
        owner: u32,
        /// User id that this process has: its effective one.
        expected: u32,
    },
    /// Group or others may do something with it.
    #[error("{} has mode {mode:04o}, must not be open to group or others (chmod 600)", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// More bytes than such a file may have.
    #[error("{} is larger than {max} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes that it may have.
        max: usize,
    },
    /// It could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl PrivateFileError {
    /// Whether there is no such file.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Reads a private file of at most `max_bytes` bytes.
///
/// The file must be a regular one, belong to the effective user or to root, and be closed to group and others. The path must not end
/// in a symbolic link. What is checked is what was opened: nothing can be put in its place in between. A pipe or a device under
/// this name does not make the call wait.
///
/// Blocks on the disk. The bytes are zeroed when they are dropped.
///
/// # Errors
/// [`PrivateFileError`], with path, mode and owner of what was found.
pub fn read_private(path: impl AsRef<Path>, max_bytes: usize) -> Result<Zeroizing<Vec<u8>>, PrivateFileError> {
    let path = path.as_ref();
    let (file, stat) = open_private(path)?;
    let size = usize::try_from(stat.st_size).ok().filter(|&size| size <= max_bytes);
    let Some(size) = size else { return Err(PrivateFileError::TooLarge { path: path.to_owned(), max: max_bytes }) };
    read_all(file, size).map_err(|error| not_read(path, error))
}

/// Checks a private file as [`read_private`] does, without reading it: for a file that a library opens by its path.
///
/// The library may open another file than the one that was checked. So its directory must be one that nobody else can change.
///
/// # Errors
/// [`PrivateFileError`], with path, mode and owner of what was found.
pub fn check_private(path: impl AsRef<Path>) -> Result<(), PrivateFileError> {
    open_private(path.as_ref()).map(drop)
}

fn open_private(path: &Path) -> Result<(File, Stat), PrivateFileError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map(File::from).map_err(|error| not_opened(path, error))?;
    let stat = rustix::fs::fstat(&file).map_err(|error| not_read(path, error.into()))?;
    check(path, &stat, rustix::process::geteuid().as_raw())?;
    Ok((file, stat))
}

fn not_opened(path: &Path, error: Errno) -> PrivateFileError {
    let path = path.to_owned();
    match error {
        Errno::LOOP => PrivateFileError::SymbolicLink { path },
        Errno::NXIO => PrivateFileError::NotRegular { path }, // a socket, or a device that is not there
        error => PrivateFileError::Open { path, source: error.into() },
    }
}

fn not_read(path: &Path, source: io::Error) -> PrivateFileError {
    PrivateFileError::Read { path: path.to_owned(), source }
}

/// The rules, for a process whose effective user is `euid`.
fn check(path: &Path, stat: &Stat, euid: u32) -> Result<(), PrivateFileError> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(PrivateFileError::NotRegular { path: path.to_owned() });
    }
    if stat.st_uid != euid && stat.st_uid != 0 {
        return Err(PrivateFileError::Owner { path: path.to_owned(), owner: stat.st_uid, expected: euid });
    }
    if stat.st_mode & OF_GROUP_AND_OTHERS != 0 {
        return Err(PrivateFileError::Mode { path: path.to_owned(), mode: stat.st_mode & 0o7777 });
    }
    Ok(())
}

/// Into memory that does not move, so that no copy stays behind: exactly as many bytes as the file had when it was opened.
fn read_all(mut file: File, size: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; size]);
    file.read_exact(&mut bytes)?;
    match file.read(&mut [0])? {
        0 => Ok(bytes),
        _ => Err(io::Error::other("the file grew while it was read")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    use tempfile::TempDir;

    use super::*;
    use crate::create;

    const MAX: usize = 16;

    struct Folder(TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn file(&self, mode: u32, content: &[u8]) -> PathBuf {
            let path = self.path("key");
            create(&path, 0o600, content).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            path
        }
    }

    #[test]
    fn a_private_file_is_read() {
        for mode in [0o600, 0o400, 0o700] {
            let folder = Folder::new();
            assert_eq!(*read_private(folder.file(mode, b"secret"), MAX).unwrap(), b"secret");
        }
        assert!(read_private(Folder::new().file(0o600, b""), MAX).unwrap().is_empty());
    }

    #[test]
    fn a_file_that_group_or_others_can_open_is_refused_with_its_mode() {
        for mode in [0o640, 0o604, 0o620, 0o601, 0o610, 0o644, 0o666, 0o777] {
            let folder = Folder::new();
            let path = folder.file(mode, b"secret");
            let error = read_private(&path, MAX).unwrap_err();
            assert!(matches!(&error, PrivateFileError::Mode { mode: seen, path: named } if (*seen, named) == (mode, &path)), "{error:?}");
            assert!(error.to_string().contains(&format!("has mode 0{mode:o}")), "{error}");
        }
    }

    #[test]
    fn a_symbolic_link_is_refused() {
        let folder = Folder::new();
        let (target, link, dangling) = (folder.file(0o600, b"secret"), folder.path("link"), folder.path("dangling"));
        symlink(&target, &link).unwrap();
        symlink(folder.path("nowhere"), &dangling).unwrap();
        for path in [link, dangling] {
            assert!(matches!(read_private(&path, MAX), Err(PrivateFileError::SymbolicLink { .. })), "{}", path.display());
        }
    }

    #[test]
    fn a_file_that_is_not_regular_is_refused_at_once() {
        let folder = Folder::new();
        let (pipe, socket) = (folder.path("pipe"), folder.path("socket"));
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let _listener = UnixListener::bind(&socket).unwrap();
        for path in [pipe.as_path(), &socket, folder.0.path(), Path::new("/dev/null")] {
            assert!(matches!(read_private(path, MAX), Err(PrivateFileError::NotRegular { .. })), "{}", path.display());
        }
    }

    #[test]
    fn a_file_of_somebody_else_is_refused_with_its_owner() {
        let path = Path::new("key");
        let folder = Folder::new();
        let mut stat = rustix::fs::stat(folder.file(0o600, b"")).unwrap();
        stat.st_uid = 1_000;
        assert!(check(path, &stat, 1_000).is_ok());
        let error = check(path, &stat, 1_001).unwrap_err();
        assert_eq!(error.to_string(), "key belongs to user 1000, must belong to user 1001 or root");
        stat.st_uid = 0;
        assert!(check(path, &stat, 1_001).is_ok());
    }

    #[test]
    fn a_file_may_be_as_large_as_its_bound_and_no_larger() {
        assert_eq!(read_private(Folder::new().file(0o600, &[7; MAX]), MAX).unwrap().len(), MAX);
        let error = read_private(Folder::new().file(0o600, &[7; MAX + 1]), MAX).unwrap_err();
        assert!(matches!(error, PrivateFileError::TooLarge { max: MAX, .. }), "{error:?}");
    }

    #[test]
    fn a_missing_file_has_its_own_error() {
        let error = read_private(Folder::new().path("key"), MAX).unwrap_err();
        assert!(error.is_not_found(), "{error:?}");
        assert!(!read_private("/dev/null", MAX).unwrap_err().is_not_found());
    }

    #[test]
    fn a_file_that_grew_or_shrank_meanwhile_is_an_error() {
        let folder = Folder::new();
        let path = folder.file(0o600, b"secret");
        assert!(read_all(File::open(&path).unwrap(), 5).is_err());
        assert!(read_all(File::open(&path).unwrap(), 7).is_err());
        assert_eq!(*read_all(File::open(&path).unwrap(), 6).unwrap(), b"secret");
    }
}
