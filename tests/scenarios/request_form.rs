//! The form of requests: each route of the relay's table, asked in each wrong form; and the table as docs/PROTOCOL.md has it.

use std::time::Duration;

use moorline_proto::names::SINGLE_HEADERS;
use moorline_relay::http::request_form::{BodyForm, TokenForm};
use moorline_relay::http::routes::{ROUTES, Route};
use moorline_tests::memory::{HOST, MemoryWorld};
use moorline_tests::unauthenticated_peer::{Answer, send_raw};
use moorline_tests::wire::bearer;

const DOCUMENT: &str = include_str!("../../docs/PROTOCOL.md");
const TOKEN_LINE: &str = "Authorization: Bearer mrl_leg_AAAA";

/// A request in good form for a route: its line, its header lines, its body.
#[derive(Clone, Debug)]
struct Request {
    line: String,
    headers: Vec<String>,
    body: &'static str,
}

impl Request {
    fn of(route: &Route, token: &str) -> Self {
        let path = route.path.replace("{device}", "lamp-9").replace("{service}", "ssh").replace("{node}", "n1");
        let path = path.replace("{stream}", "00112233445566778899aabbccddeeff");
        let mut headers = vec![format!("Host: {HOST}")];
        match route.form.token {
            TokenForm::Open => {}
            TokenForm::Caller => headers.push(format!("Authorization: {token}")),
            TokenForm::Leg => headers.push(TOKEN_LINE.to_owned()),
        }
        if let Some(subprotocol) = route.form.subprotocol {
            let lines =
                ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="];
            headers.extend(lines.map(str::to_owned));
            headers.push(format!("Sec-WebSocket-Protocol: {subprotocol}"));
            headers.extend(route.form.asks_for_reuse.then(|| "Moorline-Leg: reuse".to_owned()));
        } else {
            headers.push("Connection: close".to_owned());
        }
        let body = match (route.form.body, route.method.as_str()) {
            (BodyForm::Empty, _) => "",
            (BodyForm::Json, "PUT") => {
                r#"{"keys":["-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n"]}"#
            }
            (BodyForm::Json, _) => r#"{"service":"ssh"}"#,
        };
        if !body.is_empty() {
            headers.extend(["Content-Type: application/json".to_owned(), format!("Content-Length: {}", body.len())]);
        }
        Self { line: format!("{} {path} HTTP/1.1", route.method), headers, body }
    }

    fn with(&self, line: &str) -> Self {
        let mut request = self.clone();
        request.headers.push(line.to_owned());
        request
    }

    fn without(&self, name: &str) -> Self {
        let mut request = self.clone();
        request.headers.retain(|line| !line.starts_with(name));
        request
    }

    /// With another header in the place of the one of that name.
    fn instead(&self, name: &str, line: &str) -> Self {
        self.without(name).with(line)
    }

    fn target(&self, change: impl Fn(&str) -> String) -> Self {
        let mut words = self.line.split(' ');
        let (method, target) = (words.next().expect("a method"), words.next().expect("a target"));
        Self { line: format!("{method} {} HTTP/1.1", change(target)), ..self.clone() }
    }

    async fn send(&self, world: &MemoryWorld) -> Answer {
        let text = format!("{}\r\n{}\r\n\r\n{}", self.line, self.headers.join("\r\n"), self.body);
        send_raw(world.dial(), text.as_bytes(), Duration::from_secs(90)).await
    }
}

/// Wrong forms of any request.
fn wrong_for_all(good: &Request) -> Vec<Request> {
    let mut wrong = vec![
        good.without("Host"),
        good.target(|target| format!("{target}#x")),
        good.target(|target| format!("{target}#")),
        good.target(|target| format!("{target}?x=1")),
        good.target(|target| format!("http://evil.example{target}")),
        good.target(|target| format!("http://{HOST}:1{target}")),
        good.target(|target| format!("http://user@{HOST}{target}")),
        good.target(|target| target.replace("/v1", "/v1/")),
        good.with("Transfer-Encoding: gzip"),
    ];
    let hosts = [
        "",
        "user@relay.test",
        "relay.test/x",
        "relay.test/",
        "relay.test:0",
        "relay.test:65536",
        "relay.test:",
        "relay.test:x",
        "a b",
        "a,b",
        "[::1",
        "::1",
        "#",
    ];
    wrong.extend(hosts.iter().map(|host| good.instead("Host", &format!("Host: {host}"))));
    for name in SINGLE_HEADERS {
        let value = good.headers.iter().find_map(|line| {
            line.to_ascii_lowercase().starts_with(&format!("{name}:")).then(|| line.split_once(": ").map_or("", |(_, value)| value))
        });
        let value = value.unwrap_or(match name {
            "content-length" => "0",
            "transfer-encoding" => "chunked",
            "expect" => "100-continue",
            _ => "1",
        });
        let once = good.instead(&name.to_ascii_lowercase(), &format!("{name}: {value}"));
        let twice =
            if good.headers.iter().any(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:"))) { good.clone() } else { once };
        wrong.push(twice.with(&format!("{name}: {value}")));
    }
    wrong
}

/// Wrong forms of a route's requests.
fn wrong_for(route: &Route, good: &Request) -> Vec<Request> {
    let mut wrong = Vec::new();
    match route.form.body {
        BodyForm::Empty => {
            let with_body = Request { body: "{}", ..good.clone() };
            wrong.push(with_body.with("Content-Length: 2").with("Content-Type: application/json"));
            wrong.push(Request { body: "0\r\n\r\n", ..good.with("Transfer-Encoding: chunked") });
        }
        BodyForm::Json => {
            wrong.push(good.without("Content-Type"));
            for media_type in
                ["", "text/plain", "application/json-patch+json", "text/json; application/json", "application/x-www-form-urlencoded"]
            {
                wrong.push(good.instead("Content-Type", &format!("Content-Type: {media_type}")));
            }
            wrong.extend(["gzip", "identity"].map(|coding| good.with(&format!("Content-Encoding: {coding}"))));
            wrong.push(Request { body: "", ..good.instead("Content-Length", "Content-Length: 0") });
        }
    }
    if route.form.asks_for_reuse {
        wrong.extend([good.without("Moorline-Leg"), good.instead("Moorline-Leg", "Moorline-Leg: once")]);
    }
    match route.form.token {
        TokenForm::Open => {}
        TokenForm::Caller | TokenForm::Leg => {
            let lines =
                ["Authorization: Basic x", "Authorization: Bearer", "Authorization: Bearer ", "Authorization: x", "Authorization: "];
            wrong.extend(lines.map(|line| good.instead("Authorization", line)));
        }
    }
    if route.form.token == TokenForm::Leg {
        let subprotocol = |tokens: &str| format!("Sec-WebSocket-Protocol: moorline.stream.v1, {tokens}");
        wrong.push(good.instead("Sec-WebSocket-Protocol", &subprotocol("moorline.token.mrl_leg_AAAA")));
        wrong.push(good.instead("Sec-WebSocket-Protocol", &subprotocol("moorline.token.mrl_leg_BBBB")));
        wrong.push(good.without("Authorization").instead("Sec-WebSocket-Protocol", &subprotocol("moorline.token.a, moorline.token.b")));
    }
    for name in route.form.query {
        wrong.push(good.target(|target| format!("{target}?{name}=1&{name}=1")));
    }
    wrong
}

#[tokio::test(start_paused = true)]
async fn each_route_refuses_each_wrong_form() {
    let world = MemoryWorld::start().await;
    let token = bearer(&world.token());
    for route in &ROUTES {
        let good = Request::of(route, &token);
        let answer = good.send(&world).await;
        assert_ne!(answer.code, "malformed", "{good:?}\n{}", answer.text);
        for wrong in wrong_for_all(&good).into_iter().chain(wrong_for(route, &good)) {
            let answer = wrong.send(&world).await;
            let by_library = answer.status == 400 && answer.code.is_empty() && answer.text.contains("content-length: 0");
            assert!((answer.status == 400 && answer.code == "malformed") || by_library, "{wrong:?}\n{}", answer.text);
            assert!(by_library || answer.text.split("\"detail\":\"").nth(1).is_some_and(|detail| detail.len() > 10), "{}", answer.text);
        }
        for right in [
            good.target(|target| format!("http://{HOST}:443{target}")),
            good.instead("Host", "Host: [2001:db8::1]:8443"),
            good.instead("Host", "Host: RELAY.test"),
            good.with("Prefer: wait=0").with("Prefer: respond-async"),
        ] {
            let again = right.send(&world).await;
            assert_ne!(again.code, "malformed", "{right:?}\n{}", again.text);
        }
        if route.form.body == BodyForm::Json {
            for media_type in ["application/json; charset=utf-8", "Application/JSON", "application/json;x"] {
                let answer = good.instead("Content-Type", &format!("Content-Type: {media_type}")).send(&world).await;
                assert_ne!(answer.code, "malformed", "{media_type}: {}", answer.text);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn other_methods_are_405_with_allow_and_head_has_no_body() {
    let world = MemoryWorld::start().await;
    let token = bearer(&world.token());
    for route in &ROUTES {
        let methods: Vec<&str> = ROUTES.iter().filter(|other| other.path == route.path).map(|other| other.method.as_str()).collect();
        let allow = format!("\r\nallow: {}\r\n", methods.join(", "));
        for method in ["HEAD", "OPTIONS", "PATCH", "GET", "POST", "PUT", "DELETE"].into_iter().filter(|method| !methods.contains(method)) {
            let good = Request { body: "", ..Request::of(route, &token).without("Content-") };
            let request = Request { line: good.line.replacen(route.method.as_str(), method, 1), ..good };
            let answer = request.send(&world).await;
            assert!(answer.status == 405 && answer.text.contains(&allow), "{request:?}\n{}", answer.text);
            assert_eq!(answer.text.ends_with("\r\n\r\n"), method == "HEAD", "a body in the answer to all but HEAD: {}", answer.text);
        }
    }
    let nowhere = Request { line: "HEAD /v1/nothing HTTP/1.1".to_owned(), ..Request::of(&ROUTES[0], &token) };
    let answer = nowhere.send(&world).await;
    assert!(answer.status == 404 && answer.text.ends_with("\r\n\r\n"), "{}", answer.text);
}

/// The rows of the table that begins with this head: the text of each cell, without code marks.
fn rows(head: &str) -> Vec<Vec<String>> {
    let (_, table) = DOCUMENT.split_once(head).expect("the table is there");
    let lines = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    lines.map(|line| line.split('|').skip(1).map(|cell| cell.trim().replace('`', "")).collect()).collect()
}

#[test]
fn the_document_has_the_same_table() {
    let known = ROUTES.iter().map(|route| {
        let upgrade = if route.form.subprotocol.is_some() { " + upgrade" } else { "" };
        let mut takes: Vec<String> = route.form.query.iter().map(|name| format!("?{name}=")).collect();
        takes.extend(route.form.asks_for_reuse.then(|| "Moorline-Leg: reuse".to_owned()));
        takes.extend((route.form.body == BodyForm::Json).then(|| "a body".to_owned()));
        let token = match route.form.token {
            TokenForm::Open => "none",
            TokenForm::Caller => "caller's",
            TokenForm::Leg => "leg's",
        };
        vec![format!("{} {}{upgrade}", route.method, route.path), token.to_owned(), takes.join(", ")]
    });
    let mut known: Vec<_> = known.collect();
    let mut written: Vec<_> = rows("| request | who | token | takes | what |")
        .into_iter()
        .map(|row| vec![row[0].clone(), row[2].clone(), row[3].clone()])
        .collect();
    known.sort();
    written.sort();
    assert_eq!(written, known);

    let written: Vec<String> = rows("| header of a request | stands |")
        .into_iter()
        .filter(|row| row[1].contains("once"))
        .map(|row| row[0].to_ascii_lowercase())
        .collect();
    assert_eq!(written, SINGLE_HEADERS);
}
