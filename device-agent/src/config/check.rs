//! The configuration as it is used: every value checked, every file found. Errors name the key and the value.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use moorline_proto::bounds::SERVICES;
use moorline_proto::control::Service;
use moorline_proto::id::{DeviceId, ServiceName};
use moorline_proto::join::{Join, RelayUrl};
use moorline_proto::text::Text;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::config::file::{File, ServiceEntry};
use crate::identity::{Identity, IdentityError};
use crate::policy::Policy;
use crate::settings::Settings;
use crate::target::Target;

/// What the agent runs with.
#[derive(Debug)]
pub struct Config {
    /// Who the device is and where its relay is.
    pub settings: Settings,
    /// What it takes.
    pub policy: Policy,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that it names, or itself, cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not written as it should be.
    #[error("{} is not written as it should be", path.display())]
    Toml {
        /// Which.
        path: PathBuf,
        /// Line, key, and what is wrong.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value is none of its kind.
    #[error("{key} = {value:?}: {why}")]
    Value {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// The device's key cannot be used.
    #[error("key_file")]
    Key(#[source] IdentityError),
}

fn value(key: impl Into<String>, value: &str, why: impl ToString) -> ConfigError {
    ConfigError::Value { key: key.into(), value: value.to_owned(), why: why.to_string() }
}

impl Config {
    /// Reads and checks a configuration file and the files that it names.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let file = File::from_toml(&text).map_err(|source| ConfigError::Toml { path: path.to_owned(), source: Box::new(source) })?;
        Self::check(&file, path.parent().unwrap_or(Path::new(".")))
    }

    /// Checks what was written; files are looked for from `folder`.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn check(file: &File, folder: &Path) -> Result<Self, ConfigError> {
        let url: RelayUrl = file.relay.parse().map_err(|error| value("relay", &file.relay, error))?;
        let device: DeviceId = file.device.parse().map_err(|error| value("device", &file.device, error))?;
        let (services, policy) = services(&file.services)?;
        let identity = Identity::load(&folder.join(&file.key_file)).map_err(ConfigError::Key)?;
        let ca = file.ca_file.as_ref().map(|name| certificate(&folder.join(name), name)).transpose()?;
        let join = Join { url, ca };
        let settings = Settings { join, device, identity, services, trusted_suffix: file.trusted_suffix.clone() };
        Ok(Self { settings, policy })
    }
}

fn services(written: &BTreeMap<String, ServiceEntry>) -> Result<(Vec<Service>, Policy), ConfigError> {
    if written.len() > SERVICES {
        return Err(value("services", &written.len().to_string(), format_args!("at most {SERVICES} are allowed")));
    }
    let (mut services, mut targets) = (Vec::new(), BTreeMap::new());
    for (text, entry) in written {
        let name: ServiceName = text.parse().map_err(|error| value(format!("services.{text}"), text, error))?;
        let target: Target = entry.target.parse().map_err(|error| value(format!("services.{text}.target"), &entry.target, error))?;
        let described = entry.description.as_deref().map(Text::new).transpose();
        let description = described
            .map_err(|error| value(format!("services.{text}.description"), entry.description.as_deref().unwrap_or_default(), error))?;
        targets.insert(name.clone(), target);
        services.push(Service { name, description });
    }
    Ok((services, Policy::new(targets)))
}

fn certificate(path: &Path, name: &str) -> Result<Vec<u8>, ConfigError> {
    let text = fs::read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let certificate = CertificateDer::from_pem_slice(&text).map_err(|_| value("ca_file", name, "no certificate in PEM is in it"))?;
    Ok(certificate.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        Identity::create(&folder.path().join("device.key")).unwrap();
        let path = folder.path().join("agent.toml");
        fs::write(&path, text).unwrap();
        let error = Config::load(&path).unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        format!("{error}: {source}")
    }

    const GOOD: &str = "relay = 'https://relay.test'\ndevice = 'lamp-1'\nkey_file = 'device.key'\n";

    #[test]
    fn a_good_one_is_used_as_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        Identity::create(&folder.path().join("device.key")).unwrap();
        let file = File::from_toml(&format!("{GOOD}[services.ssh]\ntarget = '127.0.0.1:22'\ndescription = 'a shell'")).unwrap();
        let config = Config::check(&file, folder.path()).unwrap();
        assert_eq!((config.settings.join.url.host(), config.settings.device.as_str()), ("relay.test", "lamp-1"));
        assert_eq!(config.policy.decide(&"ssh".parse().unwrap()).unwrap().to_string(), "127.0.0.1:22");
    }

    #[test]
    fn errors_name_the_key_and_the_value() {
        for (text, words) in [
            (GOOD.replace("https", "http"), ["relay", "http://relay.test"]),
            (GOOD.replace("lamp-1", "Lamp-1"), ["device", "Lamp-1"]),
            (format!("{GOOD}[services.SSH]\ntarget = '127.0.0.1:22'"), ["services.SSH", "lower case"]),
            (format!("{GOOD}[services.ssh]\ntarget = 'nowhere'"), ["services.ssh.target", "nowhere"]),
            (format!("{GOOD}[services.ssh]\ntarget = '127.0.0.1:22'\nport = 1"), ["port", "unknown field"]),
            (format!("colour = 'red'\n{GOOD}"), ["colour", "unknown field"]),
            (GOOD.replace("device = 'lamp-1'\n", ""), ["device", "missing field"]),
            (format!("{GOOD}ca_file = 'none.pem'"), ["none.pem", "cannot be read"]),
            (GOOD.replace("device.key", "other.key"), ["key_file", "other.key"]),
        ] {
            let error = wrong(&text);
            assert!(words.iter().all(|word| error.contains(word)), "{words:?} in {error:?}");
        }
    }
}
