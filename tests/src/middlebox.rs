//! A TLS-terminating middlebox in front of a real relay, with the relay's own certificate. It can change a caller's request and records what
//! the relay answered, so that one exchange is seen on the wire and as the program reports it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::observed;
use crate::programs::LINE_WITHIN;
use crate::unauthenticated_peer::tls;
use crate::world::World;

/// Replacements in the head of a request: what to find, and what to put in its place.
type Replacements = Vec<(String, String)>;

/// A middlebox on a port of its own. Dropping it closes it and its connections.
#[derive(Debug)]
pub struct Middlebox {
    /// Its listening address.
    pub address: SocketAddr,
    seen: Arc<Seen>,
    _serving: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Seen {
    replace: Mutex<Replacements>,
    request: Mutex<String>,
    answered: Mutex<Vec<u8>>,
    /// Connections on which the caller sent something after its request.
    callers_answered: watch::Sender<usize>,
}

/// What the relay answered to the last request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The response's head, in lower case.
    pub head: String,
    /// The problem: the response's body, or the one in `refused` after a 101.
    pub problem: Value,
}

impl Middlebox {
    /// Starts a middlebox in front of the relay of `world`.
    pub async fn start(world: &World) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (relay, ca_file, acceptor) = (world.address, world.ca_file(), acceptor(&world.path("relay")));
        let seen = Arc::new(Seen::default());
        let (mut serving, watched) = (JoinSet::new(), Arc::clone(&seen));
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                connections.spawn(pass(tcp, relay, ca_file.clone(), acceptor.clone(), Arc::clone(&watched)));
            }
        });
        Self { address, seen, _serving: serving }
    }

    /// From now on, replaces the first string of each pair by the second in the heads of requests.
    ///
    /// # Panics
    /// A request that does not contain a string to be replaced fails the scenario.
    pub fn replace(&self, of: &[(&str, &str)]) {
        *lock(&self.seen.replace) = of.iter().map(|&(from, to)| (from.to_owned(), to.to_owned())).collect();
        lock(&self.seen.request).clear();
        lock(&self.seen.answered).clear();
    }

    /// Waits until the callers of this many connections have sent something after their request, usually the answer to a ping.
    ///
    /// # Panics
    /// After [`LINE_WITHIN`].
    pub async fn callers_answered(&self, connections: usize) {
        let mut callers_answered = self.seen.callers_answered.subscribe();
        let enough = timeout(LINE_WITHIN, callers_answered.wait_for(|&count| count >= connections)).await;
        assert!(enough.is_ok(), "fewer than {connections} callers sent anything after their requests");
    }

    /// The relay's answer to the last request.
    ///
    /// # Panics
    /// If it is not HTTP.
    pub fn answer(&self) -> Answer {
        let all = String::from_utf8_lossy(&lock(&self.seen.answered)).into_owned();
        let last = all.rfind("HTTP/1.1 ").map(|at| &all[at..]).unwrap_or_else(|| panic!("no answer to {}", lock(&self.seen.request)));
        let (head, body) = last.split_once("\r\n\r\n").expect("a head has an end");
        let status = head[9..12].parse().expect("a status");
        let first = |text: &str| serde_json::Deserializer::from_str(text).into_iter::<Value>().next().and_then(Result::ok);
        let problem = match (status, body.find(r#"{"type":"refused""#)) {
            (101, Some(at)) => first(&body[at..]).map(|refused| refused["problem"].clone()),
            _ => first(body),
        };
        problem.iter().for_each(observed::body);
        Answer { status, head: head.to_lowercase(), problem: problem.unwrap_or(Value::Null) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("the lock is not poisoned")
}

fn acceptor(state: &Path) -> TlsAcceptor {
    let chain = CertificateDer::pem_file_iter(state.join("tls.pem")).expect("the relay's certificate");
    let chain = chain.collect::<Result<_, _>>().expect("certificates in PEM");
    let key = PrivateKeyDer::from_pem_file(state.join("tls.key")).expect("the relay's key");
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let config = config.with_safe_default_protocol_versions().expect("the provider has them").with_no_client_auth();
    TlsAcceptor::from(Arc::new(config.with_single_cert(chain, key).expect("they belong together")))
}

async fn pass(tcp: TcpStream, relay: SocketAddr, ca_file: PathBuf, acceptor: TlsAcceptor, seen: Arc<Seen>) {
    let mut client = acceptor.accept(tcp).await.expect("callers trust the relay's certificate");
    let mut server = tls(TcpStream::connect(relay).await.expect("the relay listens"), &ca_file, &["http/1.1"])
        .await
        .expect("the TLS handshake succeeds");
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(client.read_u8().await.expect("a head has an end"));
    }
    let mut head = String::from_utf8(request).expect("a head is text");
    for (from, to) in lock(&seen.replace).iter() {
        assert!(head.contains(from), "{from:?} is not in {head}");
        head = head.replacen(from, to, 1);
    }
    lock(&seen.request).clone_from(&head);
    server.write_all(head.as_bytes()).await.expect("the relay accepts bytes");
    let (mut client_reads, mut client_writes) = split(client);
    let (mut server_reads, mut server_writes) = split(server);
    let back = async {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(count @ 1..) = server_reads.read(&mut buffer).await {
            lock(&seen.answered).extend_from_slice(&buffer[..count]);
            if client_writes.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
        client_writes.shutdown().await.ok();
    };
    let forth = async {
        let mut first = [0; 1];
        if let Ok(1) = client_reads.read(&mut first).await
            && server_writes.write_all(&first).await.is_ok()
        {
            seen.callers_answered.send_modify(|count| *count += 1);
            copy(&mut client_reads, &mut server_writes).await.ok();
        }
    };
    tokio::select! {
        () = back => {}
        () = forth => {}
    }
}
