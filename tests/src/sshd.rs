//! A private OpenSSH server on a free port with its own keys, and an `ssh` command that trusts it.

use std::net::SocketAddr;
use std::path::PathBuf;

use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::programs::Program;

/// Debian's path of the server.
pub const SSHD: &str = "/usr/sbin/sshd";

/// A running server. Killed when dropped.
#[derive(Debug)]
pub struct Sshd {
    /// Its listening address.
    pub address: SocketAddr,
    folder: TempDir,
    _server: Program,
}

impl Sshd {
    /// Starts a server and waits until it accepts connections.
    ///
    /// # Errors
    /// What failed, as text.
    pub async fn start() -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let path = |name: &str| folder.path().join(name);
        for name in ["host_key", "id"] {
            let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path(name)).output().await;
            if !made.is_ok_and(|made| made.status.success()) {
                return Err("ssh-keygen makes no key".to_owned());
            }
        }
        // Debian's server needs this folder for privilege separation; its service unit would create it.
        std::fs::create_dir_all("/run/sshd").ok();
        let address = free_address().await.map_err(|error| error.to_string())?;
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {host}\nAuthorizedKeysFile {keys}\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nMaxStartups 300\nMaxSessions 300\nPidFile none\nSubsystem sftp internal-sftp\nLogLevel INFO\n",
            port = address.port(),
            host = path("host_key").display(),
            keys = path("id.pub").display(),
        );
        std::fs::write(path("sshd_config"), config).map_err(|error| error.to_string())?;
        if !std::path::Path::new(SSHD).exists() {
            return Err(format!("{SSHD} is not installed"));
        }
        let server = Program::start("sshd", Command::new(SSHD).arg("-D").arg("-e").arg("-f").arg(path("sshd_config")));
        server.line("that it listens", |line| line.starts_with("Server listening on").then_some(())).await;
        Ok(Self { address, folder, _server: server })
    }

    /// The private key that it accepts.
    pub fn key(&self) -> PathBuf {
        self.folder.path().join("id")
    }

    /// Options of `ssh`, `scp` and `rsync -e` that trust the server and authenticate with its key.
    pub fn options(&self) -> Vec<String> {
        let key = format!("IdentityFile={}", self.key().display());
        let options = [
            key.as_str(),
            "IdentitiesOnly=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "BatchMode=yes",
        ];
        let mut all = vec!["-F".to_owned(), "none".to_owned()];
        all.extend(options.iter().flat_map(|option| ["-o".to_owned(), (*option).to_owned()]));
        all
    }

    /// `ssh` through a ProxyCommand; append the remote command.
    pub fn ssh(&self, proxy_command: &str, device: &str) -> Command {
        let mut command = Command::new("ssh");
        command.args(self.options()).arg("-o").arg(format!("ProxyCommand={proxy_command}")).arg(format!("{}@{device}", user()));
        command
    }
}

/// The current user, who may log in with the key.
pub fn user() -> String {
    let output = std::process::Command::new("id").arg("-un").output().expect("id runs");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// An address that was free when this was called, for programs that cannot choose one themselves and report it.
async fn free_address() -> std::io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0").await?.local_addr()
}
