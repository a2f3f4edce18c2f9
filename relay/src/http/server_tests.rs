//! Connections over pipes with a paused clock: answers that are never read or read slowly, and requests of forwarded clients.

use axum::Router;
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;
use crate::limits::Limits;
use crate::net::client_address::network;

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const REQUEST: &str = "GET /long HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn server(limits: &Limits) -> ConnectionServer {
    let router = Router::new().route("/long", get(async || "x".repeat(4_000))).route("/short", get(async || "short"));
    ConnectionServer::new(HttpService::new(router), &Times::default(), Admission::new(limits), Tasks::default(), Lifecycle::default())
}

/// Sends a request over a connection of its own from a load balancer, and returns the status line's number.
async fn status(server: &ConnectionServer, from: &str, forwarded: &str) -> String {
    let (local, mut remote) = duplex(1 << 16);
    server.serve_memory(local, from.parse().unwrap());
    let request = format!("GET /short HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: {forwarded}\r\n\r\n");
    remote.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    remote.read_exact(&mut head).await.unwrap();
    // The connection stays open, as a load balancer's does.
    std::mem::forget(remote);
    String::from_utf8_lossy(&head[9..]).into_owned()
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_reads_its_answers_is_dropped() {
    let server = server(&Limits::default());
    let (local, mut remote) = duplex(1 << 10);
    let start = Instant::now();
    server.serve_memory(local, CLIENT);
    // The pipe holds a fraction of the answers, and of these requests.
    let requests = REQUEST.repeat(10_000);
    remote.write_all(requests.as_bytes()).await.unwrap_err();
    assert_eq!(start.elapsed(), server.http_write_timeout);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_slowly_gets_its_whole_answer() {
    let server = server(&Limits::default());
    let (local, mut remote) = duplex(1 << 10);
    server.serve_memory(local, CLIENT);
    remote.write_all(REQUEST.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let (mut answer, mut piece) = (Vec::new(), [0; 100]);
    loop {
        tokio::time::sleep(Duration::from_secs(9)).await;
        match remote.read(&mut piece).await.unwrap() {
            0 => break,
            count => answer.extend_from_slice(&piece[..count]),
        }
    }
    assert!(answer.ends_with(&[b'x'; 4_000]));
}

#[tokio::test(start_paused = true)]
async fn a_forwarded_client_has_its_own_share_and_its_load_balancer_none() {
    let limits = Limits { unauthenticated_per_address: 2.try_into().unwrap(), ..Limits::default() };
    let proxies = TrustedProxies::new(vec![network("10.0.0.0/8").unwrap()]);
    let server = ConnectionServer { trusted_proxies: proxies, ..server(&limits) };
    for _ in 0..2 {
        assert_eq!(status(&server, "10.0.0.1", "198.51.100.7").await, "200");
    }
    assert_eq!(status(&server, "10.0.0.1", "198.51.100.7").await, "503");
    for client in 1..=9 {
        assert_eq!(status(&server, "10.0.0.1", &format!("203.0.113.{client}")).await, "200");
        assert_eq!(status(&server, "10.0.0.1", "10.0.0.2").await, "200", "the load balancer's own");
    }
}
