//! Selects relay and token: the environment comes before the profile. The library reads and writes the profile itself.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use moorline::profile::{LoadProfileError, Profile, TokenError, parse_token};
use moorline::{Client, Join, RelayUrlError, Secret};
use moorline_files::Blocking;
use moorline_proto::pasted::Form;

use crate::cli::Sources;
use crate::environment::Environment;
use crate::exit::{Exit, Failure};
use crate::output::Output;

/// The most bytes of a file with a join string, a token or a key.
const FILE_BYTES: usize = 64 * 1024;
/// Names standard input in place of a file.
const STDIN: &str = "-";

/// The sources of the credentials.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    pub(crate) sources: Sources,
    pub(crate) environment: Environment,
}

impl Credentials {
    /// A client with the selected credentials. It reads a token that comes from a file again once that has expired.
    ///
    /// # Errors
    /// There are no credentials, or they cannot be used.
    pub(crate) fn client(&self, output: &Output) -> Result<Client, Failure> {
        let profile = self.profile()?;
        let client = Client::new(&profile.join, Some(profile.token)).map_err(|error| {
            let failure = Failure::new(Exit::Credentials, "the join string cannot be used").caused_by(&error);
            failure.next(error.advice())
        })?;
        if !self.has_token_file() {
            return Ok(client);
        }
        let (this, output, join) = (self.clone(), output.clone(), profile.join);
        Ok(client.with_token_source(move || {
            this.renewed_token(&join).map_err(|failure| {
                output.failure(&failure);
                "the credentials cannot be used".into()
            })
        }))
    }

    /// Whether the token comes from a file, so that another one can come while the program runs.
    fn has_token_file(&self) -> bool {
        self.sources.token_file.is_some() || self.environment.token.is_none()
    }

    /// How the user of a program that goes on running gives it another token.
    pub(crate) fn renewal_advice(&self) -> String {
        match (&self.sources.token_file, &self.environment.token) {
            (Some(path), _) => format!("put a new one into {}: new connections take it", path.display()),
            (None, None) => "log in with a new one (`moorline login`): new connections take it".to_owned(),
            (None, Some(_)) => {
                "set MOORLINE_TOKEN to a new one and start this again; a profile or a --token-file would be read again".to_owned()
            }
        }
    }

    /// Says where to put another token than the one that was refused, if `moorline login` would change nothing.
    pub(crate) fn explain(&self, failure: Failure) -> Failure {
        let place = match (&self.sources.token_file, &self.environment.token) {
            _ if !failure.is_token_refused => return failure,
            (Some(path), _) => format!("put it into {}", path.display()),
            (None, Some(_)) => "set MOORLINE_TOKEN to it, or unset that: it comes before the profile".to_owned(),
            (None, None) => return failure,
        };
        failure.next(format!("get another token from the relay's operator (`moorline-relay token new`), and {place}"))
    }

    /// The selected token as it is now, for the relay of `join`.
    fn renewed_token(&self, join: &Join) -> Result<Secret, Failure> {
        let profile = self.profile()?;
        if profile.join != *join {
            let failure = Failure::new(Exit::Credentials, "the token has expired, and the profile is for another relay now");
            return Err(failure.next("start this again to use that relay, or log in to the old one"));
        }
        Ok(profile.token)
    }

    /// The path of the profile.
    ///
    /// # Errors
    /// There is no home folder.
    pub(crate) fn path(&self) -> Result<PathBuf, Failure> {
        self.sources.profile.clone().or_else(|| self.environment.default_profile()).ok_or_else(|| {
            Failure::new(Exit::Credentials, "there is no home folder for the profile")
                .next("name a file with --profile or MOORLINE_PROFILE")
        })
    }

    /// The token that overrides the profile's.
    ///
    /// # Errors
    /// The file or variable does not contain a token.
    pub(crate) fn given_token(&self) -> Result<Option<Secret>, Failure> {
        if let Some(path) = &self.sources.token_file {
            let text = read_secret(path)?;
            let token = parse_token(&text).map_err(|error| not_a_token(&path.display().to_string(), &error))?;
            return Ok(Some(token));
        }
        let Some(text) = &self.environment.token else { return Ok(None) };
        // Text that is not UTF-8 becomes text that is not a token.
        parse_token(&text.to_string_lossy()).map(Some).map_err(|error| not_a_token("MOORLINE_TOKEN", &error))
    }

    fn profile(&self) -> Result<Profile, Failure> {
        if self.sources.token_file.as_deref().is_some_and(is_stdin) {
            return Err(Failure::new(Exit::Usage, "only `moorline login` reads a token from standard input"));
        }
        let token = self.given_token()?;
        let Some(join) = &self.environment.join else {
            let profile = self.load()?;
            return Ok(Profile { token: token.unwrap_or(profile.token), ..profile });
        };
        let join = parse_join("MOORLINE_JOIN", &join.to_string_lossy())?;
        // The profile's token is for the profile's relay and is not sent to another one.
        let token = token.ok_or_else(|| {
            Failure::new(Exit::Credentials, "MOORLINE_JOIN is set, but no token for that relay")
                .next("set MOORLINE_TOKEN too, or name a --token-file")
        })?;
        Ok(Profile { join, token })
    }

    fn load(&self) -> Result<Profile, Failure> {
        let path = self.path()?;
        Profile::load(&path).map_err(|error| {
            let next = match &error {
                LoadProfileError::Missing { .. } => {
                    "write it with `moorline login --join FILE --token-file FILE`, or set MOORLINE_JOIN and MOORLINE_TOKEN".to_owned()
                }
                LoadProfileError::File(error) => error.advice(),
                LoadProfileError::Form { .. } | LoadProfileError::Join { .. } | LoadProfileError::Token { .. } => {
                    "write it again with `moorline login`".to_owned()
                }
            };
            credentials_failure("no credentials", &error).next(next)
        })
    }
}

fn credentials_failure(what: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new(Exit::Credentials, what).caused_by(error)
}

fn not_a_token(place: &str, error: &TokenError) -> Failure {
    let next = match error {
        TokenError::Other(form) => form.advice(),
        TokenError::Empty | TokenError::TooLong { .. } | TokenError::Form => {
            "a token is one word in one line; `moorline-relay token new` prints one".to_owned()
        }
    };
    credentials_failure(&format!("{place} does not contain a token"), error).next(next)
}

/// Parses a join string that somebody has put into a file or a variable.
///
/// # Errors
/// It is something else. The advice says how that is used.
pub(crate) fn parse_join(place: &str, text: &str) -> Result<Join, Failure> {
    let what = format!("{place} does not contain a join string");
    Form::JoinString.check(text).map_err(|error| credentials_failure(&what, &error).next(error.advice()))?;
    text.parse().map_err(|error: RelayUrlError| {
        let next = "`moorline-relay join` prints the join string; it is one line that begins with https://";
        credentials_failure(&what, &error).next(next)
    })
}

/// Reads a small private file, or standard input for `-`.
///
/// # Errors
/// It cannot be read, is open to others, or is not UTF-8.
fn read_secret(path: &Path) -> Result<String, Failure> {
    if is_stdin(path) {
        return read(path);
    }
    let what = || format!("cannot use {}", path.display());
    let bytes =
        moorline_files::read_private(path, FILE_BYTES).map_err(|error| credentials_failure(&what(), &error).next(error.advice()))?;
    String::from_utf8(bytes.to_vec()).map_err(|_| Failure::new(Exit::Credentials, what()).because("it is not UTF-8"))
}

/// Whether a path names standard input.
pub(crate) fn is_stdin(path: &Path) -> bool {
    path == Path::new(STDIN)
}

/// Reads a small file, or standard input for `-`.
///
/// # Errors
/// It cannot be read, or is not UTF-8.
pub(crate) fn read(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let limit = FILE_BYTES as u64 + 1;
    let read = if is_stdin(path) {
        Blocking(io::stdin()).take(limit).read_to_string(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text))
    };
    let name = || if is_stdin(path) { "standard input".to_owned() } else { path.display().to_string() };
    match read {
        Ok(bytes) if bytes <= FILE_BYTES => Ok(text),
        Ok(_) => Err(Failure::new(Exit::Failed, format!("{} is larger than {FILE_BYTES} bytes", name()))),
        Err(error) => Err(Failure::new(Exit::Failed, format!("cannot read {}", name())).caused_by(&error)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// An environment whose home is a new folder.
    fn at_home() -> (tempfile::TempDir, Credentials) {
        let home = tempfile::tempdir().unwrap();
        let environment = Environment { home: Some(home.path().to_owned()), ..Environment::default() };
        (home, Credentials { sources: Sources { profile: None, token_file: None }, environment })
    }

    fn saved(credentials: &Credentials) {
        let profile = Profile { join: "https://a.example".parse().unwrap(), token: Secret::new("from-profile") };
        profile.save(&credentials.path().unwrap()).unwrap();
    }

    #[test]
    fn the_environment_comes_before_the_profile_and_a_file_before_both() {
        let (home, mut credentials) = at_home();
        saved(&credentials);
        let token = |credentials: &Credentials| credentials.profile().unwrap().token;
        assert_eq!(token(&credentials), Secret::new("from-profile"));

        credentials.environment.token = Some("from-environment".into());
        assert_eq!(token(&credentials), Secret::new("from-environment"));

        let file = home.path().join("token");
        moorline_files::create(&file, 0o600, b"from-file\n").unwrap();
        credentials.sources.token_file = Some(file);
        assert_eq!(token(&credentials), Secret::new("from-file"));
        assert_eq!(credentials.profile().unwrap().join, "https://a.example".parse().unwrap());
    }

    #[test]
    fn the_profiles_token_is_never_sent_to_another_relay() {
        let (_home, mut credentials) = at_home();
        saved(&credentials);
        credentials.environment.join = Some("https://b.example".into());
        let failure = credentials.profile().unwrap_err();
        assert_eq!((failure.exit, failure.advice().contains("MOORLINE_TOKEN")), (Exit::Credentials, true));

        credentials.environment.token = Some("word".into());
        assert_eq!(credentials.profile().unwrap().join, "https://b.example".parse().unwrap());
    }

    #[test]
    fn an_exposed_profile_is_refused_with_the_command_that_fixes_it() {
        let (_home, credentials) = at_home();
        saved(&credentials);
        let path = credentials.path().unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let failure = credentials.profile().unwrap_err();
        assert_eq!((failure.exit, failure.advice()), (Exit::Credentials, format!("chmod 600 {}", path.display()).as_str()));
    }

    #[test]
    fn a_token_file_that_others_may_read_is_refused_with_the_command_that_fixes_it() {
        let (home, mut credentials) = at_home();
        saved(&credentials);
        let file = home.path().join("token");
        moorline_files::create(&file, 0o644, b"word\n").unwrap();
        credentials.sources.token_file = Some(file.clone());
        let failure = credentials.profile().unwrap_err();
        assert_eq!((failure.exit, failure.advice()), (Exit::Credentials, format!("chmod 600 {}", file.display()).as_str()));
    }

    #[test]
    fn a_renewed_token_is_taken_for_the_same_relay_only() {
        let (_home, mut credentials) = at_home();
        saved(&credentials);
        let join: Join = "https://a.example".parse().unwrap();
        assert_eq!(credentials.renewed_token(&join).unwrap(), Secret::new("from-profile"));
        let failure = credentials.renewed_token(&"https://b.example".parse().unwrap()).unwrap_err();
        assert_eq!((failure.exit, failure.what().contains("another relay")), (Exit::Credentials, true));

        assert!(credentials.has_token_file());
        credentials.environment.token = Some("word".into());
        assert!(!credentials.has_token_file(), "a variable does not change");
        credentials.sources.token_file = Some("token".into());
        assert!(credentials.has_token_file());
    }

    #[test]
    fn a_missing_profile_is_reported_with_how_to_get_one() {
        let (_home, credentials) = at_home();
        let failure = credentials.profile().unwrap_err();
        assert!(failure.exit == Exit::Credentials && failure.advice().contains("moorline login"));
    }

    #[test]
    fn standard_input_belongs_to_the_stream() {
        let (_home, mut credentials) = at_home();
        credentials.sources.token_file = Some(STDIN.into());
        assert_eq!(credentials.profile().unwrap_err().exit, Exit::Usage);
    }
}
