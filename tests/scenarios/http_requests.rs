//! HTTP requests that no Moorline program sends: each gets one response, a problem document if the request was parsed, and the connection is closed.

use std::time::Duration;

use moorline_tests::memory::{HOST, MemoryWorld};
use moorline_tests::unauthenticated_peer::{Answer, send_raw, upgrade_request};
use moorline_tests::wire::bearer;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

/// Every WebSocket route with its subprotocol.
const SOCKETS: [(&str, &str); 3] = [
    ("/v1/control", "moorline.control.v1"),
    ("/v1/devices/lamp-1/connect/ssh", "moorline.stream.v1"),
    ("/v1/legs/n1/00112233445566778899aabbccddeeff", "moorline.stream.v1"),
];

/// Longer than the relay waits for the rest of any request.
const LONG: Duration = Duration::from_secs(90);

async fn send(world: &MemoryWorld, request: &str) -> Answer {
    let response = send_raw(world.dial(), request.as_bytes(), LONG).await;
    assert!(response.text.matches("\r\ndate: ").count() <= 1, "one response: {request}\n{}", response.text);
    response
}

#[tokio::test(start_paused = true)]
async fn an_invalid_request_to_a_websocket_route_gets_a_problem_that_names_what_is_missing() {
    let world = MemoryWorld::start().await;
    let token = format!("Authorization: {}\r\n", bearer(&world.token()));
    for (path, subprotocol) in SOCKETS {
        let good = upgrade_request(HOST, path, subprotocol, &token);
        let without = |line: &str| good.lines().filter(|own| !own.starts_with(line)).map(|line| format!("{line}\r\n")).collect::<String>();
        let plus = |line: &str| good.replacen("\r\n\r\n", &format!("\r\n{line}\r\n\r\n"), 1);
        for (request, status, code) in [
            (without("Upgrade"), 426, "upgrade_required"),
            (without("Connection"), 426, "upgrade_required"),
            (without("Sec-WebSocket-Version"), 426, "upgrade_required"),
            (good.replace("Upgrade: websocket", "Upgrade: h2c"), 426, "upgrade_required"),
            (good.replace("Version: 13", "Version: 8, 13"), 426, "upgrade_required"),
            (without("Sec-WebSocket-Key"), 400, "malformed"),
            (without("Sec-WebSocket-Protocol"), 400, "malformed"),
            (plus("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="), 400, "malformed"),
            (plus("Sec-WebSocket-Version: 13"), 400, "malformed"),
            (good.replace(subprotocol, "chat"), 400, "malformed"),
            (good.replace(subprotocol, &subprotocol.to_ascii_uppercase()), 400, "malformed"),
            (good.replace(subprotocol, "moorline.v2"), 400, "malformed"),
            (plus("Origin: https://evil.example"), 403, "origin_not_allowed"),
            (plus("Origin: null"), 403, "origin_not_allowed"),
            (plus("Content-Length: 5"), 400, "malformed"),
            (plus("Transfer-Encoding: chunked"), 400, "malformed"),
            (plus("Host: evil.example"), 400, "malformed"),
            (without("Host"), 400, "malformed"),
            (good.replace("HTTP/1.1", "HTTP/1.0"), 400, "malformed"),
            (good.replacen("GET", "HEAD", 1), 405, ""),
            (good.replacen("GET", "POST", 1), 405, "method_not_allowed"),
            (good.replacen("GET", "OPTIONS", 1), 405, "method_not_allowed"),
            (good.replacen("GET", "PRI", 1), 405, "method_not_allowed"),
        ] {
            let response = send(&world, &request).await;
            assert_eq!((response.status, &*response.code), (status, code), "{request}\n{}", response.text);
            // RFC 9110: name the protocol to upgrade to, and list the header in `Connection`.
            let names_the_upgrade = response.text.contains("\r\nconnection: close, upgrade\r\nupgrade: websocket\r\n");
            assert_eq!(names_the_upgrade, status == 426, "{request}\n{}", response.text);
            if code == "malformed" && request.contains("chat") {
                assert!(response.text.contains(&format!(r#""supported":["{subprotocol}"]"#)), "{}", response.text);
            }
        }
    }
    assert!(world.relay.tasks().is_empty(), "nothing is left: {:?}", world.relay.tasks());
}

#[tokio::test(start_paused = true)]
async fn paths_are_never_percent_decoded() {
    let world = MemoryWorld::start().await;
    let token = format!("Authorization: {}\r\n", bearer(&world.token()));
    for path in [
        "/v1/devices/lamp-1%2Fconnect%2Fssh",
        "/v1/devices/lamp%2d1/connect/ssh",
        "/v1/devices/a%2f..%2fb/connect/ssh",
        "/v1/devices/%00/connect/ssh",
        "/v1/devices/lamp-1/connect/%73sh",
        "/v1/devices/lamp-1/connect/ssh/../http",
        "/v1/devices/lamp-1//connect/ssh",
        "/v1/devices/lamp-1\\connect/ssh",
        "/v1/legs/n1%2F00112233445566778899aabbccddeeff",
        "/v1/legs/n1/0011223344556677%38899aabbccddeeff",
        "/v1/legs/n1/00112233445566778899AABBCCDDEEFF",
        "/v1/legs/n_1/00112233445566778899aabbccddeeff",
        "/v1/legs/n1/00112233445566778899aabbccddeef",
        "/v1/devices/-lamp/connect/ssh",
        "/v1/devices/lamp..1/connect/ssh",
        "/v1/devices/lamp;x=1/connect/ssh",
        "/v1/devices/lamp-1/connect/ssh?x",
        "/v1/control?token=x",
    ] {
        let response = send(&world, &upgrade_request(HOST, path, "moorline.stream.v1", &token)).await;
        assert_eq!((response.status, &*response.code), (400, "malformed"), "{path}\n{}", response.text);
    }
    for path in ["/v1/devices/lamp-1/connect/ssh/", "/v1/devices//connect/ssh", "/V1/control", "/v1/control/", "/v1/legs/n1", "/"] {
        let response = send(&world, &upgrade_request(HOST, path, "moorline.stream.v1", &token)).await;
        assert!(matches!((response.status, &*response.code), (404, "no_such_route") | (400, "malformed")), "{path}\n{}", response.text);
    }
}

#[tokio::test(start_paused = true)]
async fn invalid_requests_are_refused_and_the_connection_is_closed() {
    let world = MemoryWorld::start().await;
    let host = format!("Host: {HOST}\r\n");
    let (close, chunks) = ("Connection: close\r\n", "1\r\nx\r\n0\r\n\r\n");
    for (request, statuses) in [
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_owned(), &[0, 400, 505][..]),
        (format!("GET /v1/about HTTP/2.0\r\n{host}\r\n"), &[0, 400, 505]),
        (format!("GET /v1/about HTTP/0.9\r\n{host}\r\n"), &[0, 400, 505]),
        ("GET /v1/about\r\n".to_owned(), &[0, 400]),
        (format!("OPTIONS * HTTP/1.1\r\n{host}{close}\r\n"), &[400, 404, 405]),
        (format!("CONNECT lamp-1:22 HTTP/1.1\r\n{host}{close}\r\n"), &[400, 404, 405]),
        (format!("GET http://{HOST}/v1/devices HTTP/1.1\r\n{host}{close}\r\n"), &[401]),
        (format!("GET https://evil.example/v1/devices/%61 HTTP/1.1\r\n{host}{close}\r\n"), &[400]),
        (format!("GET http://evil.example HTTP/1.1\r\n{host}{close}\r\n"), &[400]),
        (format!("GET http://{HOST} HTTP/1.1\r\n{host}{close}\r\n"), &[404]),
        (format!("GET v1/about HTTP/1.1\r\n{host}{close}\r\n"), &[400, 404]),
        (format!("GET /v1/about#x HTTP/1.1\r\n{host}{close}\r\n"), &[400]),
        (format!("GET /v1/about HTTP/1.1\r\nHost: {HOST}, evil.example\r\nHost: x\r\n{close}\r\n"), &[400]),
        (format!("GET /v1/about HTTP/1.1\r\nHost : {HOST}\r\n\r\n"), &[400]),
        (format!("GET /v1/about HTTP/1.1\r\n{host}X: a\r\n b\r\n\r\n"), &[400]),
        (format!("GET /v1/about HTTP/1.1\r\n{host}X: a\0b\r\n\r\n"), &[400]),
        (format!("GET /v1/about HTTP/1.1\r\n{host}\u{e9}: b\r\n\r\n"), &[400]),
        (format!("GET /v1/about HTTP/1.1\r\n{host}X: {}\r\n\r\n", "x".repeat(70_000)), &[431]),
        (format!("GET /v1/about HTTP/1.1\r\n{host}{}\r\n", "X: x\r\n".repeat(200)), &[431]),
        (format!("GET /v1/{} HTTP/1.1\r\n{host}\r\n", "x".repeat(70_000)), &[414, 431]),
        (format!("GET /v1/about HTTP/1.1\r\n{host}{}: x\r\n{close}\r\n", "x".repeat(33_000)), &[413]),
        (format!("GET /v1/devices HTTP/1.1\r\n{host}Authorization: Bearer {}\r\n{close}\r\n", "x".repeat(9_000)), &[413]),
        (format!("POST /v1/devices/lamp-1/streams HTTP/1.1\r\n{host}Content-Length: -1\r\n\r\n"), &[400]),
        (format!("POST /v1/devices/lamp-1/streams HTTP/1.1\r\n{host}Content-Length: 1, 1\r\n\r\nx"), &[400, 401]),
        (format!("POST /v1/devices/lamp-1/streams HTTP/1.1\r\n{host}Transfer-Encoding: gzip\r\n\r\nx"), &[400]),
        // No body where none is described, and no doubt about where one ends.
        (format!("GET /v1/about HTTP/1.1\r\n{host}{close}Content-Length: 0\r\n\r\n"), &[200]),
        (format!("GET /v1/about HTTP/1.1\r\n{host}{close}Content-Length: 1\r\n\r\nx"), &[400]),
        (format!("GET /v1/about HTTP/1.1\r\n{host}{close}Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx"), &[400]),
        (format!("GET /v1/about HTTP/1.1\r\n{host}{close}Transfer-Encoding: Chunked\r\n\r\n{chunks}"), &[400]),
        (format!("GET /v1/about HTTP/1.1\r\n{host}{close}Transfer-Encoding: gzip, chunked\r\n\r\n{chunks}"), &[400]),
        (format!("GET /v1/about HTTP/1.1\r\n{host}{close}{}\r\n{chunks}", "Transfer-Encoding: chunked\r\n".repeat(2)), &[400]),
    ] {
        let begun = Instant::now();
        let response = send(&world, &request).await;
        let begins = request.chars().take(100).collect::<String>();
        assert!(statuses.contains(&response.status), "{begins:?}: {}", response.text);
        assert!(begun.elapsed() < Duration::from_secs(61), "{begins:?} keeps its connection for {:?}", begun.elapsed());
    }
    assert!(world.relay.tasks().is_empty(), "nothing is left: {:?}", world.relay.tasks());
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_has_ten_seconds_and_a_slow_body_ten_more() {
    let world = MemoryWorld::start().await;
    let head = upgrade_request(HOST, "/v1/control", "moorline.control.v1", "");
    let token = bearer(&world.token());
    let post = format!(
        "POST /v1/devices/lamp-1/streams HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {token}\r\nContent-Type: application/json\r\nContent-Length: 40\r\n\r\n"
    );
    for (at_once, slowly, status) in [("", head.as_str(), 0), (&post, r#"{"service":"ssh","reason":"very, very slow"}"#, 400)] {
        let (mut reads, mut writes) = tokio::io::split(world.dial());
        writes.write_all(at_once.as_bytes()).await.unwrap();
        let begun = Instant::now();
        let trickle = async {
            for byte in slowly.as_bytes() {
                if writes.write_all(&[*byte]).await.is_err() {
                    break;
                }
                sleep(Duration::from_secs(1)).await;
            }
            std::future::pending::<()>().await;
        };
        let mut received = Vec::new();
        tokio::select! {
            ended = reads.read_to_end(&mut received) => drop(ended),
            () = trickle => {}
        }
        let received = String::from_utf8_lossy(&received).into_owned();
        assert_eq!(received.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0), status, "{received}");
        assert!(begun.elapsed() <= Duration::from_secs(11), "{:?}", begun.elapsed());
    }
    world.until("nothing is left", |relay| relay.tasks().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_body_is_one_json_object_of_bounded_size() {
    let world = MemoryWorld::start().await;
    let _device = world.device("lamp-1").await;
    let begins = format!("POST /v1/devices/lamp-1/streams HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {}\r\n", bearer(&world.token()));
    let begins = format!("{begins}Content-Type: application/json\r\n");
    for (body, status) in [
        (r#" {"service":"ssh","deadline_s":1} "#, 202),
        (r#"{"service":"ssh"} {"service":"ssh"}"#, 400),
        (r#"{"service":"ssh"}x"#, 400),
        (r#"{"service":"ssh"}]"#, 400),
        (r#"["ssh",1,0,null,null,[]]"#, 400),
        (r#"["ssh"]"#, 400),
        ("[]", 400),
        ("null", 400),
        ("", 400),
    ] {
        let length = body.len();
        let request = format!("{begins}Connection: close\r\nPrefer: wait=0\r\nContent-Length: {length}\r\n\r\n{body}");
        let response = send(&world, &request).await;
        assert_eq!((response.status, response.code == "malformed"), (status, status == 400), "{body}\n{}", response.text);
    }
    // Announced and never sent: refused at once, without `100 Continue`.
    let begun = Instant::now();
    let response = send(&world, &format!("{begins}Expect: 100-continue\r\nContent-Length: 16385\r\n\r\n")).await;
    assert_eq!((response.status, &*response.code), (413, "too_large"), "{}", response.text);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn headers_and_queries_are_parsed_strictly() {
    let world = MemoryWorld::start().await;
    let token = bearer(&world.token());
    // The form of a request is checked first; an unknown device is 404.
    for (header, value, status) in [
        ("Moorline-Deadline", "60", 404),
        ("Moorline-Deadline", "9007199254740991", 404),
        ("Moorline-Deadline", "9007199254740992", 400),
        ("Moorline-Deadline", "99999999999999999999999", 400),
        ("Moorline-Deadline", "+60", 400),
        ("Moorline-Deadline", "1e1", 400),
        ("Moorline-Deadline", "0", 400),
        ("Moorline-Wait", "9007199254740991", 404),
        ("Moorline-Wait", "9007199254740992", 400),
        ("Moorline-Wait", "18446744073709551616", 400),
        ("Moorline-Wait", "-0", 400),
        ("Moorline-Reason", "100%25 sure", 404),
        ("Moorline-Reason", "100% sure", 400),
        ("Moorline-Reason", "%", 400),
        ("Moorline-Reason", "a%2", 400),
        ("Moorline-Reason", "%zz", 400),
        ("Moorline-Reason", "%ff", 400),
    ] {
        let lines = format!("Authorization: {token}\r\n{header}: {value}\r\n");
        let response = send(&world, &upgrade_request(HOST, "/v1/devices/lamp-1/connect/ssh", "moorline.stream.v1", &lines)).await;
        assert_eq!(response.status, status, "{header}: {value}\n{}", response.text);
    }
    for (query, status) in [
        ("max=2&after=AWE", 200), // version 1, a
        ("max=2&after=a", 400),
        ("max=2&after=AmE", 400),
        ("max=2&max=3", 400),
        ("max=0", 200),
        ("max=501", 200),
        ("max=9007199254740991", 200),
        ("max=9007199254740992", 400),
        ("after=AWE&after=AWE", 400),
        ("max=%2B2", 400),
        ("max=+2", 400),
        ("max=", 400),
        ("after=", 400),
        ("token=x", 400),
    ] {
        let head = format!("Host: {HOST}\r\nAuthorization: {token}\r\nConnection: close\r\n\r\n");
        let response = send(&world, &format!("GET /v1/devices?{query} HTTP/1.1\r\n{head}")).await;
        assert_eq!(response.status, status, "{query}\n{}", response.text);
    }
}

#[tokio::test(start_paused = true)]
async fn a_listing_shows_and_names_no_device_that_the_token_does_not_read() {
    let world = MemoryWorld::start().await;
    for device in ["door-1", "door-2", "lamp-1", "lamp-2", "zoo"] {
        world.key(&device.parse().expect("an id")).await;
    }
    let rules =
        |actions: &str| serde_json::from_value(json!([{"actions": [actions], "devices": ["lamp-*"], "services": ["*"]}])).expect("rules");
    let (reader, opener) =
        (world.token_for("alice", &rules("device.read") as &Vec<_>), world.token_for("bob", &rules("stream.open") as &Vec<_>));
    let list = async |token, query: &str| {
        let head = format!("Host: {HOST}\r\nAuthorization: {}\r\nConnection: close\r\n\r\n", bearer(token));
        send(&world, &format!("GET /v1/devices{query} HTTP/1.1\r\n{head}")).await
    };
    let whole = list(&reader, "?max=2").await;
    assert!(whole.text.contains("lamp-1") && whole.text.contains("lamp-2") && !whole.text.contains("next"), "{}", whole.text);
    let first = list(&reader, "?max=1").await;
    assert!(first.text.contains("lamp-1") && first.text.contains(r#""next":"AWxhbXAtMQ""#), "the cursor is of lamp-1: {}", first.text);
    let second = list(&reader, "?max=1&after=AWxhbXAtMQ").await;
    assert!(second.text.contains("lamp-2") && !second.text.contains("next"), "{}", second.text);
    assert_eq!(list(&opener, "").await.status, 403);
}
