//! Access checks: token, Host and Origin are checked on every route before anything else of the
//! request.

use std::sync::atomic::{AtomicU16, Ordering};

use crate::{
    harness::{Edge, Gateway},
    wire::{Answer, Client, UPGRADE, Wire, ask, host, request, text},
};

/// Each route with a request that would be served, and its status then.
fn routes(client: &Client) -> Vec<(&'static str, String, Vec<&'static str>, u16)> {
    vec![
        ("GET", "/sse".into(), vec![], 200),
        ("POST", client.endpoint.clone(), vec![], 202),
        ("GET", "/mcp/register".into(), UPGRADE.to_vec(), 101),
        ("POST", "/mcp".into(), vec![], 400),
        ("GET", "/mcp".into(), vec![], 400),
        ("DELETE", "/mcp".into(), vec![], 400),
        ("POST", "/servers/s/mcp".into(), vec![], 400),
        ("GET", "/servers/s/sse".into(), vec![], 404),
        ("POST", "/servers/s/messages".into(), vec![], 400),
        ("GET", "/status".into(), vec![], 200),
        ("GET", "/health".into(), vec![], 200),
        ("HEAD", "/health".into(), vec![], 200),
        ("GET", "/nowhere".into(), vec![], 404),
        ("DELETE", "/sse".into(), vec![], 405),
    ]
}

const PING: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;

/// Returns the head of the response to a request with these lines. Each comes from another address,
/// so that none is throttled; `roles` tests guessing.
#[track_caller]
fn try_with(gateway: &Gateway, method: &str, target: &str, lines: &[&str]) -> Answer {
    static NUMBER: AtomicU16 = AtomicU16::new(0);
    let [high, low] = NUMBER.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let mut wire = Wire::connect_from([127, 1, high, low.max(1)], gateway.address);
    wire.send(text(method, target, lines, if method == "POST" { PING } else { "" }));
    wire.head().unwrap()
}

#[test]
fn every_route_requires_a_token() {
    let gateway = Gateway::start(&["--auth-token", "right", "--auth-token", "also"]);
    let client = Client::ready(gateway.address, &["Authorization: Bearer right"]);
    let own = host(gateway.address);
    for (method, target, extra, served) in routes(&client) {
        for (lines, status, challenge) in [
            (&[][..], 401, Some("Bearer")),
            (&["Authorization: Bearer wrong"], 401, Some("Bearer error=\"invalid_token\"")),
            (&["Authorization: Bearer rightt"], 401, Some("Bearer error=\"invalid_token\"")),
            (&["Authorization: Bearer RIGHT"], 401, Some("Bearer error=\"invalid_token\"")),
            (&["Authorization: Basic cmlnaHQ="], 401, Some("Bearer error=\"invalid_token\"")),
            (&["Authorization: Basic right"], 401, Some("Bearer error=\"invalid_token\"")),
            (&["Authorization: right"], 401, Some("Bearer error=\"invalid_token\"")),
            (&["Authorization: Bearer "], 401, Some("Bearer error=\"invalid_token\"")),
            (&["Authorization: Bearer"], 401, Some("Bearer error=\"invalid_token\"")),
            (&["Authorization:"], 401, Some("Bearer error=\"invalid_token\"")),
            (&["Cookie: right", "X-Authorization: Bearer right"], 401, Some("Bearer")),
            (&["Authorization: Bearer right", "Authorization: Bearer right"], 400, None),
            (&["Authorization: Bearer right", "Authorization: Bearer wrong"], 400, None),
            (&["authorization: bearer right"], served, None),
        ] {
            let open = matches!(&*target, "/health" | "/nowhere");
            let (status, challenge) = if open { (served, None) } else { (status, challenge) };
            let all = [&[own.as_str()], lines, &extra].concat();
            let answer = try_with(&gateway, method, &target, &all);
            assert_eq!(answer.status, status, "{method} {target} {lines:?}: {}", answer.head);
            assert_eq!(answer.field("www-authenticate"), challenge, "{method} {target} {lines:?}");
        }
    }
    // A token in the request target does not count.
    for target in ["/sse?token=right", "/status?access_token=right", "/sse?authorization=Bearer%20right"] {
        assert_eq!(request(gateway.address, "GET", target, &[], "").status, 401);
    }
}

#[test]
fn a_wrong_token_gets_401_before_the_body() {
    let gateway = Gateway::start(&["--auth-token", "right"]);
    let client = Client::ready(gateway.address, &["Authorization: Bearer right"]);
    let own = host(gateway.address);
    for length in ["1000000", "99999999999"] {
        let mut wire = Wire::connect(gateway.address);
        wire.send(format!(
            "POST {} HTTP/1.1\r\n{own}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n",
            client.endpoint
        ));
        assert_eq!(wire.answer().status, 401, "{length}");
    }
}

#[test]
fn a_gateway_without_tokens_ignores_tokens() {
    let gateway = Gateway::start(&[]);
    let answer = request(gateway.address, "GET", "/health", &["Authorization: Bearer whatever"], "");
    assert_eq!(answer.status, 200);
}

#[test]
fn every_route_checks_host_and_origin() {
    let gateway = Gateway::start(&[]);
    let client = gateway.client();
    let own = gateway.address.to_string();
    for (method, target, extra, served) in routes(&client) {
        for (host, origin, allowed) in [
            (own.as_str(), None, true),
            ("localhost", None, true),
            ("LOCALHOST:1", None, true),
            ("[::1]:8765", None, true),
            ("192.0.2.7", None, true),
            ("evil.example", None, false),
            ("localhost.evil.example", None, false),
            ("127.0.0.1.evil.example", None, false),
            ("0.0.0.0", None, false),
            ("evil.example", Some("http://evil.example"), false),
            (&own, Some("http://localhost:3000"), true),
            (&own, Some("https://127.0.0.1"), true),
            ("192.0.2.7:80", Some("http://192.0.2.7:80"), true),
            (&own, Some("https://evil.example"), false),
            (&own, Some("http://localhost.evil.example"), false),
            (&own, Some("null"), false),
            (&own, Some(""), false),
            (&own, Some("file://"), false),
        ] {
            let host = format!("Host: {host}");
            let origin = origin.map(|origin| format!("Origin: {origin}"));
            let lines: Vec<&str> =
                [host.as_str()].into_iter().chain(origin.as_deref()).chain(extra.iter().copied()).collect();
            let answer = try_with(&gateway, method, &target, &lines);
            let allowed = allowed && (target != "/mcp/register" || origin.is_none());
            let expected = if allowed { served } else { 403 };
            assert_eq!(answer.status, expected, "{method} {target} {lines:?}");
        }
        let own = format!("Host: {own}");
        let twice = ["Origin: http://localhost", "Origin: http://localhost"];
        let twice = [&[own.as_str()], &twice[..], &extra].concat();
        assert_eq!(try_with(&gateway, method, &target, &twice).status, 403, "{method} {target}");
    }
}

#[test]
fn requests_need_exactly_one_host() {
    let gateway = Gateway::start(&["--auth-token", "t"]);
    let token = "Authorization: Bearer t";
    for lines in [&[token][..], &[token, "Host: a", "Host: b"], &[token, "Host: a b"]] {
        let answer = ask(&mut Wire::connect(gateway.address), "GET", "/health", lines, "");
        assert_eq!(answer.status, 400, "{lines:?}");
    }
}

#[test]
fn a_session_belongs_to_the_token_that_opened_it() {
    let gateway = Gateway::start(&["--auth-token", "one", "--auth-token", "two"]);
    let mut client = Client::ready(gateway.address, &["Authorization: Bearer one"]);
    let post = |token: &str| {
        let line = format!("Authorization: Bearer {token}");
        request(gateway.address, "POST", &client.endpoint, &[&line], PING).status
    };
    assert_eq!((post("two"), post("three"), post("one")), (404, 401, 202));
    client.answer("1");
    client.ask("ping", "{}");
    assert_eq!(client.rest(), [""; 0], "the other one's message was not delivered");
}

#[test]
fn sessions_cannot_be_guessed() {
    let gateway = Gateway::start(&[]);
    let ids: std::collections::HashSet<String> =
        (0..20).map(|_| Client::open(gateway.address, "/sse", &[]).endpoint).collect();
    assert_eq!(ids.len(), 20);
    assert!(ids.iter().all(|endpoint| endpoint.len() >= "/messages?session_id=".len() + 22));
}

#[test]
fn registration_requires_a_token() {
    let gateway = Gateway::start(&["--auth-token", "right"]);
    let mut edge = Edge::start(&gateway.url(), "s", &[], &[]);
    assert_eq!(edge.program.ended().code, Some(1));
    let mut client = Client::ready(gateway.address, &["Authorization: Bearer right"]);
    assert_eq!(client.tools(), ["list_servers"]);
}
