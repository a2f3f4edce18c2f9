//! Why a private file is not used, and what its user can do about it.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a file is not used as a private one. Causes are in `source()`.
#[derive(Debug, thiserror::Error)]
pub enum PrivateFileError {
    /// The system refused to open it.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// This user may not read it.
    #[error("{} belongs to {}, group {group}, and has mode {mode:04o}: {} may not read it", path.display(), User(*owner), User(*user))]
    Denied {
        /// The file.
        path: PathBuf,
        /// User id of its owner.
        owner: u32,
        /// Its group id.
        group: u32,
        /// Its permission bits.
        mode: u32,
        /// User id that this process has: its effective one.
        user: u32,
    },
    /// The path ends in a symbolic link, and the file is one that is written too.
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
    #[error(
        "{} belongs to {} and has mode {mode:04o}: a private file must belong to {}{}",
        path.display(), User(*owner), User(*user), or_root(*user)
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// User id of its owner.
        owner: u32,
        /// Its permission bits.
        mode: u32,
        /// User id that this process has: its effective one.
        user: u32,
    },
    /// Somebody besides its owner may do more with it than is allowed.
    #[error("{} belongs to {} and has mode {mode:04o}: {}", path.display(), User(*owner), rule(*owner))]
    Mode {
        /// The file.
        path: PathBuf,
        /// User id of its owner.
        owner: u32,
        /// Its permission bits.
        mode: u32,
        /// User id that this process has: its effective one.
        user: u32,
        /// Whether the file is on a mount that is read-only, so that its mode cannot be changed here.
        is_read_only: bool,
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
        /// What the system said.
        source: io::Error,
    },
}

impl PrivateFileError {
    /// Whether there is no such file.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// What to do about it. It can be done where the file is: nobody is told to change the mode of a file that is not theirs.
    pub fn advice(&self) -> String {
        match self {
            Self::Mode { is_read_only: true, owner, .. } => {
                let mode = if *owner == 0 { "0440" } else { "0400" };
                format!(
                    "the mount is read-only: set the mode {mode} where the file is mounted from (in Kubernetes, `defaultMode: {mode}`{})",
                    if *owner == 0 { " and `fsGroup`" } else { "" }
                )
            }
            Self::Mode { path, owner, user, .. } if owner == user => format!("chmod 600 {}", path.display()),
            Self::Mode { path, .. } => format!("as root: chmod 640 {}", path.display()),
            Self::Owner { path, owner, user: 0, .. } => format!("chown root {}, or run this as {}", path.display(), User(*owner)),
            Self::Owner { path, owner, user, .. } => {
                let path = path.display();
                format!(
                    "run this as {}, or name a copy of your own (install -m 600 {path} COPY), or as root: chown {user} {path}",
                    User(*owner)
                )
            }
            Self::Denied { path, user, .. } => {
                let path = path.display();
                format!("as root: chown {user} {path}, or leave it to root, and chgrp it to a group of this user and chmod 640 it")
            }
            Self::SymbolicLink { .. } => "name the file that the link leads to".to_owned(),
            Self::NotRegular { .. } | Self::TooLarge { .. } => "name a regular file with the secret and nothing else".to_owned(),
            Self::Open { path, source } if source.kind() == io::ErrorKind::PermissionDenied => {
                format!("let this user search the folders that lead to {}", path.display())
            }
            Self::Open { .. } | Self::Read { .. } => "check that the file exists and that its disk can be read".to_owned(),
        }
    }
}

/// What the mode of a file of this owner may be.
fn rule(owner: u32) -> &'static str {
    match owner {
        0 => "a private file of root may be readable to its group (0640) and must be closed to everybody else",
        _ => "a private file must be closed to its group and to others (0600)",
    }
}

fn or_root(user: u32) -> &'static str {
    if user == 0 { "" } else { " or root" }
}

/// A user in a sentence.
struct User(u32);

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("root"),
            id => write!(f, "user {id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_opened_is_told_with_its_owner_or_with_what_the_system_said() {
        let denied = PrivateFileError::Denied { path: "key".into(), owner: 0, group: 7, mode: 0o400, user: 1_000 };
        assert_eq!(denied.to_string(), "key belongs to root, group 7, and has mode 0400: user 1000 may not read it");
        let advice = "as root: chown 1000 key, or leave it to root, and chgrp it to a group of this user and chmod 640 it";
        assert_eq!(denied.advice(), advice);
        for (kind, advice) in [
            (io::ErrorKind::PermissionDenied, "let this user search the folders that lead to key"),
            (io::ErrorKind::NotFound, "check that the file exists and that its disk can be read"),
        ] {
            let error = PrivateFileError::Open { path: "key".into(), source: kind.into() };
            assert_eq!((error.to_string().as_str(), error.advice().as_str()), ("cannot open key", advice));
        }
    }
}
