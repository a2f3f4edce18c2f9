//! Services behind devices: an echo, a web server, a WebSocket server. Dropping one stops it.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A service on a port of its own.
#[derive(Debug)]
pub struct Target {
    /// Its listening address.
    pub address: SocketAddr,
    _serving: JoinSet<()>,
}

impl Target {
    /// Serves every connection with `serve`.
    pub async fn start<F, S>(serve: S) -> Self
    where
        S: Fn(TcpStream) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                connections.spawn(serve(tcp));
            }
        });
        Self { address, _serving: serving }
    }

    /// Echoes bytes and half-closes when its peer does.
    pub async fn echo() -> Self {
        Self::start(|mut tcp| async move {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(count @ 1..) = tcp.read(&mut buffer).await {
                if tcp.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
            tcp.shutdown().await.ok();
        })
        .await
    }

    /// A web server: `GET` answers `hello`, `POST` the SHA-256 of its body in hex.
    pub async fn web() -> Self {
        Self::start(|tcp| async move {
            let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service_fn(answer)).await;
            if let Err(error) = served {
                println!("the web server: {error}");
            }
        })
        .await
    }

    /// A WebSocket server that echoes every message.
    pub async fn websocket() -> Self {
        Self::start(|tcp| async move {
            let Ok(mut socket) = tokio_tungstenite::accept_async(tcp).await else { return };
            while let Some(Ok(message)) = socket.next().await {
                if (message.is_binary() || message.is_text()) && socket.send(message).await.is_err() {
                    return;
                }
            }
        })
        .await
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() == http::Method::GET {
        return Ok(Response::new(Full::new(Bytes::from_static(b"hello"))));
    }
    let mut hash = Sha256::new();
    let mut body = request.into_body();
    while let Some(Ok(frame)) = body.frame().await {
        if let Some(data) = frame.data_ref() {
            hash.update(data);
        }
    }
    Ok(Response::new(Full::new(hex(&hash.finalize()).into())))
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The SHA-256 of a file, as hex.
pub fn file_hash(path: &std::path::Path) -> String {
    let mut hash = Sha256::new();
    let mut file = std::fs::File::open(path).expect("the file is there");
    let mut buffer = vec![0; 1 << 20];
    while let count @ 1.. = std::io::Read::read(&mut file, &mut buffer).expect("the file is read") {
        hash.update(&buffer[..count]);
    }
    hex(&hash.finalize())
}
