//! Real load balancers in front of a relay, with the shipped configurations; only addresses, paths and limits are replaced.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::{TcpListener, TcpSocket};
use tokio::process::Command;

use crate::programs::Program;

/// The address from which a balancer connects to the relay; its clients use others.
pub const PROXY_ADDRESS: &str = "127.0.0.9";
/// The scaled-down idle timeout of a balancer.
pub const LIMIT: Duration = Duration::from_secs(2);

/// Which balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// HAProxy at layer 4: TLS passes through, the PROXY protocol carries the client's address.
    HaproxyTcp,
    /// HAProxy at layer 7: it terminates TLS, `X-Forwarded-For` carries the client's address.
    HaproxyHttp,
    /// nginx at layer 7, like HAProxy.
    Nginx,
}

/// A running balancer. Killed when dropped.
#[derive(Debug)]
pub struct Balancer {
    /// Its listening address.
    pub address: SocketAddr,
    /// The process.
    pub program: Program,
    _port: Option<TcpSocket>,
    _folder: TempDir,
}

impl Kind {
    /// The `[[listeners]]` of a relay behind this balancer.
    pub fn listener(self) -> String {
        let lines = match self {
            Self::HaproxyTcp => "transport = 'tls'\nproxy_protocol = true",
            Self::HaproxyHttp | Self::Nginx => "transport = 'plain'",
        };
        format!("\n[[listeners]]\naddress = '127.0.0.1:0'\n{lines}\ntrusted_proxies = ['{PROXY_ADDRESS}']\n")
    }

    fn shipped(self) -> &'static str {
        match self {
            Self::HaproxyTcp => include_str!("../../relay/packaging/haproxy-tcp.cfg"),
            Self::HaproxyHttp => include_str!("../../relay/packaging/haproxy-http.cfg"),
            Self::Nginx => include_str!("../../relay/packaging/nginx.conf"),
        }
    }

    /// Replacements in the shipped configuration: fewer descriptors, and the suite's own users and logs.
    fn replacements(self, here: SocketAddr, relay: SocketAddr, folder: &Path) -> Vec<(&'static str, String)> {
        let file = |name: &str| folder.join(name).display().to_string();
        let limit = |key: &str| format!("{key} {}s", LIMIT.as_secs());
        let haproxy = || {
            vec![
                ("log /dev/log local0", "log stdout format raw local0".to_owned()),
                ("    user haproxy\n", String::new()),
                ("maxconn 15000", "maxconn 500".to_owned()),
                ("timeout client 50s", limit("timeout client")),
                ("timeout server 50s", limit("timeout server")),
                ("timeout tunnel 1h", limit("timeout tunnel")),
                ("bind :443", "bind fd@0".to_owned()),
            ]
        };
        match self {
            Self::HaproxyTcp => [
                haproxy(),
                vec![("server relay 10.0.0.10:443 send-proxy-v2", format!("server relay {relay} source {PROXY_ADDRESS} send-proxy-v2"))],
            ]
            .concat(),
            Self::HaproxyHttp => [
                haproxy(),
                vec![
                    ("server relay 127.0.0.1:8080", format!("server relay {relay} source {PROXY_ADDRESS}")),
                    ("crt /etc/haproxy/relay.pem", format!("crt {}", file("relay.pem"))),
                ],
            ]
            .concat(),
            Self::Nginx => vec![
                ("user www-data;\n", String::new()),
                ("worker_rlimit_nofile 32768;\n", String::new()),
                ("worker_connections 30000;", "worker_connections 500;".to_owned()),
                ("/run/nginx.pid", file("pid")),
                ("/var/log/nginx/error.log", "stderr notice".to_owned()),
                (
                    "access_log /var/log/nginx/access.log;",
                    ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                        .map(|of| format!("{of}_temp_path {};", file(of)))
                        .into_iter()
                        .chain(["access_log off;".to_owned()])
                        .collect(),
                ),
                ("server 127.0.0.1:8080;", format!("server {relay};")),
                ("listen 443 ssl;", format!("listen {here} ssl;")),
                ("server_name relay.example.com;", "server_name localhost;".to_owned()),
                ("/etc/nginx/relay.pem", file("relay.pem")),
                ("/etc/nginx/relay.key", file("relay.pem")),
                ("proxy_pass http://moorline;", format!("proxy_pass http://moorline; proxy_bind {PROXY_ADDRESS};")),
                ("proxy_read_timeout 60s;", limit("proxy_read_timeout") + ";"),
                ("proxy_send_timeout 60s;", limit("proxy_send_timeout") + ";"),
                (" send_timeout 60s;", limit(" send_timeout") + ";"),
            ],
        }
    }

    fn command(self, config: &Path, folder: &Path) -> Command {
        let mut command;
        match self {
            Self::HaproxyTcp | Self::HaproxyHttp => {
                command = Command::new("/usr/sbin/haproxy");
                command.args(["-db", "-f"]).arg(config);
            }
            Self::Nginx => {
                command = Command::new("/usr/sbin/nginx");
                // One process: a worker would survive a master that is killed.
                command.args(["-e", "stderr", "-g", "daemon off; master_process off;", "-p"]).arg(folder).arg("-c").arg(config);
            }
        }
        command
    }
}

impl Balancer {
    /// Starts a balancer before the relay's listener at `relay`, with certificate and key of the relay's state folder where TLS ends at
    /// the balancer. It listens when this returns.
    pub async fn start(kind: Kind, relay: SocketAddr, state: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let pem = ["tls.pem", "tls.key"].map(|name| std::fs::read_to_string(state.join(name)).expect("the relay's own")).concat();
        std::fs::write(folder.path().join("relay.pem"), pem).expect("a file is written");

        // Bound and not listening: no other process is assigned the port, and a program can still listen on it.
        let port = TcpSocket::new_v4().expect("a socket");
        port.set_reuseaddr(true).expect("a socket of this machine");
        port.bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let address = port.local_addr().expect("it is bound");
        let mut text = kind.shipped().to_owned();
        for (shipped, ours) in kind.replacements(address, relay, folder.path()) {
            assert_eq!(text.matches(shipped).count(), 1, "{shipped:?} occurs once in the configuration of {kind:?}");
            text = text.replace(shipped, &ours);
        }
        let config = folder.path().join("config");
        std::fs::write(&config, text).expect("a file is written");
        let mut command = kind.command(&config, folder.path());
        let name = format!("{kind:?}");
        let (program, port) = match kind {
            // HAProxy logs nothing when it is ready: it inherits a socket that listens already.
            Kind::HaproxyTcp | Kind::HaproxyHttp => {
                let listener = port.listen(128).and_then(TcpListener::into_std).expect("a bound socket");
                (Program::start_with_input(&name, &mut command, OwnedFd::from(listener)), None)
            }
            Kind::Nginx => (Program::start(&name, &mut command), Some(port)),
        };
        if kind == Kind::Nginx {
            // It logs its event method once its sockets listen.
            program.line("that it is ready", |line| line.contains("event method").then_some(())).await;
        }
        Self { address, program, _port: port, _folder: folder }
    }
}
