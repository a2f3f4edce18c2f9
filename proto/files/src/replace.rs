//! Replacing a private file as a whole: a reader sees the old content or the new one.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// Symbolic links that are followed one after the other, as many as Linux follows.
const MAX_LINKS: usize = 40;
/// Names that are tried for the new file before it has its own.
const MAX_NAMES: u32 = 100;

/// Why a file was not replaced. The old one is unchanged, and nothing was left beside it.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// The file, or a symbolic link that leads to it, belongs to somebody else.
    #[error("{} belongs to user {owner}, not to this user ({user})", path.display())]
    Owner {
        /// The file or the link.
        path: PathBuf,
        /// User id of its owner.
        owner: u32,
        /// User id that this process has: its effective one.
        user: u32,
    },
    /// A directory, a pipe, a socket or a device.
    #[error("{} is not a regular file", path.display())]
    NotRegular {
        /// What is there.
        path: PathBuf,
    },
    /// The system refused it.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl ReplaceError {
    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Owner { .. } => "run this as the file's owner, or name a file of your own",
            Self::NotRegular { .. } => "name a regular file, or one that does not exist yet",
            Self::Write { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "create the folder that the symbolic link leads into, or name another file"
            }
            Self::Write { .. } => "check that you may write to the file's folder, and that its disk has room",
        }
    }
}

/// Replaces a file, or creates it, with these permission bits and this content. Returns the path of the file that was written, once it is on
/// disk under its name.
///
/// A symbolic link stays, and the file that it leads to is replaced, or created. Each link must belong to the effective user or to root; a
/// file that is there already must be a regular one of the effective user.
///
/// Blocks on the disk.
///
/// # Errors
/// [`ReplaceError`].
pub fn replace(path: impl AsRef<Path>, mode: u32, bytes: &[u8]) -> Result<PathBuf, ReplaceError> {
    let target = Target::find(path.as_ref(), rustix::process::geteuid().as_raw())?;
    target.write(Mode::from_raw_mode(mode & 0o777), bytes).map_err(|source| ReplaceError::Write { path: target.path.clone(), source })?;
    Ok(target.path)
}

/// The file behind all links: an open directory and a name in it, so that nothing on the way there is followed a second time.
struct Target {
    path: PathBuf,
    folder: File,
    name: OsString,
}

impl Target {
    fn find(path: &Path, user: u32) -> Result<Self, ReplaceError> {
        let mut path = path.to_owned();
        for _ in 0..=MAX_LINKS {
            let failed = |source: io::Error| ReplaceError::Write { path: path.clone(), source };
            let name = path.file_name().ok_or_else(|| failed(io::ErrorKind::IsADirectory.into()))?.to_owned();
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let folder = rustix::fs::open(&parent, flags, Mode::empty()).map(File::from).map_err(|error| failed(error.into()))?;
            let found = match rustix::fs::statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(found) => found,
                Err(Errno::NOENT) => return Ok(Self { path, folder, name }),
                Err(error) => return Err(failed(error.into())),
            };
            if !check(&path, &found, user)? {
                return Ok(Self { path, folder, name });
            }
            let link = rustix::fs::readlinkat(&folder, &name, Vec::new()).map_err(|error| failed(error.into()))?;
            path = parent.join(OsString::from_vec(link.into_bytes()));
        }
        Err(ReplaceError::Write { path, source: Errno::LOOP.into() })
    }

    fn write(&self, mode: Mode, bytes: &[u8]) -> io::Result<()> {
        let (name, mut file) = self.temporary(mode)?;
        let filled = (|| {
            rustix::fs::fchmod(&file, mode)?; // the umask has taken bits away
            file.write_all(bytes)?;
            file.sync_all()?;
            rustix::fs::renameat(&self.folder, &name, &self.folder, &self.name)?;
            Ok(())
        })();
        if filled.is_err() {
            rustix::fs::unlinkat(&self.folder, &name, AtFlags::empty()).ok(); // the error to report is the first one
            return filled;
        }
        match self.folder.sync_all() {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()), // a file system that cannot
            done => done,
        }
    }

    /// A new file beside the old one. What a killed process left behind has its name and is not touched.
    fn temporary(&self, mode: Mode) -> io::Result<(OsString, File)> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for number in 0..MAX_NAMES {
            let name =
                [OsStr::new("."), &self.name, OsStr::new(&format!(".{}.{number}", std::process::id()))].into_iter().collect::<OsString>();
            match rustix::fs::openat(&self.folder, &name, flags, mode) {
                Ok(file) => return Ok((name, file.into())),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::EXIST.into())
    }
}

/// Whether it is a link, for a process whose effective user is `user`.
fn check(path: &Path, found: &Stat, user: u32) -> Result<bool, ReplaceError> {
    let owner = found.st_uid;
    match FileType::from_raw_mode(found.st_mode) {
        FileType::Symlink if owner == user || owner == 0 => Ok(true),
        FileType::RegularFile if owner == user => Ok(false),
        FileType::Symlink | FileType::RegularFile => Err(ReplaceError::Owner { path: path.to_owned(), owner, user }),
        _ => Err(ReplaceError::NotRegular { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    /// The names in a folder.
    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_created_and_replaced_with_exactly_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p");
        assert_eq!(replace(&path, 0o600, b"first").unwrap(), path);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        replace(&path, 0o600, b"second").unwrap();
        assert_eq!((fs::read(&path).unwrap(), mode(&path), names(folder.path())), (b"second".to_vec(), 0o600, vec!["p".to_owned()]));
    }

    #[test]
    fn links_stay_and_the_file_behind_them_is_replaced_or_created() {
        let folder = tempfile::tempdir().unwrap();
        let (dotfiles, config) = (folder.path().join("dotfiles"), folder.path().join("config"));
        for folder in [&dotfiles, &config] {
            fs::create_dir(folder).unwrap();
        }
        let (link, second) = (config.join("p"), config.join("q"));
        symlink("../dotfiles/p", &link).unwrap(); // leads nowhere yet
        symlink(&link, &second).unwrap();
        for (path, content) in [(&link, "first"), (&second, "second")] {
            let written = replace(path, 0o600, content.as_bytes()).unwrap();
            assert_eq!(fs::canonicalize(written).unwrap(), fs::canonicalize(dotfiles.join("p")).unwrap());
            assert_eq!((fs::read_to_string(dotfiles.join("p")).unwrap().as_str(), mode(&dotfiles.join("p"))), (content, 0o600));
        }
        assert!(link.is_symlink() && second.is_symlink());
        assert_eq!((names(&dotfiles), names(&config)), (vec!["p".to_owned()], vec!["p".to_owned(), "q".to_owned()]));
    }

    #[test]
    fn what_cannot_be_replaced_is_refused_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("folder")).unwrap();
        symlink("folder", path("to-folder")).unwrap();
        symlink("circle", path("circle")).unwrap();
        symlink("missing/p", path("to-nowhere")).unwrap();
        let before = names(folder.path());
        for name in ["folder", "to-folder"] {
            assert!(matches!(replace(path(name), 0o600, b""), Err(ReplaceError::NotRegular { .. })), "{name}");
        }
        for name in ["circle", "to-nowhere", "missing/p", ".."] {
            assert!(matches!(replace(path(name), 0o600, b""), Err(ReplaceError::Write { .. })), "{name}");
        }
        assert!(replace(path("to-nowhere"), 0o600, b"").unwrap_err().advice().contains("symbolic link"));
        assert_eq!(names(folder.path()), before);
    }

    #[test]
    fn files_and_links_of_somebody_else_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p");
        let mut found = rustix::fs::stat(folder.path()).unwrap();
        let mut checked = |kind: FileType, owner, user| {
            (found.st_uid, found.st_mode) = (owner, kind.as_raw_mode() | 0o600);
            check(&path, &found, user).map_err(|error| error.to_string())
        };
        let refused = |owner, user| Err(format!("{} belongs to user {owner}, not to this user ({user})", path.display()));
        for user in [0, 1_000] {
            assert_eq!(checked(FileType::RegularFile, user, user), Ok(false));
            assert_eq!(checked(FileType::Symlink, user, user), Ok(true));
            assert_eq!(checked(FileType::RegularFile, 1_001, user), refused(1_001, user));
            assert_eq!(checked(FileType::Symlink, 1_001, user), refused(1_001, user));
        }
        assert_eq!(checked(FileType::Symlink, 0, 1_000), Ok(true));
        assert_eq!(checked(FileType::RegularFile, 0, 1_000), refused(0, 1_000));
    }

    #[test]
    fn what_a_killed_process_left_behind_is_no_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join(format!(".p.{}.0", std::process::id()));
        fs::write(&left, "left").unwrap();
        replace(folder.path().join("p"), 0o600, b"new").unwrap();
        assert_eq!(fs::read_to_string(left).unwrap(), "left");
    }
}
