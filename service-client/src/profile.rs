//! The profile: the relay's join string and the caller's token, in a file that only its owner may read.
//!
//! ```text
//! join  = "https://relay.example.com#ca=…"
//! token = "eyJ…"
//! ```
//!
//! Owns: reading and writing that file. Programs choose the file, and what overrides it.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use moorline_files::{PrivateFileError, ReplaceError};
use moorline_proto::join::{Join, RelayUrlError};
use moorline_proto::pasted::{Form, WrongForm};
use moorline_proto::secret::Secret;
use serde::{Deserialize, Serialize};

/// Bytes of an `Authorization` header that a relay accepts.
const TOKEN_BYTES: usize = 8 * 1024;
/// Bytes of a profile: a join string, a token and comments.
const PROFILE_BYTES: usize = 64 * 1024;
/// Read and write for the owner alone.
const PRIVATE: u32 = 0o600;

/// A relay and the caller's token for it.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The relay's address and CA.
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
    /// Something else that people paste: a join string, a key.
    #[error(transparent)]
    Other(#[from] WrongForm),
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
    /// The file cannot be read, or is not private: see [`moorline_files::read_private`].
    #[error("cannot use the profile")]
    File(#[source] PrivateFileError),
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
    /// The file could not be written, or is not one of this user.
    #[error("cannot write the profile")]
    Write(#[source] ReplaceError),
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
    /// [`LoadProfileError`], for example [`LoadProfileError::File`] if others have any permission on the file.
    pub fn load(path: &Path) -> Result<Self, LoadProfileError> {
        let bytes = moorline_files::read_private(path, PROFILE_BYTES).map_err(|error| match error.is_not_found() {
            true => LoadProfileError::Missing { path: path.to_owned() },
            false => LoadProfileError::File(error),
        })?;
        let path = || path.to_owned();
        let text = std::str::from_utf8(&bytes).map_err(|error| LoadProfileError::Form { path: path(), detail: error.to_string() })?;
        let written: Written =
            toml::from_str(text).map_err(|error| LoadProfileError::Form { path: path(), detail: error.message().to_owned() })?;
        let join = written.join.parse().map_err(|source| LoadProfileError::Join { path: path(), source })?;
        let token = parse_token(written.token.reveal()).map_err(|source| LoadProfileError::Token { path: path(), source })?;
        Ok(Self { join, token })
    }

    /// Writes the profile with mode 0600 and atomically: a reader sees the old file or the new one. Missing folders get mode 0700. A symbolic
    /// link stays, and the file that it leads to is written. Returns the path of the file that was written.
    ///
    /// # Errors
    /// [`SaveProfileError`].
    pub fn save(&self, path: &Path) -> Result<PathBuf, SaveProfileError> {
        #[derive(Serialize)]
        struct Out<'a> {
            join: String,
            token: &'a str,
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|source| SaveProfileError::Folder { path: folder.to_owned(), source })?;

        let out = Out { join: self.join.to_string(), token: self.token.reveal() }; // to its owner's own file
        let text = Secret::new(toml::to_string(&out).expect("two strings are a table of TOML"));
        moorline_files::replace(path, PRIVATE, text.reveal().as_bytes()).map_err(SaveProfileError::Write) // to its owner's own file
    }
}

/// Parses a token from a file or variable. Surrounding white space is ignored.
///
/// # Errors
/// [`TokenError`].
pub fn parse_token(text: &str) -> Result<Secret, TokenError> {
    Form::Token.check(text)?;
    let token = text.trim();
    match token.len() {
        0 => Err(TokenError::Empty),
        got if got > TOKEN_BYTES => Err(TokenError::TooLong { got }),
        _ if token.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(Secret::new(token)),
        _ => Err(TokenError::Form),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

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
    fn a_saved_profile_loads_and_is_private() {
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
    fn a_failed_save_keeps_the_old_file_and_leaves_no_temporary_file() {
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
        for exposed in [0o644, 0o604, 0o620, 0o602, 0o610, 0o777] {
            fs::set_permissions(&path, fs::Permissions::from_mode(exposed)).unwrap();
            let error = Profile::load(&path).unwrap_err();
            assert!(
                matches!(error, LoadProfileError::File(PrivateFileError::Mode { mode, .. }) if mode == exposed),
                "{exposed:o}: {error}"
            );
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        Profile::load(&path).unwrap();
    }

    #[test]
    fn a_profile_is_a_regular_file_or_a_link_to_one() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("profile.toml"), folder.path().join("link.toml"));
        profile().save(&file).unwrap();
        symlink(&file, &link).unwrap();
        Profile::load(&link).unwrap();
        assert!(matches!(Profile::load(folder.path()), Err(LoadProfileError::File(_))));

        fs::remove_file(&file).unwrap();
        assert_eq!(profile().save(&link).unwrap(), file, "the link stays, and leads to the profile");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        fs::write(&file, vec![b'#'; PROFILE_BYTES + 1]).unwrap();
        assert!(matches!(Profile::load(&file), Err(LoadProfileError::File(PrivateFileError::TooLarge { .. }))));
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
            moorline_files::create(&path, PRIVATE, text.as_bytes()).unwrap();
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
        assert_eq!(parse_token(JOIN), Err(TokenError::Other(WrongForm { wanted: Form::Token, found: Form::JoinString })));
        assert_eq!(parse_token(&"x".repeat(8193)), Err(TokenError::TooLong { got: 8193 }));
    }
}
