//! Every refusal before a stream exists: form, token, permission and problem text; and control channels that break the protocol.

use std::time::Duration;

use futures_util::SinkExt;
use moorline_proto::claims::{AccessRule, Action, Audience, CallerClaims};
use moorline_proto::control::{FromDevice, Hello, ToDevice};
use moorline_proto::id::Instance;
use moorline_proto::names::{CONTROL, CONTROL_SUBPROTOCOL};
use moorline_proto::proof::ProofClaims;
use moorline_proto::secret::Secret;
use moorline_proto::text::Text;
use moorline_relay::access::mint::SigningKey;
use moorline_tests::memory::{HOST, INSTANCE, MemoryWorld};
use moorline_tests::observed;
use moorline_tests::wire::{ChannelClosed, Persona, WireDevice, WireLeg, bearer, proof, upgrade};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// Sends these bytes; returns status and problem code.
async fn raw(world: &MemoryWorld, request: &str) -> (u16, String) {
    let mut pipe = world.dial();
    pipe.write_all(request.as_bytes()).await.expect("the relay accepts bytes");
    let mut answer = Vec::new();
    pipe.read_to_end(&mut answer).await.expect("the relay answers");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let code = answer.split("\"code\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default().to_owned();
    (status, code)
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{headers}\r\n")
}

const UPGRADE: &str =
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";

#[tokio::test(start_paused = true)]
async fn the_form_of_a_request_is_checked_before_anything_else() {
    let world = MemoryWorld::start().await;
    let connect = "/v1/devices/lamp-1/connect/ssh";
    let stream = "Sec-WebSocket-Protocol: moorline.stream.v1\r\n";
    let long = format!("X-Long: {}\r\n", "x".repeat(40_000));
    let many = "X-Many: x\r\n".repeat(110);
    for (request, status, code) in [
        (get("/", ""), 404, "no_such_route"),
        (get("/metrics", ""), 404, "no_such_route"),
        (get("/v1/nothing", ""), 404, "no_such_route"),
        (get("/v1/%61bout", ""), 400, "malformed"),
        (get("/v1//about", ""), 400, "malformed"),
        (get("/v1/devices/../about", ""), 400, "malformed"),
        (get("/v1/about?x=1", ""), 400, "malformed"),
        (get(&format!("/v1/{}", "x".repeat(9_000)), ""), 413, "too_large"),
        (get("/v1/about", &long), 413, "too_large"),
        (get("/v1/about", &many), 413, "too_large"),
        ("GET /v1/about HTTP/1.1\r\n\r\n".to_owned(), 400, "malformed"),
        (get("/v1/about", "Host: other\r\n"), 400, "malformed"),
        (format!("GET /v1/about HTTP/1.0\r\nHost: {HOST}\r\n\r\n"), 400, "malformed"),
        (format!("POST /v1/about HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\n\r\n"), 405, "method_not_allowed"),
        (format!("HEAD {connect} HTTP/1.1\r\nHost: {HOST}\r\n{UPGRADE}{stream}\r\n"), 405, ""),
        (get(connect, ""), 426, "upgrade_required"),
        (get(connect, &UPGRADE.replace("13", "12")), 426, "upgrade_required"),
        (get(connect, &UPGRADE.replace("AAAAAAAAAAAAAAAAAAAAAA==", "short")), 400, "malformed"),
        (get(connect, UPGRADE), 400, "malformed"),
        (get(connect, &format!("{UPGRADE}Sec-WebSocket-Protocol: moorline.control.v1\r\n")), 400, "malformed"),
        (get(connect, &format!("{UPGRADE}{stream}Content-Length: 1\r\n")), 400, "malformed"),
        (get(connect, &format!("{UPGRADE}{stream}Origin: https://evil.example\r\n")), 403, "origin_not_allowed"),
        (get("/v1/devices/Lamp-1/connect/ssh", &format!("{UPGRADE}{stream}")), 400, "malformed"),
        (get("/v1/devices/lamp-1/connect/s_h", &format!("{UPGRADE}{stream}")), 400, "malformed"),
        (get(connect, &format!("{UPGRADE}{stream}Moorline-Deadline: soon\r\n")), 400, "malformed"),
        (get(connect, &format!("{UPGRADE}{stream}Moorline-Deadline: 0\r\n")), 400, "malformed"),
        (get(connect, &format!("{UPGRADE}{stream}Moorline-Data: ???\r\n")), 400, "malformed"),
        (get(connect, &format!("{UPGRADE}{stream}Moorline-Reason: %ff\r\n")), 400, "malformed"),
        (get(connect, &format!("{UPGRADE}{stream}Moorline-Features: A\r\n")), 400, "malformed"),
        (get(connect, &format!("{UPGRADE}{stream}Idempotency-Key: \r\n")), 400, "malformed"),
        (get("/v1/legs/n1/xyz", &format!("{UPGRADE}{stream}")), 400, "malformed"),
        (get(connect, &format!("{UPGRADE}{stream}")), 401, "token_missing"),
        (get("/v1/devices", ""), 401, "token_missing"),
        (get("/v1/devices", "Authorization: Basic eA==\r\n"), 400, "malformed"),
        (get("/v1/devices", "Authorization: Bearer x\r\nAuthorization: Bearer y\r\n"), 400, "malformed"),
        (get("/v1/devices", "Authorization: Bearer x.y.z\r\n"), 401, "token_invalid"),
    ] {
        let close = request.replacen("\r\n", "\r\nConnection: close\r\n", usize::from(!request.contains("Connection: Upgrade")));
        assert_eq!(raw(&world, &close).await, (status, code.to_owned()), "{}", request.chars().take(300).collect::<String>());
    }
}

#[tokio::test(start_paused = true)]
async fn an_invalid_body_is_refused_by_the_name_of_its_field() {
    let world = MemoryWorld::start().await;
    let _device = world.device("lamp-1").await;
    let post = async |body| world.request("POST", "/v1/devices/lamp-1/streams", &[], Some(body)).await;
    let put = async |body| world.request("PUT", "/v1/devices/lamp-9", &[], Some(body)).await;
    // 32 bytes each, but not a point on the curve.
    let nowhere = format!("{}E", "A".repeat(42));
    for (answer, word) in [
        (post(json!({})).await, "service"),
        (post(json!({"service": "SSH"})).await, "lower case"),
        (post(json!({"service": "ssh", "deadline_s": 0})).await, "deadline"),
        (post(json!({"service": "ssh", "data": "?"})).await, "data"),
        (post(json!({"service": "ssh", "reason": "x".repeat(257)})).await, "reason"),
        (put(json!({"keys": []})).await, "keys"),
        (put(json!({"keys": ["no key"]})).await, "keys"),
        (put(json!({"keys": [{"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA"}]})).await, "keys"),
        (put(json!({"keys": [{"kty": "EC", "crv": "P-256", "x": nowhere, "y": nowhere}]})).await, "keys[0]"),
        (put(json!({"keys": [], "colour": "red"})).await, "colour"),
    ] {
        assert_eq!((answer.0, answer.2["code"].as_str()), (400, Some("malformed")), "{}", answer.2);
        assert!(answer.2["detail"].as_str().is_some_and(|detail| detail.contains(word)), "{word} in {}", answer.2);
    }
    let large = post(json!({"service": "ssh", "reason": "x".repeat(20_000)})).await;
    assert_eq!((large.0, large.2["code"].as_str()), (413, Some("too_large")));
}

#[tokio::test(start_paused = true)]
async fn a_key_stands_once_in_a_device_however_it_is_written() {
    let world = MemoryWorld::start().await;
    let (key, other) = (world.key(&"lamp-1".parse().unwrap()).await, world.key(&"lamp-2".parse().unwrap()).await);
    let (pem, other) = (json!(key.public().to_pem()), json!(other.public().to_pem()));
    let jwk = serde_json::to_value(key.public().to_jwk()).expect("a JWK is JSON");
    for (keys, second) in [(json!([pem, pem]), 1), (json!([pem, jwk]), 1), (json!([jwk, other, pem]), 2)] {
        let put = world.request("PUT", "/v1/devices/lamp-1", &[], Some(json!({"keys": keys}))).await;
        let detail = format!("keys[{second}]: the same key as keys[0]; send it once");
        assert_eq!((put.0, &put.2["code"], &put.2["detail"]), (400, &json!("malformed"), &json!(detail)));
    }
    assert_eq!(world.request("PUT", "/v1/devices/lamp-1", &[], Some(json!({"keys": [pem]}))).await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn a_key_belongs_to_one_device() {
    let world = MemoryWorld::start().await;
    let key = world.key(&"lamp-1".parse().unwrap()).await;
    let taken = world.request("PUT", "/v1/devices/lamp-2", &[], Some(json!({"keys": [key.public().to_pem()]}))).await;
    assert_eq!((taken.0, taken.2["code"].as_str()), (409, Some("conflict")));
}

async fn request(world: &MemoryWorld, token: &Secret, path: &str) -> (u16, String) {
    let refusal = WireLeg::join(world.dial(), HOST, path, &[("authorization", &bearer(token))]).await.unwrap_err();
    (refusal.status, refusal.problem.map(|problem| problem.code).unwrap_or_default())
}

#[tokio::test(start_paused = true)]
async fn a_token_is_valid_for_its_time_its_relay_and_its_access_rules_only() {
    let world = MemoryWorld::start().await;
    let _device = world.device("lamp-1").await;
    let ssh = "/v1/devices/lamp-1/connect/ssh";
    let good: CallerClaims = {
        let rules = [AccessRule {
            actions: vec![Action::StreamOpen],
            devices: vec!["lamp-*".parse().unwrap()],
            services: vec!["http".parse().unwrap()],
        }];
        let token = world.token_for("bob", &rules);
        let payload = token.reveal().split('.').nth(1).unwrap().to_owned(); // decoded, to be changed
        serde_json::from_slice(&data_encoding::BASE64URL_NOPAD.decode(payload.as_bytes()).unwrap()).unwrap()
    };
    for (claims, path, status, code) in [
        (CallerClaims { exp: good.iat - 60, ..good.clone() }, ssh, 401, "token_expired"),
        (CallerClaims { nbf: Some(good.iat + 60), ..good.clone() }, ssh, 401, "token_not_yet_valid"),
        (CallerClaims { aud: Audience::One("other.test".to_owned()), ..good.clone() }, ssh, 401, "token_invalid"),
        (CallerClaims { iss: "https://evil.example".to_owned(), ..good.clone() }, ssh, 401, "token_invalid"),
        (good.clone(), ssh, 403, "forbidden"),
        (good.clone(), "/v1/devices/door-1/connect/http", 404, "device_unknown"),
        (good.clone(), "/v1/devices/lamp-7/connect/http", 404, "device_unknown"),
    ] {
        assert_eq!(request(&world, &world.sign(&claims), path).await, (status, code.to_owned()), "{claims:?}");
    }
    let other_key = SigningKey::generate().unwrap();
    assert_eq!(request(&world, &other_key.mint(&good).unwrap(), ssh).await, (401, "token_invalid".to_owned()));
    let see_nothing = world.token_for("bob", &[]);
    let list = WireLeg::join(world.dial(), HOST, ssh, &[("authorization", &bearer(&see_nothing))]).await.unwrap_err();
    assert_eq!(list.status, 404, "a token without access learns nothing");
}

#[tokio::test(start_paused = true)]
async fn leg_tokens_of_other_streams_and_forged_ones_are_unknown() {
    let world = MemoryWorld::start().await;
    let mut device = world.device("lamp-1").await;
    let _one = world.connect("lamp-1", "ssh", &[]).await.unwrap();
    let one = device.offer().await;
    let _two = world.connect("lamp-1", "ssh", &[]).await.unwrap();
    let two = device.offer().await;
    let unknown = (404, "stream_unknown".to_owned());
    assert_eq!(request(&world, &two.token, one.url.as_str()).await, unknown);
    assert_eq!(request(&world, &Secret::new("mrl_leg_forged"), one.url.as_str()).await, unknown);
    assert_eq!(request(&world, &one.token, &one.url.as_str().replace("/n1/", "/n2/")).await, unknown);
    assert_eq!(request(&world, &one.token, "/v1/legs/n1/00000000000000000000000000000000").await, unknown);
    let headers = [("sec-websocket-protocol", format!("moorline.token.{}", one.token.reveal()))]; // as browsers must
    let mut leg = WireLeg::join(world.dial(), HOST, one.url.as_str(), &[(headers[0].0, &headers[0].1)])
        .await
        .expect("a second subprotocol carries it");
    device.accept(one.stream).await;
    leg.opened().await;
}

/// A control channel after its challenge.
async fn challenged(world: &MemoryWorld) -> (WebSocketStream<DuplexStream>, ProofClaims) {
    let (mut socket, _) = upgrade(world.dial(), HOST, CONTROL, CONTROL_SUBPROTOCOL, &[]).await.unwrap();
    let nonce = match futures_util::StreamExt::next(&mut socket).await {
        Some(Ok(Message::Text(text))) => match ToDevice::decode(&text) {
            Ok(moorline_proto::message::Decoded::Known(ToDevice::Challenge(challenge))) => challenge.nonce,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    let instance: Instance = INSTANCE.parse().unwrap();
    (socket, ProofClaims { nonce, aud: HOST.to_owned(), sub: "lamp-1".parse().unwrap(), instance })
}

async fn closed_after(socket: &mut WebSocketStream<DuplexStream>, message: Message) -> (u16, String) {
    socket.send(message).await.unwrap();
    loop {
        match futures_util::StreamExt::next(socket).await {
            Some(Ok(Message::Close(Some(frame)))) => {
                observed::close(frame.code.into());
                return (frame.code.into(), frame.reason.to_string());
            }
            Some(Ok(_)) => {}
            other => panic!("{other:?} instead of a Close"),
        }
    }
}

fn hello(claims: &ProofClaims, key: &SigningKey) -> Hello {
    Hello {
        device: claims.sub.clone(),
        instance: claims.instance.clone(),
        proof: Text::truncated(&proof(key, claims)),
        agent: Text::truncated("wire"),
        services: Vec::new(),
        features: Vec::new(),
        hostname: None,
        os: None,
    }
}

#[tokio::test(start_paused = true)]
pub(crate) async fn a_proof_is_valid_for_this_device_this_relay_and_this_connection_only() {
    let world = MemoryWorld::start().await;
    let key = world.key(&"lamp-1".parse().unwrap()).await;
    let foreign = SigningKey::generate().unwrap();
    let (_, stale) = challenged(&world).await;
    let changes: [fn(&mut ProofClaims, &ProofClaims); 5] = [
        |claims, _| claims.aud = "other.test".to_owned(),
        |claims, stale| claims.nonce = stale.nonce,
        |claims, _| claims.instance = "ffffffffffffffff".parse().unwrap(),
        |claims, _| claims.sub = "lamp-2".parse().unwrap(),
        |_, _| {},
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let (mut socket, claims) = challenged(&world).await;
        let mut hello = hello(&claims, &key);
        let mut other = claims.clone();
        change(&mut other, &stale);
        let signer = if number == 4 { &foreign } else { key.as_ref() };
        hello.proof = Text::truncated(&proof(signer, &other));
        let (code, reason) = closed_after(&mut socket, Message::text(FromDevice::from(hello).encode())).await;
        assert_eq!(code, 4401, "change {number}: {reason}");
    }
    let (mut socket, mut claims) = challenged(&world).await;
    claims.sub = "nobody".parse().unwrap();
    let hello = FromDevice::from(hello(&claims, &key)).encode();
    assert_eq!(closed_after(&mut socket, Message::text(hello)).await.0, 4401, "an unknown device gets the same code");
}

#[tokio::test(start_paused = true)]
async fn a_control_channel_that_breaks_the_protocol_is_closed_with_the_field_in_the_reason() {
    let world = MemoryWorld::start().await;
    for (message, words) in [
        (Message::text("no json"), "type"),
        (Message::text(r#"{"type":"hello"}"#), "device"),
        (Message::text(r#"{"type":"hello","device":"Lamp"}"#), "lower case"),
        (Message::binary(vec![1]), "binary"),
        (Message::text("x".repeat(65_537)), "65537"),
    ] {
        let (mut socket, _) = challenged(&world).await;
        let (code, reason) = closed_after(&mut socket, message).await;
        assert!(code == 4400 && reason.starts_with("protocol: ") && reason.contains(words), "{code} {reason}");
    }
    for (text, words) in [
        (r#"{"type":"accept"}"#, "stream"),
        (r#"{"type":"accept","stream":"xyz"}"#, "hex"),
        (r#"{"type":"heartbeat","interval_ms":"often"}"#, "interval_ms"),
        ("[]", "type"),
    ] {
        let mut device = world.device("lamp-1").await;
        device.socket.send(Message::text(text)).await.unwrap();
        let ChannelClosed(code, reason) = device.closed().await;
        assert!(code == 4400 && reason.contains(words), "{code} {reason}");
    }
    let mut device = world.device("lamp-1").await;
    device.socket.send(Message::text(r#"{"type":"from_the_future","x":1}"#)).await.unwrap();
    let _caller = world.connect("lamp-1", "ssh", &[]).await.unwrap();
    device.offer().await;
    let (_, claims) = challenged(&world).await;
    let key = world.key(&claims.sub).await;
    device.send(hello(&claims, &key)).await;
    assert_eq!(device.closed().await, ChannelClosed(4400, "protocol: a second hello".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn sixteen_messages_before_the_hello_are_ignored_and_no_more() {
    let world = MemoryWorld::start().await;
    for (messages, verdict) in [(16, Ok("welcome")), (17, Err("protocol: too many messages before hello"))] {
        let (mut socket, claims) = challenged(&world).await;
        let key = world.key(&claims.sub).await;
        let hello = FromDevice::from(hello(&claims, &key)).encode();
        for _ in 0..messages {
            socket.send(Message::text(r#"{"type":"from_the_future"}"#)).await.unwrap();
        }
        socket.send(Message::text(hello)).await.unwrap();
        match (futures_util::StreamExt::next(&mut socket).await, verdict) {
            (Some(Ok(Message::Text(text))), Ok(kind)) => assert!(text.contains(kind), "{text}"),
            (Some(Ok(Message::Close(Some(frame)))), Err(reason)) => assert_eq!((u16::from(frame.code), &*frame.reason), (4400, reason)),
            (other, verdict) => panic!("{other:?} instead of {verdict:?} after {messages} messages"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_closed_after_ten_seconds() {
    let world = MemoryWorld::start().await;
    let begun = Instant::now();
    let (mut socket, _) = challenged(&world).await;
    let (code, _) = closed_after(&mut socket, Message::Ping(Vec::new().into())).await;
    assert_eq!((code, begun.elapsed()), (4400, Duration::from_secs(10)));
    let mut silent = world.dial();
    let begun = Instant::now();
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0, "a connection without a request is closed");
    assert_eq!(begun.elapsed(), Duration::from_secs(60));
    let mut slow = world.dial();
    slow.write_all(b"GET /v1/about HT").await.unwrap();
    let begun = Instant::now();
    slow.read_to_end(&mut Vec::new()).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::from_secs(10), "an incomplete head");
}

#[tokio::test(start_paused = true)]
async fn a_device_without_the_heartbeat_feature_is_pinged_and_one_that_vanished_is_found_dead() {
    let world = MemoryWorld::start().await;
    let device = world.device("lamp-1").await;
    let begun = Instant::now();
    // The device's end is not read any more, so it sends no pongs.
    world.until("the device is offline", |relay| relay.devices() == 0).await;
    let after = begun.elapsed();
    assert!(after >= Duration::from_secs(62) && after <= Duration::from_secs(63), "two and a half heartbeats: {after:?}");
    drop(device);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_pings_itself_is_not_pinged() {
    let world = MemoryWorld::start().await;
    let device = "lamp-1".parse().unwrap();
    let key = world.key(&device).await;
    let persona = Persona {
        device,
        key: &key,
        instance: INSTANCE.parse().unwrap(),
        services: &[],
        host: HOST,
        features: &["heartbeat", "unheard-of"],
    };
    let mut device = WireDevice::connect(world.dial(), &persona).await.unwrap();
    assert_eq!(device.welcome.features.iter().map(ToString::to_string).collect::<Vec<_>>(), ["heartbeat"]);
    assert_eq!((device.welcome.heartbeat_ms, device.welcome.heartbeat_max_ms), (25_000, 150_000));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(600) {
        device.socket.send(Message::Ping(b"mine".to_vec().into())).await.unwrap();
        match futures_util::StreamExt::next(&mut device.socket).await {
            Some(Ok(Message::Pong(payload))) => assert_eq!(&payload[..], b"mine"),
            other => panic!("{other:?}"),
        }
        tokio::time::sleep(Duration::from_secs(25)).await;
    }
    assert_eq!(world.relay.devices(), 1);
}
