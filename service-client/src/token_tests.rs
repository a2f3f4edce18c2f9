//! Tokens that expire while the client lives: taken again from their source, and announced before their end.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use data_encoding::BASE64URL_NOPAD;
use futures_util::SinkExt;
use moorline_proto::problem::{Problem, ProblemCode};
use moorline_proto::secret::Secret;
use moorline_proto::timestamp::Timestamp;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::join;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use crate::client::Client;
use crate::open::Open;
use crate::scripted_relay::{Relay, relay, ticket};
use crate::token_expiry::TokenExpiry;

/// Where the tests' token comes from: what is there now, and how often it was read.
#[derive(Clone, Default)]
struct Shelf {
    token: Arc<Mutex<Option<Secret>>>,
    reads: Arc<AtomicUsize>,
}

impl Shelf {
    fn put(&self, token: &str) {
        *self.token.lock().unwrap() = Some(Secret::new(token));
    }

    fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }

    fn client(&self, client: Client) -> Client {
        let shelf = self.clone();
        client.with_token_source(move || {
            shelf.reads.fetch_add(1, Ordering::Relaxed);
            shelf.token.lock().unwrap().clone().ok_or_else(|| "there is none".into())
        })
    }
}

fn lamp(client: &Client) -> Open {
    client.open(&"lamp-1".parse().unwrap(), &"ssh".parse().unwrap())
}

fn expired() -> Problem {
    Problem::new(ProblemCode::TokenExpired, "its time is over")
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_is_read_again_and_open_streams_go_on() {
    let (mut relay, client) = relay();
    let shelf = Shelf::default();
    let client = shelf.client(client);
    let (stream, leg) = join!(lamp(&client), async { relay.request().await.open().await });
    let (mut first, mut first_leg) = (stream.unwrap(), leg);
    assert_eq!(shelf.reads(), 0, "a token that is taken is not read again");

    shelf.put("renewed");
    let (second, keys) = join!(lamp(&client), async {
        let refused = relay.request().await;
        let old = refused.header("idempotency-key").to_owned();
        refused.refuse(&expired()).await;
        let retried = relay.request().await;
        assert_eq!(retried.header("authorization"), "Bearer renewed");
        let new = retried.header("idempotency-key").to_owned();
        drop(retried.open().await);
        (old, new)
    });
    second.unwrap();
    assert_ne!(keys.0, keys.1);

    let clone = client.clone();
    let (third, ()) = join!(clone.devices(), async {
        let request = relay.request().await;
        assert_eq!(request.header("authorization"), "Bearer renewed", "a clone has it too");
        request.respond(200, &json!({"devices": []})).await;
    });
    third.unwrap();
    assert_eq!(shelf.reads(), 1);

    let mut text = [0; 4];
    let (read, ()) = join!(first.read_exact(&mut text), async {
        first_leg.send(Message::binary("ping")).await.unwrap();
    });
    assert_eq!((read.unwrap(), &text), (4, b"ping"), "the stream of the old token goes on");
}

#[tokio::test(start_paused = true)]
async fn a_second_refusal_is_reported_and_nothing_is_read_for_other_refusals() {
    let (mut relay, client) = relay();
    let shelf = Shelf::default();
    let client = shelf.client(client);
    let refused = async |relay: &mut Relay, tokens: &[&str], code: ProblemCode| {
        let (opened, ()) = join!(lamp(&client), async {
            for token in tokens {
                let request = relay.request().await;
                assert_eq!(request.header("authorization"), format!("Bearer {token}"));
                request.refuse(&Problem::new(code, "no")).await;
            }
        });
        assert_eq!(opened.unwrap_err().problem().and_then(Problem::known_code), Some(code));
        assert!(relay.is_idle());
    };
    refused(&mut relay, &["caller-token"], ProblemCode::TokenExpired).await; // the source fails
    shelf.put("caller-token");
    refused(&mut relay, &["caller-token"], ProblemCode::TokenExpired).await; // and has the same token
    assert_eq!(shelf.reads(), 2);
    shelf.put("second");
    refused(&mut relay, &["caller-token"], ProblemCode::TokenInvalid).await;
    assert_eq!(shelf.reads(), 2);
    refused(&mut relay, &["caller-token", "second"], ProblemCode::TokenExpired).await;
    assert_eq!(shelf.reads(), 3, "once for a request");
}

#[tokio::test(start_paused = true)]
async fn a_negotiation_and_a_request_about_devices_take_a_renewed_token_too() {
    let (mut relay, client) = relay();
    let shelf = Shelf::default();
    let client = shelf.client(client);
    shelf.put("second");
    let (negotiated, ()) = join!(lamp(&client).negotiate(), async {
        relay.request().await.refuse(&expired()).await;
        let request = relay.request().await;
        assert_eq!(request.header("authorization"), "Bearer second");
        request.respond(202, &ticket("/v1/legs/n1/x")).await;
    });
    negotiated.unwrap();
    shelf.put("third");
    let id = "lamp-1".parse().unwrap();
    let (removed, ()) = join!(client.remove_device(&id), async {
        relay.request().await.refuse(&expired()).await;
        let request = relay.request().await;
        assert_eq!((request.line.as_str(), request.header("authorization")), ("DELETE /v1/devices/lamp-1 HTTP/1.1", "Bearer third"));
        request.respond(204, &json!({})).await;
    });
    removed.unwrap();
}

/// A token that says it expires at this second.
fn until(second: u64, name: &str) -> String {
    let payload = json!({"exp": second, "sub": name}).to_string();
    format!("eyJ.{}.c2ln", BASE64URL_NOPAD.encode(payload.as_bytes()))
}

#[tokio::test(start_paused = true)]
async fn each_token_is_told_once_before_it_expires_unless_another_has_come() {
    let (_relay, client) = relay();
    let shelf = Shelf::default();
    let begun = Instant::now();
    let now = move || Timestamp::from_millis(1_000_000 + u64::try_from(begun.elapsed().as_millis()).unwrap());
    let second = |second: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
    let client = shelf.client(Client::with_dialer(client.inner.dialer.clone(), Some(Secret::new(until(5_000, "first")))));
    let mut expiry = TokenExpiry::new(client.clone(), Duration::from_secs(900), Box::new(now));
    shelf.put(&until(5_000, "first"));
    assert_eq!(expiry.next().await, second(5_000));
    assert_eq!(begun.elapsed(), Duration::from_secs(3_100), "a quarter of an hour before");

    // It was renewed after a refusal; and once more by its owner, before that one's end was told.
    shelf.put(&until(9_000, "second"));
    let (told, renewed) = join!(expiry.next(), async {
        let renewed = client.inner.token.renewed(Some(Secret::new(until(5_000, "first")))).await;
        shelf.put(&until(20_000, "third"));
        renewed
    });
    assert_eq!((renewed, told), (Some(Secret::new(until(9_000, "second"))), second(20_000)));
    assert_eq!(begun.elapsed(), Duration::from_secs(18_100));
    assert!(tokio::time::timeout(Duration::from_secs(100_000), expiry.next()).await.is_err(), "once");
}

#[test]
fn neither_the_client_nor_its_token_is_printed_with_a_secret() {
    let (_relay, client) = relay();
    let printed = format!("{:?}", Shelf::default().client(client));
    assert!(printed.contains("Secret(12 bytes)") && !printed.contains("caller-token"), "{printed}");
}
