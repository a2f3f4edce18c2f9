//! The profile: the relay's join string and the caller's token, in a file that only its owner may read.
//!
//! ```text
//! join  = "https://relay.example.com#ca=…"
//! token = "eyJ…"
//! ```
//!
//! Owns: reading and writing that file. Programs choose the file, and what overrides it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use moorline_proto::join::{Join, RelayUrlError};
use moorline_proto::secret::Secret;
use serde::{Deserialize, Serialize};

/// Bytes of an `Authorization` header that a relay accepts.
const TOKEN_BYTES: usize = 8 * 1024;
/// Bytes of a profile: a join string, a token and comments.
const PROFILE_BYTES: u64 = 64 * 1024;
/// Permission bits of the group and of others.
const NOT_THE_OWNER: u32 = 0o077;

/// A relay and the caller's token for it.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Where the relay is, and whom to trust there.
    pub join: Join,
    /// The caller's token.
    pub token: Secret,
}

/// Text that cannot be a bearer token. The error does not quote it, because it may contain most of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Only white space.
    #[error("the token is empty")]
    Empty,
    /// Longer than a header may be.
    #[error("the token has {got} bytes, at most {TOKEN_BYTES} are possible")]
    TooLong {
        /// Its length in bytes.
        got: usize,
    },
    /// Several words or lines, or not visible ASCII.
    #[error("a token is one word of visible ASCII characters")]
    Form,
}

/// Why a profile could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadProfileError {
    /// The file does not exist.
    #[error("no profile at {}", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// Users other than the owner have access to the file.
    #[error("the profile {} has mode {mode:03o}: users other than its owner have access", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file could not be read.
    #[error("cannot read the profile {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The file is not a valid profile. The error never quotes the file, which contains a token.
    #[error("the profile {} is not valid: {detail}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// Its `join` is not a join string.
    #[error("the join string in {} is not valid", path.display())]
    Join {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: RelayUrlError,
    },
    /// Its `token` is not a token.
    #[error("the token in {} is not valid", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: TokenError,
    },
}

/// Why a profile could not be written. The previous file is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum SaveProfileError {
    /// The folder could not be created.
    #[error("cannot create the folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The file could not be written.
    #[error("cannot write the profile {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// The contents of the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    join: String,
    token: Secret,
}

impl Profile {
    /// Reads a profile.
    ///
    /// # Errors
    /// [`LoadProfileError`], for example [`LoadProfileError::Exposed`] if the group or others have any permission on the file.
    pub fn load(path: &Path) -> Result<Self, LoadProfileError> {
        let text = read_private(path)?;
        let path = || path.to_owned();
        let written: Written =
            toml::from_str(&text).map_err(|error| LoadProfileError::Form { path: path(), detail: error.message().to_owned() })?;
        let join = written.join.parse().map_err(|source| LoadProfileError::Join { path: path(), source })?;
        let token = parse_token(written.token.reveal()).map_err(|source| LoadProfileError::Token { path: path(), source })?;
        Ok(Self { join, token })
    }

    /// Writes the profile with mode 0600 and atomically: a reader sees the old file or the new one. Missing folders get mode 0700.
    ///
    /// # Errors
    /// [`SaveProfileError`].
    pub fn save(&self, path: &Path) -> Result<(), SaveProfileError> {
        #[derive(Serialize)]
        struct Out<'a> {
            join: String,
            token: &'a str,
        }
        let failed = |source| SaveProfileError::Write { path: path.to_owned(), source };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|source| SaveProfileError::Folder { path: folder.to_owned(), source })?;

        let name = path.file_name().ok_or_else(|| failed(io::Error::from(io::ErrorKind::IsADirectory)))?;
        let out = Out { join: self.join.to_string(), token: self.token.reveal() }; // to its owner's own file
        let text = toml::to_string(&out).map_err(|error| failed(io::Error::other(error)))?;
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{:016x}", rand::random::<u64>()));
        let temporary = folder.join(temporary);
        write_new(&temporary, &text).and_then(|()| fs::rename(&temporary, path)).map_err(|source| {
            drop(fs::remove_file(&temporary)); // the write error matters more
            failed(source)
        })
    }
}

/// Parses a token from a file or variable. Surrounding white space is ignored.
///
/// # Errors
/// [`TokenError`].
pub fn parse_token(text: &str) -> Result<Secret, TokenError> {
    let token = text.trim();
    match token.len() {
        0 => Err(TokenError::Empty),
        got if got > TOKEN_BYTES => Err(TokenError::TooLong { got }),
        _ if token.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(Secret::new(token)),
        _ => Err(TokenError::Form),
    }
}

/// Checks the permissions of the opened file, so that the file cannot be replaced between check and read.
fn read_private(path: &Path) -> Result<String, LoadProfileError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => LoadProfileError::Missing { path: path.to_owned() },
        _ => LoadProfileError::Io { path: path.to_owned(), source },
    };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if mode & NOT_THE_OWNER != 0 {
        return Err(LoadProfileError::Exposed { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    file.take(PROFILE_BYTES).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOIN: &str = concat!(
        "https://relay.example.com:8443#ca=",
        "MIIBMjCB2KADAgECAgEBMAoGCCqGSM49BAMCMBgxFjAUBgNVBAMMDWFuIGV4YW1wbGUgQ0EwHhcNMjYwMTAxMDAwMDAwWhcNMzYw",
        "MTAxMDAwMDAwWjAYMRYwFAYDVQQDDA1hbiBleGFtcGxlIENBMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEf83OJ3D2xF1Bg8vu",
        "b9tLe1gHMzV76e8Tus9uPHvRVEXH8UTNG72bfocs3-257rn0s2ldbqkLJK2KRiMohYjlraMTMBEwDwYDVR0TAQH_BAUwAwEB_zAK",
        "BggqhkjOPQQDAgNJADBGAiEAusGZpnXEdvpxcQO_Bup6Q_o1-DwoP1ZPt3q33ml1b9ECIQD1SUJJ-Pmm8y-pIoTUh0O1LAPsQT-2",
        "oBzYZalVUb4Z_g",
    );

    fn profile() -> Profile {
        Profile { join: JOIN.parse().unwrap(), token: Secret::new("eyJ.very.secret") }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_was_saved_is_loaded_and_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/moorline/profile.toml");
        profile().save(&path).unwrap();

        let loaded = Profile::load(&path).unwrap();
        assert_eq!((loaded.join, loaded.token), (profile().join, profile().token));
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    }

    #[test]
    fn saving_again_replaces_an_exposed_file_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("profile.toml");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        profile().save(&path).unwrap();

        assert_eq!(mode(&path), 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_save_leaves_the_old_one_and_no_rubbish() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), "").unwrap();

        assert!(matches!(profile().save(&path), Err(SaveProfileError::Write { .. })));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_profile_that_others_may_use_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("profile.toml");
        profile().save(&path).unwrap();
        for exposed in [0o640, 0o604, 0o620, 0o602, 0o610, 0o777] {
            fs::set_permissions(&path, fs::Permissions::from_mode(exposed)).unwrap();
            let error = Profile::load(&path).unwrap_err();
            assert!(matches!(error, LoadProfileError::Exposed { mode, .. } if mode == exposed), "{exposed:o}: {error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        Profile::load(&path).unwrap();
    }

    #[test]
    fn errors_never_quote_the_token() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("profile.toml");
        let texts = [
            "token = \"hidden-word\"\n",
            "join = \"https://a\"\ntoken = \"hidden-word\n",
            "join = \"https://a\"\ntoken = \"hidden-word\"\nmore = 1\n",
            "join = \"ftp://a\"\ntoken = \"hidden-word\"\n",
            "join = \"https://a\"\ntoken = \"hidden-word two\"\n",
        ];
        for text in texts {
            write_new(&path, text).unwrap();
            let error = Profile::load(&path).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hidden"), "{error:?}");
            fs::remove_file(&path).unwrap();
        }
        assert!(matches!(Profile::load(&path), Err(LoadProfileError::Missing { .. })));
    }

    #[test]
    fn a_token_is_one_word() {
        assert_eq!(parse_token(" abc\n"), Ok(Secret::new("abc")));
        assert_eq!(parse_token("\n"), Err(TokenError::Empty));
        assert_eq!(parse_token("a b"), Err(TokenError::Form));
        assert_eq!(parse_token("schlüssel"), Err(TokenError::Form));
        assert_eq!(parse_token(&"x".repeat(8193)), Err(TokenError::TooLong { got: 8193 }));
    }
}
