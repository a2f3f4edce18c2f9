//! A leg over TLS on TCP, with the relay's end of it scripted: what it reads at once, and that it owns no buffer while it is silent.

use std::future::poll_fn;
use std::task::Poll;

use bytes::Bytes;
use futures_util::SinkExt;
use moorline_proto::leg::{DELIVERED_TEXT, END_TEXT, LegText};
use moorline_tls::ClientStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::connection::Connection;
use crate::dial_tests::relay_of_a_ca;
use crate::leg::{EndReason, Leg};
use crate::scripted_relay::{IDLE_TEXT, Received, Relay, opened, pattern};
use crate::socket::Socket;
use crate::trust::client_config;

/// A leg that is used again, before its first message.
async fn joined() -> (Leg, Relay<TlsStream<TcpStream>>) {
    let (ca, acceptor) = relay_of_a_ca();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connecting = async {
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let config = client_config(Some(&ca)).unwrap();
        let mut tls = ClientStream::connect(config, "localhost".try_into().unwrap(), Socket::new(tcp)).await.unwrap();
        tls.flush().await.unwrap();
        Leg::reusable(Connection::tls(tls), Bytes::new())
    };
    let accepting = async { acceptor.accept(listener.accept().await.unwrap().0).await.unwrap() };
    let (leg, tls) = tokio::join!(connecting, accepting);
    (leg, Relay(WebSocketStream::from_raw_socket(tls, Role::Server, None).await))
}

fn opened_text() -> Message {
    Message::text(LegText::Opened(Box::new(opened())).encode())
}

/// Sends messages in one write.
async fn at_once<const N: usize>(relay: &mut Relay<TlsStream<TcpStream>>, messages: [Message; N]) {
    for message in messages {
        relay.0.feed(message).await.unwrap();
    }
    relay.0.flush().await.unwrap();
}

#[tokio::test]
async fn a_silent_stream_and_an_idle_leg_own_no_buffer() {
    let (mut leg, mut relay) = joined().await;
    let sent = pattern(300_000);
    let remote = async {
        at_once(&mut relay, [opened_text(), Message::Ping(Bytes::from_static(b"alive?")), Message::binary(b"hello".to_vec())]).await;
        assert_eq!(relay.next().await, Received::Pong(Bytes::from_static(b"alive?")));
        relay.send_bytes(&sent[..50_000]).await;
        assert_eq!(relay.bytes(sent.len()).await, sent);
        relay
    };
    let local = async {
        leg.opened().await.unwrap();
        let mut received = vec![0; 50_005];
        leg.read_exact(&mut received).await.unwrap();
        assert!(received[..5] == *b"hello" && received[5..] == sent[..50_000]);
        leg.write_all(&sent).await.unwrap();
        leg.flush().await.unwrap();
        leg
    };
    let (mut relay, mut leg) = tokio::join!(remote, local);
    let nothing = poll_fn(|cx| Poll::Ready(leg.poll_event(cx).is_pending()));
    assert!(nothing.await && !leg.owns_memory());

    let remote = async {
        assert_eq!(relay.next().await, Received::Text(END_TEXT.to_owned()));
        at_once(&mut relay, [Message::text(END_TEXT), Message::text(DELIVERED_TEXT), Message::text(IDLE_TEXT)]).await;
        relay
    };
    let local = async {
        leg.shutdown().await.unwrap();
        assert_eq!(leg.read(&mut [0; 8]).await.unwrap(), 0);
        leg.finish().await
    };
    let (_relay, (end, idle)) = tokio::join!(remote, local);
    let mut idle = idle.unwrap();
    let nothing = poll_fn(|cx| Poll::Ready(idle.poll_ended(cx).is_pending()));
    assert!(end == EndReason::Finished && nothing.await && !idle.owns_memory());
}

#[tokio::test]
async fn bytes_and_messages_of_one_read_come_in_order() {
    let (mut leg, mut relay) = joined().await;
    let sent = pattern(60_000);
    let messages = [opened_text(), Message::binary(sent.clone()), Message::binary(sent.clone()), Message::text(END_TEXT)];
    let remote = async {
        at_once(&mut relay, messages).await;
        relay.closed().await
    };
    let local = async {
        leg.opened().await.unwrap();
        let mut received = Vec::new();
        leg.read_to_end(&mut received).await.unwrap();
        assert!(received == [&sent[..], &sent].concat());
        drop(leg);
    };
    tokio::join!(remote, local);
}
