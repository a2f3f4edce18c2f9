//! `moorline login`: writes the profile from a join string and a token, without any network access.

use moorline::profile::{Profile, SaveProfileError};

use crate::cli::Login;
use crate::credentials::{Credentials, is_stdin, parse_join, read};
use crate::exit::{Exit, Failure};
use crate::output::Output;

/// Writes the profile.
///
/// # Errors
/// The join string or the token is not valid, or the file cannot be written.
pub(crate) fn run(login: &Login, credentials: &Credentials, output: &Output) -> Result<(), Failure> {
    if is_stdin(&login.join) && credentials.sources.token_file.as_deref().is_some_and(is_stdin) {
        return Err(Failure::new(Exit::Usage, "only one of --join and --token-file can be standard input"));
    }
    let join = parse_join(&login.join.display().to_string(), &read(&login.join)?)?;
    let token = credentials.given_token()?.ok_or_else(|| {
        Failure::new(Exit::Usage, "no token").next("name a file with --token-file, - for standard input, or set MOORLINE_TOKEN")
    })?;
    let path = credentials.path()?;
    let url = join.url.clone();
    let written = Profile { join, token }.save(&path).map_err(|error| {
        let failure = Failure::new(Exit::Failed, "not logged in").caused_by(&error);
        match &error {
            SaveProfileError::Folder { .. } => failure.next("name a profile in a folder that you may write to, with --profile"),
            SaveProfileError::Write(error) => failure.next(error.advice()),
        }
    })?;
    let through = if written == path { String::new() } else { format!(", through the symbolic link {}", path.display()) };
    output.note(&format!("logged in to {url}; the profile is {}{through}\ntry it: moorline device list", written.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::cli::Sources;
    use crate::environment::Environment;

    fn credentials(folder: &Path) -> Credentials {
        let sources = Sources { profile: Some(folder.join("p.toml")), token_file: Some(folder.join("token")) };
        Credentials { sources, environment: Environment::default() }
    }

    const JOIN: &str = concat!(
        "https://relay.example.com#ca=",
        "MIIBMjCB2KADAgECAgEBMAoGCCqGSM49BAMCMBgxFjAUBgNVBAMMDWFuIGV4YW1wbGUgQ0EwHhcNMjYwMTAxMDAwMDAwWhcNMzYw",
        "MTAxMDAwMDAwWjAYMRYwFAYDVQQDDA1hbiBleGFtcGxlIENBMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEf83OJ3D2xF1Bg8vu",
        "b9tLe1gHMzV76e8Tus9uPHvRVEXH8UTNG72bfocs3-257rn0s2ldbqkLJK2KRiMohYjlraMTMBEwDwYDVR0TAQH_BAUwAwEB_zAK",
        "BggqhkjOPQQDAgNJADBGAiEAusGZpnXEdvpxcQO_Bup6Q_o1-DwoP1ZPt3q33ml1b9ECIQD1SUJJ-Pmm8y-pIoTUh0O1LAPsQT-2",
        "oBzYZalVUb4Z_g",
    );

    #[test]
    fn login_writes_a_profile_that_can_be_loaded() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("join"), format!("{JOIN}\n")).unwrap();
        moorline_files::create(folder.path().join("token"), 0o600, b"word\n").unwrap();
        let login = Login { join: folder.path().join("join") };
        run(&login, &credentials(folder.path()), &Output::new(true).0).unwrap();
        assert_eq!(Profile::load(&folder.path().join("p.toml")).unwrap().join.to_string(), JOIN);
    }

    #[test]
    fn a_join_string_whose_ca_is_no_certificate_is_refused_where_it_is_pasted() {
        let folder = tempfile::tempdir().unwrap();
        moorline_files::create(folder.path().join("token"), 0o600, b"word\n").unwrap();
        let login = Login { join: folder.path().join("join") };
        let cut = &JOIN[..JOIN.len() - 8];
        for join in ["https://relay.example.com#ca=AAEC", cut] {
            fs::write(&login.join, join).unwrap();
            let failure = run(&login, &credentials(folder.path()), &Output::new(true).0).unwrap_err();
            assert_eq!(failure.exit, Exit::Credentials);
            assert!(failure.causes()[0].contains("CA certificate"), "{failure:?}");
        }
        assert!(!folder.path().join("p.toml").exists());
    }

    #[test]
    fn login_refuses_invalid_join_strings_and_tokens() {
        let folder = tempfile::tempdir().unwrap();
        let login = Login { join: folder.path().join("join") };
        fs::write(&login.join, "relay.example.com").unwrap();
        assert_eq!(run(&login, &credentials(folder.path()), &Output::new(true).0).unwrap_err().exit, Exit::Credentials);

        fs::write(&login.join, "https://relay.example.com").unwrap();
        let mut credentials = credentials(folder.path());
        credentials.sources.token_file = None;
        assert_eq!(run(&login, &credentials, &Output::new(true).0).unwrap_err().exit, Exit::Usage);

        credentials.sources.token_file = Some("-".into());
        let both = Login { join: "-".into() };
        assert_eq!(run(&both, &credentials, &Output::new(true).0).unwrap_err().exit, Exit::Usage);
        assert!(!folder.path().join("p.toml").exists());
    }
}
