//! Making a device: its key, its configuration, and the relay's CA certificate, in a folder of their own.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use moorline_proto::id::{DeviceId, ServiceName};
use moorline_proto::join::Join;

use crate::identity::{Identity, IdentityError};
use crate::target::Target;

/// The configuration's name in the folder.
pub const CONFIG_FILE: &str = "agent.toml";
const KEY_FILE: &str = "device.key";
const CA_FILE: &str = "ca.pem";

/// Why a device was not made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The folder holds a device already.
    #[error("{} is there already: this folder holds a device", .0.display())]
    Exists(PathBuf),
    /// The folder or a file in it cannot be written.
    #[error("{} cannot be written", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The key could not be made.
    #[error("the device's key")]
    Key(#[from] IdentityError),
}

/// What a device is made of.
#[derive(Clone, Debug)]
pub struct NewDevice {
    /// Where its relay is.
    pub join: Join,
    /// Its name.
    pub device: DeviceId,
    /// What it exposes.
    pub services: Vec<(ServiceName, Target)>,
}

/// Makes the device in a folder, which is created where it is missing.
///
/// # Errors
/// [`InitError`]; nothing that is there is written over.
pub fn init(new: &NewDevice, folder: &Path) -> Result<Identity, InitError> {
    let config = folder.join(CONFIG_FILE);
    if config.exists() {
        return Err(InitError::Exists(config));
    }
    let write = |path: &Path, text: &str| fs::write(path, text).map_err(|source| InitError::Write { path: path.to_owned(), source });
    fs::create_dir_all(folder).map_err(|source| InitError::Write { path: folder.to_owned(), source })?;
    let identity = Identity::create(&folder.join(KEY_FILE))?;
    if let Some(ca) = &new.join.ca {
        write(&folder.join(CA_FILE), &pem(ca))?;
    }
    write(&config, &text(new))?;
    Ok(identity)
}

fn pem(der: &[u8]) -> String {
    let packed = data_encoding::BASE64.encode(der);
    let lines: Vec<&str> = packed.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

fn text(new: &NewDevice) -> String {
    let mut text = format!(
        "# A Moorline device. Check it with `moorline-agent check --config agent.toml`.\n\n\
         relay = \"{}\"\ndevice = \"{}\"\nkey_file = \"{KEY_FILE}\"\n",
        new.join.url, new.device
    );
    if new.join.ca.is_some() {
        text.push_str("ca_file = \"ca.pem\"\n");
    }
    text.push_str("\n# What callers may reach, and nothing else:\n# [services.ssh]\n# target = \"127.0.0.1:22\"    # or \"unix:/path\"\n");
    for (name, target) in &new.services {
        // Both were parsed: neither has a quote in it, but a path may.
        let target = toml::Value::String(target.to_string());
        write!(text, "\n[services.{name}]\ntarget = {target}\n").ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const JOIN: &str = concat!(
        "https://relay.test:8443#ca=",
        "MIIBMjCB2KADAgECAgEBMAoGCCqGSM49BAMCMBgxFjAUBgNVBAMMDWFuIGV4YW1wbGUgQ0EwHhcNMjYwMTAxMDAwMDAwWhcNMzYw",
        "MTAxMDAwMDAwWjAYMRYwFAYDVQQDDA1hbiBleGFtcGxlIENBMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEf83OJ3D2xF1Bg8vu",
        "b9tLe1gHMzV76e8Tus9uPHvRVEXH8UTNG72bfocs3-257rn0s2ldbqkLJK2KRiMohYjlraMTMBEwDwYDVR0TAQH_BAUwAwEB_zAK",
        "BggqhkjOPQQDAgNJADBGAiEAusGZpnXEdvpxcQO_Bup6Q_o1-DwoP1ZPt3q33ml1b9ECIQD1SUJJ-Pmm8y-pIoTUh0O1LAPsQT-2",
        "oBzYZalVUb4Z_g",
    );

    #[test]
    fn what_is_made_is_a_good_configuration_and_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("lamp-1");
        let new = NewDevice {
            join: JOIN.parse().unwrap(),
            device: "lamp-1".parse().unwrap(),
            services: vec![
                ("ssh".parse().unwrap(), "127.0.0.1:22".parse().unwrap()),
                ("x".parse().unwrap(), "unix:/a\"b".parse().unwrap()),
            ],
        };
        let identity = init(&new, &folder).unwrap();
        let config = Config::load(&folder.join(CONFIG_FILE)).unwrap();
        assert_eq!(config.settings.identity.public(), identity.public());
        assert_eq!(config.settings.join, new.join);
        assert_eq!(config.policy.decide(&"x".parse().unwrap()).unwrap(), &new.services[1].1);
        assert!(matches!(init(&new, &folder), Err(InitError::Exists(_))));
    }
}
