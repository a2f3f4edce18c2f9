//! The configuration after validation: every value checked, every file read. Errors name the key and the value.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::RangeInclusive;
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
use crate::limits::{IDLE_LEGS, IDLE_LEGS_RANGE, MAX_STREAMS, MAX_STREAMS_RANGE, WARM_LEGS};
use crate::policy::Policy;
use crate::settings::Settings;
use crate::target::Target;

/// A valid configuration.
#[derive(Debug)]
pub struct Config {
    /// The settings of the agent.
    pub settings: Settings,
    /// The services and their targets.
    pub policy: Policy,
}

/// Why a configuration is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file, or a file that it names, cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML, or has an unknown, missing or wrong key.
    #[error("{} is invalid", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// The parser's error, which names line and key.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value is invalid.
    #[error("{key} = {value:?}: {why}")]
    Value {
        /// The key of the value.
        key: String,
        /// The value as written.
        value: String,
        /// What is expected instead.
        why: String,
    },
    /// The device's key is not usable.
    #[error("key_file is not usable")]
    Key(#[source] IdentityError),
}

impl ConfigError {
    /// What to do about it.
    pub fn advice(&self) -> String {
        match self {
            Self::Key(IdentityError::Read(error)) => error.advice(),
            _ => "correct the configuration, then validate it with `moorline-agent check --config FILE`".to_owned(),
        }
    }
}

fn invalid(key: impl Into<String>, value: &str, why: impl ToString) -> ConfigError {
    ConfigError::Value { key: key.into(), value: value.to_owned(), why: why.to_string() }
}

impl Config {
    /// Reads and validates a configuration file and the files that it names.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let file = File::from_toml(&text).map_err(|source| ConfigError::Toml { path: path.to_owned(), source: Box::new(source) })?;
        Self::check(&file, path.parent().unwrap_or(Path::new(".")))
    }

    /// Validates a parsed file. Paths in it are relative to `folder`.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn check(file: &File, folder: &Path) -> Result<Self, ConfigError> {
        let url: RelayUrl = file.relay.parse().map_err(|error| invalid("relay", &file.relay, error))?;
        let device: DeviceId = file.device.parse().map_err(|error| invalid("device", &file.device, error))?;
        let (services, policy) = services(&file.services)?;
        let identity = Identity::load(&folder.join(&file.key_file)).map_err(ConfigError::Key)?;
        let ca = file.ca_file.as_ref().map(|name| certificate(&folder.join(name), name)).transpose()?;
        let max_streams = within("max_streams", file.max_streams, MAX_STREAMS, &MAX_STREAMS_RANGE)?;
        let idle_legs = within("idle_legs", file.idle_legs, IDLE_LEGS, &IDLE_LEGS_RANGE)?;
        let warm_legs = within("warm_legs", file.warm_legs, WARM_LEGS, &(0..=idle_legs))?;
        let join = Join { url, ca };
        let trusted_suffix = file.trusted_suffix.clone();
        let settings = Settings { join, device, identity, services, trusted_suffix, max_streams, idle_legs, warm_legs };
        Ok(Self { settings, policy })
    }
}

/// The number of a key as written, or its default.
fn within(key: &str, written: Option<u32>, default: u32, range: &RangeInclusive<u32>) -> Result<u32, ConfigError> {
    let number = written.unwrap_or(default);
    if range.contains(&number) {
        return Ok(number);
    }
    Err(invalid(key, &number.to_string(), format_args!("from {} to {} are allowed", range.start(), range.end())))
}

fn services(entries: &BTreeMap<String, ServiceEntry>) -> Result<(Vec<Service>, Policy), ConfigError> {
    if entries.len() > SERVICES {
        return Err(invalid("services", &entries.len().to_string(), format_args!("at most {SERVICES} services are allowed")));
    }
    let (mut services, mut targets) = (Vec::new(), BTreeMap::new());
    for (text, entry) in entries {
        let name: ServiceName = text.parse().map_err(|error| invalid(format!("services.{text}"), text, error))?;
        let target: Target = entry.target.parse().map_err(|error| invalid(format!("services.{text}.target"), &entry.target, error))?;
        let described = entry.description.as_deref().map(Text::new).transpose();
        let description = described
            .map_err(|error| invalid(format!("services.{text}.description"), entry.description.as_deref().unwrap_or_default(), error))?;
        targets.insert(name.clone(), target);
        services.push(Service { name, description });
    }
    Ok((services, Policy::new(targets)))
}

fn certificate(path: &Path, name: &str) -> Result<Vec<u8>, ConfigError> {
    let text = fs::read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let certificate =
        CertificateDer::from_pem_slice(&text).map_err(|_| invalid("ca_file", name, "the file contains no certificate in PEM"))?;
    Ok(certificate.to_vec())
}

#[cfg(test)]
mod tests {
    use moorline_proto::causes::Causes;

    use super::*;

    fn error_of(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        Identity::create(&folder.path().join("device.key")).unwrap();
        let path = folder.path().join("agent.toml");
        fs::write(&path, text).unwrap();
        Causes(&Config::load(&path).unwrap_err()).to_string()
    }

    const VALID: &str = "relay = 'https://relay.test'\ndevice = 'lamp-1'\nkey_file = 'device.key'\n";

    #[test]
    fn a_valid_file_yields_its_settings() {
        let folder = tempfile::tempdir().unwrap();
        Identity::create(&folder.path().join("device.key")).unwrap();
        let file = File::from_toml(&format!(
            "max_streams = 7\nidle_legs = 5\nwarm_legs = 2\n{VALID}[services.ssh]\ntarget = '127.0.0.1:22'\ndescription = 'a shell'"
        ))
        .unwrap();
        let config = Config::check(&file, folder.path()).unwrap();
        assert_eq!((config.settings.join.url.host(), config.settings.device.as_str()), ("relay.test", "lamp-1"));
        assert_eq!((config.settings.max_streams, config.settings.idle_legs, config.settings.warm_legs), (7, 5, 2));
        assert_eq!(config.policy.decide(&"ssh".parse().unwrap()).unwrap().to_string(), "127.0.0.1:22");
    }

    #[test]
    fn a_device_keeps_from_no_leg_to_all_that_the_relay_keeps() {
        let folder = tempfile::tempdir().unwrap();
        Identity::create(&folder.path().join("device.key")).unwrap();
        for (text, expected) in [
            ("", (64, 0)),
            ("warm_legs = 0\n", (64, 0)),
            ("warm_legs = 64\n", (64, 64)),
            ("idle_legs = 0\n", (0, 0)),
            ("idle_legs = 1\nwarm_legs = 1\n", (1, 1)),
        ] {
            let settings = Config::check(&File::from_toml(&format!("{text}{VALID}")).unwrap(), folder.path()).unwrap().settings;
            assert_eq!((settings.idle_legs, settings.warm_legs), expected, "{text:?}");
        }
    }

    #[test]
    fn errors_name_the_key_and_the_value() {
        for (text, words) in [
            (VALID.replace("https", "http"), ["relay", "http://relay.test"]),
            (VALID.replace("lamp-1", "Lamp-1"), ["device", "Lamp-1"]),
            (format!("{VALID}[services.SSH]\ntarget = '127.0.0.1:22'"), ["services.SSH", "lower case"]),
            (format!("{VALID}[services.ssh]\ntarget = 'nowhere'"), ["services.ssh.target", "nowhere"]),
            (format!("{VALID}[services.ssh]\ntarget = '127.0.0.1:22'\nport = 1"), ["port", "unknown field"]),
            (format!("colour = 'red'\n{VALID}"), ["colour", "unknown field"]),
            (VALID.replace("device = 'lamp-1'\n", ""), ["device", "missing field"]),
            (format!("{VALID}ca_file = 'none.pem'"), ["none.pem", "cannot read"]),
            (VALID.replace("device.key", "other.key"), ["key_file", "other.key"]),
            (format!("{VALID}ca_file = 'agent.toml'"), ["ca_file", "no certificate in PEM"]),
            (format!("{VALID}[services.ssh]\ntarget = '127.0.0.1:22'\ndescription = '{}'", "x".repeat(201)), ["description", "200"]),
            (
                format!("{VALID}{}", (0..65).map(|n| format!("[services.s{n}]\ntarget = '127.0.0.1:22'\n")).collect::<String>()),
                ["services", "at most 64"],
            ),
            (format!("max_streams = 0\n{VALID}"), ["max_streams", "1 to 10000"]),
            (format!("max_streams = 10001\n{VALID}"), ["max_streams", "10001"]),
            (format!("warm_legs = 65\n{VALID}"), ["warm_legs = \"65\"", "from 0 to 64 are allowed"]),
            (format!("warm_legs = -1\n{VALID}"), ["warm_legs", "-1"]),
            (format!("warm_legs = 'two'\n{VALID}"), ["warm_legs", "invalid type: string"]),
            (format!("warm_legs = 1.5\n{VALID}"), ["warm_legs", "invalid type: floating point"]),
            (format!("warm_legs = true\n{VALID}"), ["warm_legs", "invalid type: boolean"]),
            (format!("idle_legs = 3\nwarm_legs = 4\n{VALID}"), ["warm_legs = \"4\"", "from 0 to 3 are allowed"]),
            (format!("idle_legs = 65\n{VALID}"), ["idle_legs = \"65\"", "from 0 to 64 are allowed"]),
        ] {
            let error = error_of(&text);
            assert!(words.iter().all(|word| error.contains(word)), "{words:?} in {error:?}");
        }
    }
}
