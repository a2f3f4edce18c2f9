//! The baseline: a server of rustls and TCP without a protocol in between. A process of its own, with the relay's certificate.
//!
//! The first byte of a connection selects its use: one half of a pair that is joined by `copy_bidirectional` with buffers of 64 KiB, or an
//! echo. A connection that sends nothing is held open. There is also an echo without TLS, the target of every benchmark that needs one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use moorline_tests::programs::Program;
use moorline_tests::targets::Target;
use moorline_tests::world::World;
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::trip::nodelay_echo;

/// The argument with which the bench runs as this process.
pub const FLAG: &str = "--plain";
/// First byte: one half of a pair; seven more bytes name the pair.
pub const PAIR: u8 = 1;
/// First byte: an echo.
pub const ECHO: u8 = 2;
const BUFFER: usize = 64 << 10;
const LISTENING: &str = "listening ";

/// The plain server that runs.
#[derive(Debug)]
pub struct Plain {
    /// The process.
    pub program: Program,
    /// Where it listens.
    pub address: SocketAddr,
    /// Where its echo without TLS listens.
    pub echo: SocketAddr,
}

impl Plain {
    /// Starts one with the certificate of a world's relay.
    pub async fn start(world: &World) -> Self {
        let own = std::env::current_exe().expect("the bench is a program");
        let program = Program::start("the plain server", Command::new(own).arg(FLAG).arg(world.path("relay")));
        let listening = |line: &str| {
            let (address, echo) = line.strip_prefix(LISTENING)?.split_once(' ')?;
            Some((address.parse().ok()?, echo.parse().ok()?))
        };
        let (address, echo) = program.line("where it listens", listening).await;
        Self { program, address, echo }
    }
}

type Waiting = Arc<Mutex<HashMap<[u8; 7], TlsStream<TcpStream>>>>;

/// Runs as that process until it is killed.
pub async fn serve(folder: &Path) {
    rlimit::increase_nofile_limit(u64::MAX).expect("the limit of file descriptors is raised");
    let config = moorline_relay::net::tls::server_config(&folder.join("tls.pem"), &folder.join("tls.key"));
    let config: Arc<ServerConfig> = config.expect("the relay's certificate is valid");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let echo = Target::start(nodelay_echo).await;
    println!("{LISTENING}{} {}", listener.local_addr().expect("it is bound"), echo.address);
    let waiting = Waiting::default();
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        connections.spawn(connection(tcp, Arc::clone(&config), Arc::clone(&waiting)));
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(tcp: TcpStream, config: Arc<ServerConfig>, waiting: Waiting) {
    tcp.set_nodelay(true).ok();
    let Ok(mut tls) = TlsAcceptor::from(config).accept(tcp).await else { return };
    match tls.read_u8().await {
        Ok(PAIR) => pair(tls, &waiting).await,
        Ok(ECHO) => echo(tls).await,
        Ok(_) | Err(_) => {}
    }
}

async fn pair(mut tls: TlsStream<TcpStream>, waiting: &Waiting) {
    let mut name = [0; 7];
    if tls.read_exact(&mut name).await.is_err() {
        return;
    }
    let other = waiting.lock().expect("the lock is not poisoned").remove(&name);
    match other {
        Some(mut other) => drop(copy_bidirectional_with_sizes(&mut tls, &mut other, BUFFER, BUFFER).await),
        None => drop(waiting.lock().expect("the lock is not poisoned").insert(name, tls)),
    }
}

async fn echo(mut tls: TlsStream<TcpStream>) {
    let mut buffer = vec![0; 1 << 10];
    while let Ok(count @ 1..) = tls.read(&mut buffer).await {
        if tls.write_all(&buffer[..count]).await.is_err() || tls.flush().await.is_err() {
            return;
        }
    }
}
