//! Sets up a device: creates its key, its configuration and the relay's CA certificate in a folder.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use moorline_files::CreateError;
use moorline_proto::id::{DeviceId, ServiceName};
use moorline_proto::join::Join;

use crate::identity::{Identity, IdentityError};
use crate::target::Target;

/// Name of the configuration in the folder.
pub const CONFIG_FILE: &str = "agent.toml";
const KEY_FILE: &str = "device.key";
const CA_FILE: &str = "ca.pem";

/// Mode of the configuration and the CA certificate, which hold no secrets. The same under any umask.
const PUBLIC_MODE: u32 = 0o644;

/// Why a device was not set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The folder cannot be created.
    #[error("cannot create {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The key cannot be created.
    #[error("cannot create the device's key")]
    Key(#[source] IdentityError),
    /// Another file cannot be created.
    #[error("cannot create the device's files")]
    File(#[source] CreateError),
}

/// What a device is made of.
#[derive(Clone, Debug)]
pub struct NewDevice {
    /// Its relay.
    pub join: Join,
    /// Its id.
    pub device: DeviceId,
    /// The services that it exposes, with their targets.
    pub services: Vec<(ServiceName, Target)>,
}

/// Sets up a device in a folder, which is created if necessary. Returns the new key pair.
///
/// # Errors
/// [`InitError`]. No existing file is changed, and no symbolic link is followed; what was created before the error is removed again.
pub fn init(new: &NewDevice, folder: &Path) -> Result<Identity, InitError> {
    let mut created = Created::default();
    created.folder(folder).map_err(|source| InitError::Folder { path: folder.to_owned(), source })?;
    let key = folder.join(KEY_FILE);
    let identity = Identity::create(&key).map_err(InitError::Key)?;
    created.paths.push(key);
    if let Some(ca) = &new.join.ca {
        created.file(folder.join(CA_FILE), &pem(ca)).map_err(InitError::File)?;
    }
    created.file(folder.join(CONFIG_FILE), &configuration(new)).map_err(InitError::File)?;
    created.keep();
    Ok(identity)
}

/// What was created. Removed again when dropped, unless it is to be kept.
#[derive(Debug, Default)]
struct Created {
    paths: Vec<PathBuf>,
}

impl Created {
    fn folder(&mut self, path: &Path) -> io::Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        match fs::create_dir(path) {
            Ok(()) => self.paths.push(path.to_owned()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn file(&mut self, path: PathBuf, text: &str) -> Result<(), CreateError> {
        moorline_files::create(&path, PUBLIC_MODE, text.as_bytes())?;
        self.paths.push(path);
        Ok(())
    }

    fn keep(mut self) {
        self.paths.clear();
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        for path in self.paths.iter().rev() {
            // The error to report is the one that ended the setup.
            fs::remove_file(path).or_else(|_| fs::remove_dir(path)).ok();
        }
    }
}

fn pem(der: &[u8]) -> String {
    let encoded = data_encoding::BASE64.encode(der);
    let lines: Vec<&str> = encoded.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

fn configuration(new: &NewDevice) -> String {
    let mut text = format!(
        "# A Moorline device. Validate with `moorline-agent check --config agent.toml`.\n\n\
         relay = \"{}\"\ndevice = \"{}\"\nkey_file = \"{KEY_FILE}\"\n",
        new.join.url, new.device
    );
    if new.join.ca.is_some() {
        writeln!(text, "ca_file = \"{CA_FILE}\"").ok();
    }
    text.push_str(
        "# max_streams = 512    # streams at once; the relay's limit holds besides\n\
         # idle_legs = 64       # legs that are kept for later streams; 0 where every byte is paid for\n\
         # warm_legs = 0        # legs kept ready, so that streams open sooner; each is a connection\n\n\
         # The services that callers may reach, and no others:\n# [services.ssh]\n# target = \"127.0.0.1:22\"    # or \"unix:/path\"\n",
    );
    for (name, target) in &new.services {
        // Names need no quoting. A path may contain anything.
        let target = toml::Value::String(target.to_string());
        write!(text, "\n[services.{name}]\ntarget = {target}\n").ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::config::Config;
    use crate::limits::MAX_STREAMS;

    fn new_device() -> NewDevice {
        let ca = rcgen::generate_simple_self_signed(["relay.test".to_owned()]).unwrap().cert.der().to_vec();
        NewDevice {
            join: Join { url: "https://relay.test:8443".parse().unwrap(), ca: Some(ca) },
            device: "lamp-1".parse().unwrap(),
            services: vec![
                ("ssh".parse().unwrap(), "127.0.0.1:22".parse().unwrap()),
                ("x".parse().unwrap(), "unix:/a\"b".parse().unwrap()),
            ],
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_device_has_a_valid_configuration() {
        let (parent, new) = (tempfile::tempdir().unwrap(), new_device());
        let folder = parent.path().join("devices/lamp-1");
        let identity = init(&new, &folder).unwrap();
        let config = Config::load(&folder.join(CONFIG_FILE)).unwrap();
        assert_eq!(config.settings.identity.public(), identity.public());
        assert_eq!((&config.settings.join, config.settings.max_streams), (&new.join, MAX_STREAMS));
        assert_eq!(config.policy.decide(&"x".parse().unwrap()).unwrap(), &new.services[1].1);
        let mode = |name: &str| fs::symlink_metadata(folder.join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(KEY_FILE), mode(CA_FILE), mode(CONFIG_FILE)), (0o600, 0o644, 0o644));
    }

    #[test]
    fn an_existing_file_stops_the_setup_unchanged_and_nothing_else_is_left() {
        for name in [KEY_FILE, CA_FILE, CONFIG_FILE] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(name), "mine").unwrap();
            init(&new_device(), folder.path()).unwrap_err();
            assert_eq!(names(folder.path()), [name]);
            assert_eq!(fs::read_to_string(folder.path().join(name)).unwrap(), "mine");
        }
    }

    #[test]
    fn a_symbolic_link_is_not_written_through() {
        for name in [KEY_FILE, CA_FILE, CONFIG_FILE] {
            let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let (target, dangling) = (elsewhere.path().join("target"), elsewhere.path().join("nothing"));
            fs::write(&target, "mine").unwrap();
            for link_target in [&target, &dangling] {
                symlink(link_target, folder.path().join(name)).unwrap();
                init(&new_device(), folder.path()).unwrap_err();
                assert_eq!(names(folder.path()), [name]);
                fs::remove_file(folder.path().join(name)).unwrap();
            }
            assert_eq!(fs::read_to_string(&target).unwrap(), "mine");
            assert_eq!(names(elsewhere.path()), ["target"]);
        }
    }

    #[test]
    fn a_folder_that_was_created_is_removed_after_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lamp-1");
        let mut created = Created::default();
        created.folder(&path).unwrap();
        created.file(path.join(CA_FILE), "ca").unwrap();
        drop(created);
        assert_eq!(names(folder.path()), [""; 0]);
    }
}
