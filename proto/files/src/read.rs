//! Reading a file that nobody but its owner may read.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, Stat, StatVfsMountFlags};
use rustix::io::Errno;
use zeroize::Zeroizing;

use crate::error::PrivateFileError;

/// Bits of a mode that let group or others in: none of them may be set in a file of an ordinary user.
const OF_GROUP_AND_OTHERS: u32 = 0o077;
/// Bits of a mode that none may be set in a file of root: all of the above but reading by the group.
const BEYOND_READING_BY_GROUP: u32 = 0o037;

/// What to do with a path that ends in a symbolic link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// The file that it leads to is checked. For files that are only read: orchestrators and certificate managers mount them behind links.
    Follow,
    /// It is refused. For files that are written too.
    Refuse,
}

/// Reads a private file of at most `max_bytes` bytes.
///
/// PostgreSQL's rule for private keys: a regular file that belongs to the effective user and has mode 0600 or less, or that belongs to root
/// and has mode 0640 or less. An access control list counts: where there is one, the group's bits are its mask.
///
/// Symbolic links are followed. What is checked is what was opened: nothing can be put in its place in between. A pipe or a device
/// under this name does not make the call wait.
///
/// Blocks on the disk. The bytes are zeroed when they are dropped.
///
/// # Errors
/// [`PrivateFileError`], with path, mode and owner of what was found.
pub fn read_private(path: impl AsRef<Path>, max_bytes: usize) -> Result<Zeroizing<Vec<u8>>, PrivateFileError> {
    let path = path.as_ref();
    let (file, stat) = open_private(path, Link::Follow)?;
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
pub fn check_private(path: impl AsRef<Path>, link: Link) -> Result<(), PrivateFileError> {
    open_private(path.as_ref(), link).map(drop)
}

fn open_private(path: &Path, link: Link) -> Result<(File, Stat), PrivateFileError> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC | link.flag();
    let file = rustix::fs::open(path, flags, Mode::empty()).map(File::from).map_err(|error| not_opened(path, link, error))?;
    let stat = rustix::fs::fstat(&file).map_err(|error| not_read(path, error.into()))?;
    let is_read_only = rustix::fs::fstatvfs(&file).is_ok_and(|mount| mount.f_flag.contains(StatVfsMountFlags::RDONLY));
    check(path, &stat, rustix::process::geteuid().as_raw(), is_read_only)?;
    Ok((file, stat))
}

impl Link {
    fn flag(self) -> OFlags {
        match self {
            Self::Follow => OFlags::empty(),
            Self::Refuse => OFlags::NOFOLLOW,
        }
    }
}

fn not_opened(path: &Path, link: Link, error: Errno) -> PrivateFileError {
    let found = if error == Errno::ACCESS { inspect(path, link) } else { None };
    let (path, user) = (path.to_owned(), rustix::process::geteuid().as_raw());
    match (error, found) {
        (Errno::ACCESS, Some(found)) => {
            PrivateFileError::Denied { path, owner: found.st_uid, group: found.st_gid, mode: found.st_mode & 0o7777, user }
        }
        (Errno::LOOP, _) if link == Link::Refuse => PrivateFileError::SymbolicLink { path },
        (Errno::NXIO, _) => PrivateFileError::NotRegular { path }, // a socket, or a device that is not there
        (error, _) => PrivateFileError::Open { path, source: error.into() },
    }
}

/// Owner and mode of a file that may not be read, for the error alone.
fn inspect(path: &Path, link: Link) -> Option<Stat> {
    let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC | link.flag(), Mode::empty()).ok()?;
    rustix::fs::fstat(&file).ok()
}

fn not_read(path: &Path, source: io::Error) -> PrivateFileError {
    PrivateFileError::Read { path: path.to_owned(), source }
}

/// The rules, for a process whose effective user is `user`.
fn check(path: &Path, stat: &Stat, user: u32, is_read_only: bool) -> Result<(), PrivateFileError> {
    let (path, owner, mode) = (path.to_owned(), stat.st_uid, stat.st_mode & 0o7777);
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(PrivateFileError::NotRegular { path });
    }
    if owner != user && owner != 0 {
        return Err(PrivateFileError::Owner { path, owner, mode, user });
    }
    let forbidden = if owner == 0 { BEYOND_READING_BY_GROUP } else { OF_GROUP_AND_OTHERS };
    match mode & forbidden {
        0 => Ok(()),
        _ => Err(PrivateFileError::Mode { path, owner, mode, user, is_read_only }),
    }
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
    use std::path::PathBuf;

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
    fn a_file_that_others_can_open_is_refused_with_its_mode() {
        for mode in [0o604, 0o620, 0o601, 0o610, 0o644, 0o666, 0o777] {
            let folder = Folder::new();
            let path = folder.file(mode, b"secret");
            let error = read_private(&path, MAX).unwrap_err();
            assert!(
                matches!(&error, PrivateFileError::Mode { mode: seen, path: named, .. } if (*seen, named) == (mode, &path)),
                "{error:?}"
            );
            assert!(error.to_string().contains(&format!("has mode 0{mode:o}")), "{error}");
            assert_eq!(error.advice(), format!("chmod 600 {}", path.display()));
        }
    }

    /// What is read: `(owner, mode)`, for a process of user 1000 and for one of root.
    #[test]
    fn the_rule_is_that_of_postgresql() {
        let folder = Folder::new();
        let mut stat = rustix::fs::stat(folder.file(0o600, b"")).unwrap();
        let mut allows = |owner, mode, user| {
            (stat.st_uid, stat.st_mode) = (owner, FileType::RegularFile.as_raw_mode() | mode);
            check(Path::new("key"), &stat, user, false).is_ok()
        };
        for mode in 0..=0o777 {
            assert_eq!(allows(1_000, mode, 1_000), mode & 0o077 == 0, "its own, {mode:o}");
            assert!(!allows(1_001, mode, 1_000) && !allows(1_000, mode, 0), "somebody else's, {mode:o}");
            for user in [0, 1_000] {
                assert_eq!(allows(0, mode, user), mode & 0o037 == 0, "root's, {mode:o}");
            }
        }
    }

    #[test]
    fn a_link_to_a_private_file_is_read_but_not_where_the_file_is_written_too() {
        let folder = Folder::new();
        let (target, link, dangling) = (folder.file(0o600, b"secret"), folder.path("link"), folder.path("dangling"));
        symlink(&target, &link).unwrap();
        symlink(folder.path("nowhere"), &dangling).unwrap();
        assert_eq!(*read_private(&link, MAX).unwrap(), b"secret");
        check_private(&link, Link::Follow).unwrap();
        assert!(read_private(&dangling, MAX).unwrap_err().is_not_found());
        for path in [&link, &dangling] {
            let refused = check_private(path, Link::Refuse);
            assert!(matches!(refused, Err(PrivateFileError::SymbolicLink { .. })), "{}", path.display());
        }
        fs::set_permissions(&target, Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(read_private(&link, MAX), Err(PrivateFileError::Mode { mode: 0o644, .. })), "what was opened counts");
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
    fn each_refusal_says_what_was_found_and_what_can_be_done_there() {
        let path = Path::new("key");
        let folder = Folder::new();
        let mut stat = rustix::fs::stat(folder.file(0o600, b"")).unwrap();
        let mut refused = |owner, mode, user, is_read_only| {
            (stat.st_uid, stat.st_mode) = (owner, FileType::RegularFile.as_raw_mode() | mode);
            let error = check(path, &stat, user, is_read_only).unwrap_err();
            (error.to_string(), error.advice())
        };
        let root_may = "a private file of root may be readable to its group (0640) and must be closed to everybody else";
        let closed = "a private file must be closed to its group and to others (0600)";
        for (owner, mode, user, is_read_only, told, advice) in [
            (1_000, 0o640, 1_000, false, format!("key belongs to user 1000 and has mode 0640: {closed}"), "chmod 600 key"),
            (
                1_000,
                0o444,
                1_000,
                true,
                format!("key belongs to user 1000 and has mode 0444: {closed}"),
                "the mount is read-only: set the mode 0400 where the file is mounted from (in Kubernetes, `defaultMode: 0400`)",
            ),
            (0, 0o644, 0, false, format!("key belongs to root and has mode 0644: {root_may}"), "chmod 600 key"),
            (0, 0o644, 1_000, false, format!("key belongs to root and has mode 0644: {root_may}"), "as root: chmod 640 key"),
            (
                0,
                0o444,
                1_000,
                true,
                format!("key belongs to root and has mode 0444: {root_may}"),
                "the mount is read-only: set the mode 0440 where the file is mounted from (in Kubernetes, `defaultMode: 0440` and `fsGroup`)",
            ),
            (
                1_000,
                0o600,
                1_001,
                false,
                "key belongs to user 1000 and has mode 0600: a private file must belong to user 1001 or root".to_owned(),
                "run this as user 1000, or name a copy of your own (install -m 600 key COPY), or as root: chown 1001 key",
            ),
            (
                1_000,
                0o600,
                0,
                false,
                "key belongs to user 1000 and has mode 0600: a private file must belong to root".to_owned(),
                "chown root key, or run this as user 1000",
            ),
        ] {
            assert_eq!(refused(owner, mode, user, is_read_only), (told, advice.to_owned()));
        }
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
