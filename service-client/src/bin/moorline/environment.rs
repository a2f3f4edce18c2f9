//! The environment variables, read in one place.

use std::ffi::OsString;
use std::path::PathBuf;

/// The environment, read once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment {
    pub(crate) join: Option<OsString>,
    pub(crate) token: Option<OsString>,
    pub(crate) log: Option<OsString>,
    pub(crate) no_color: bool,
    pub(crate) config_home: Option<PathBuf>,
    pub(crate) home: Option<PathBuf>,
}

impl Environment {
    /// Reads it. An empty variable counts as unset.
    #[allow(clippy::disallowed_methods, reason = "the environment is read once, here")]
    pub(crate) fn read() -> Self {
        let of = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            join: of("MOORLINE_JOIN"),
            token: of("MOORLINE_TOKEN"),
            log: of("MOORLINE_LOG"),
            no_color: of("NO_COLOR").is_some(),
            config_home: of("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute()),
            home: std::env::home_dir(),
        }
    }

    /// The default path of the profile.
    pub(crate) fn default_profile(&self) -> Option<PathBuf> {
        let config = self.config_home.clone().or_else(|| self.home.as_ref().map(|home| home.join(".config")))?;
        Some(config.join("moorline").join("profile.toml"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_is_in_the_configuration_folder() {
        let mut environment = Environment { home: Some("/home/a".into()), ..Environment::default() };
        assert_eq!(environment.default_profile(), Some("/home/a/.config/moorline/profile.toml".into()));
        environment.config_home = Some("/etc/a".into());
        assert_eq!(environment.default_profile(), Some("/etc/a/moorline/profile.toml".into()));
    }
}
