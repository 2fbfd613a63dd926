//! Permissions: roles of tokens, names that they are bound to, takeovers, and guessing.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use serde_json::Value;

use crate::{
    harness::{Edge, Gateway, eventually},
    session::{BOTH, initialize_request},
    wire::{Answer, Client, UPGRADE, Wire, ask, host, member, request, text},
};

const PING: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
const CHALLENGE: &str = "Bearer error=\"invalid_token\"";

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

/// A handmade edge that does only what the protocol requires.
struct Link(Wire);

/// A received frame of the gateway.
#[derive(Debug, Eq, PartialEq)]
enum Frame {
    Text(String),
    Close(u16, String),
    /// The connection has ended without a close frame.
    End,
}

impl Link {
    /// Upgrades, and sends the register frame.
    #[track_caller]
    fn register(gateway: &Gateway, token: &str, id: &str, name: &str) -> Self {
        let mut wire = Wire::connect(gateway.address);
        let (host, bearer) = (host(gateway.address), bearer(token));
        wire.send(text("GET", "/mcp/register", &[&[host.as_str(), &bearer], UPGRADE].concat(), ""));
        assert_eq!(wire.head().unwrap().status, 101);
        let mut link = Self(wire);
        link.send(&format!(r#"{{"method":"register","id":"{id}","params":{{"name":"{name}"}}}}"#));
        link
    }

    /// A text frame, masked with zeros.
    fn send(&mut self, text: &str) {
        let length = u16::try_from(text.len()).unwrap().to_be_bytes();
        let head = [0x81, 0x80 | 126, length[0], length[1], 0, 0, 0, 0];
        self.0.send([&head, text.as_bytes()].concat());
    }

    #[track_caller]
    fn frame(&mut self) -> Frame {
        let Ok(head) = self.0.exactly(2) else { return Frame::End };
        let length = match head[1] {
            126 => u16::from_be_bytes(self.0.exactly(2).unwrap().try_into().unwrap()).into(),
            127 => panic!("a large frame"),
            short => usize::from(short),
        };
        let body = self.0.exactly(length).unwrap();
        match head[0] & 0x0f {
            1 => Frame::Text(String::from_utf8(body).unwrap()),
            8 => Frame::Close(
                u16::from_be_bytes([body[0], body[1]]),
                String::from_utf8_lossy(&body[2..]).into_owned(),
            ),
            9 => {
                // A link that takes over must show that it is alive.
                self.0.send([0x8a, 0x80, 0, 0, 0, 0]);
                self.frame()
            }
            _ => self.frame(),
        }
    }

    /// Whether the first response says that the registration was received.
    #[track_caller]
    fn is_received(&mut self) -> bool {
        matches!(self.frame(), Frame::Text(text) if member(&text, "status").as_deref() == Some("\"received\""))
    }

    /// Asserts that it is refused by a status frame and a close with this code. Returns the reason.
    #[track_caller]
    fn refused(&mut self, code: u16) -> String {
        let Frame::Text(status) = self.frame() else { panic!("no status frame") };
        let status: Value = serde_json::from_str(&status).unwrap();
        assert_eq!(status["status"], "error");
        match self.frame() {
            Frame::Close(got, reason) => {
                assert_eq!((got, Some(&*reason)), (code, status["message"].as_str()))
            }
            other => panic!("{other:?}"),
        }
        status["message"].as_str().unwrap().to_owned()
    }

    /// Returns the code of the close frame, and skips earlier frames.
    #[track_caller]
    fn closed(&mut self) -> u16 {
        loop {
            match self.frame() {
                Frame::Close(code, _) => return code,
                Frame::Text(_) => {}
                Frame::End => panic!("no close frame"),
            }
        }
    }
}

/// A request (method, target, further header lines, body), and its status with a token for
/// everything, for clients, and for registration.
type Case = (&'static str, String, Vec<&'static str>, &'static str, [u16; 3]);

/// Each route with a request that is served.
fn routes(client: &Client) -> Vec<Case> {
    let post = [BOTH].to_vec();
    vec![
        ("GET", "/sse".into(), vec![], "", [200, 200, 403]),
        ("POST", client.endpoint.clone(), vec![], PING, [404, 202, 403]),
        ("POST", "/mcp".into(), post.clone(), "HELLO", [200, 200, 403]),
        ("GET", "/mcp".into(), vec![], "", [400, 400, 403]),
        ("DELETE", "/mcp".into(), vec![], "", [400, 400, 403]),
        ("GET", "/servers/s/sse".into(), vec![], "", [200, 200, 403]),
        ("POST", "/servers/s/messages".into(), vec![], PING, [400, 400, 403]),
        ("POST", "/servers/s/mcp".into(), post, "HELLO", [200, 200, 403]),
        ("GET", "/servers/s/mcp".into(), vec![], "", [400, 400, 403]),
        ("DELETE", "/servers/s/mcp".into(), vec![], "", [400, 400, 403]),
        ("GET", "/servers/other/mcp".into(), vec![], "", [400, 400, 403]),
        ("GET", "/nowhere".into(), vec![], "", [404, 404, 404]),
        ("PUT", "/sse".into(), vec![], "", [405, 405, 403]),
        ("GET", "/mcp/register".into(), UPGRADE.to_vec(), "", [101, 403, 101]),
        ("GET", "/health".into(), vec![], "", [200, 200, 200]),
    ]
}

/// Returns the response to a request from its own address, so that none of them is throttled.
#[track_caller]
fn from_anywhere(
    gateway: &Gateway,
    number: &mut u16,
    method: &str,
    target: &str,
    lines: &[&str],
    body: &str,
) -> Answer {
    *number += 1;
    let [high, low] = number.to_be_bytes();
    let mut wire = Wire::connect_from([127, 2, high, low.max(1)], gateway.address);
    let initialize = initialize_request("2025-06-18");
    wire.send(text(method, target, lines, if body == "HELLO" { &initialize } else { body }));
    let head = wire.head().unwrap();
    if head.status == 403 {
        let length = head.field("content-length").unwrap().parse().unwrap();
        let body = String::from_utf8(wire.exactly(length).unwrap()).unwrap();
        return Answer { body, ..head };
    }
    head
}

#[test]
fn every_route_requires_its_role() {
    let gateway =
        Gateway::start(&["--auth-token", "both", "--auth-token=client:c", "--auth-token=register:r"]);
    let _edge = gateway.edge_with("s", &[], &["--header", &bearer("r")]);
    let client = Client::ready(gateway.address, &[&bearer("c")]);
    let own = host(gateway.address);
    let mut number = 0;
    for (method, target, extra, body, served) in routes(&client) {
        let open = matches!(&*target, "/health" | "/nowhere");
        let mut check = |lines: &[&str], status: u16, challenge: Option<&str>| {
            let (status, challenge) = if open { (served[0], None) } else { (status, challenge) };
            let all = [&[own.as_str()], lines, &extra].concat();
            let answer = from_anywhere(&gateway, &mut number, method, &target, &all, body);
            assert_eq!(answer.status, status, "{method} {target} {lines:?}: {}", answer.head);
            assert_eq!(answer.field("www-authenticate"), challenge, "{method} {target} {lines:?}");
            if status == 403 {
                assert_eq!(
                    answer.body, "this token does not have the required role\n",
                    "whatever was asked for"
                );
            }
        };
        check(&[], 401, Some("Bearer"));
        for wrong in [
            "Bearer wrong",
            "Bearer client:c",
            "Bearer register:r",
            "Basic Ym90aA==",
            "Bearer ",
            "Bearer",
            "",
        ] {
            check(&[&format!("Authorization: {wrong}")], 401, Some(CHALLENGE));
        }
        check(&[&bearer("both"), &bearer("both")], 400, None);
        for (token, status) in ["both", "c", "r"].into_iter().zip(served) {
            check(&[&bearer(token)], status, None);
        }
    }
}

#[test]
fn a_token_without_the_role_gets_403_before_the_body() {
    let gateway = Gateway::start(&["--auth-token", "register:r"]);
    let own = host(gateway.address);
    for target in ["/mcp", "/messages?session_id=x", "/servers/s/mcp"] {
        let mut wire = Wire::connect(gateway.address);
        wire.send(format!(
            "POST {target} HTTP/1.1\r\n{own}\r\n{}\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n\r\n",
            bearer("r")
        ));
        assert_eq!(wire.answer().status, 403, "{target}");
    }
}

#[test]
fn register_reports_a_missing_role() {
    let gateway = Gateway::start(&["--auth-token", "client:c"]);
    let mut edge = Edge::start(&gateway.url(), "s", &[], &["--header", &bearer("c")]);
    let end = edge.program.ended();
    assert_eq!((end.code, end.complaint().len()), (Some(1), 1), "{:?}", end.stderr);
    assert!(end.complaint()[0].contains("(403)") && end.complaint()[0].contains("role"), "{:?}", end.stderr);
    assert!(!gateway.program.log().contains("server 's'"));
}

#[test]
fn a_token_claims_its_own_names_only() {
    let gateway =
        Gateway::start_in(&[], &[("MCP_GATEWAY_AUTH_TOKENS", "register[file,cam-*]@box:r, client:c")]);
    let header = bearer("r");
    let _file = gateway.edge_with("file", &[], &["--header", &header]);
    let _cam = gateway.edge_with("cam-1", &[], &["--header", &header]);
    let mut client = Client::ready(gateway.address, &[&bearer("c")]);
    for name in ["files", "cam", "File", "a-cam-1"] {
        let why = Link::register(&gateway, "r", "x", name).refused(4403);
        assert!(why.contains("the token does not allow the name") && why.contains("register["), "{why}");
        assert!(!why.contains("box") && !why.contains("cam-*"), "the token rules are not disclosed: {why}");
    }
    // An edge without a name is named after its id, and that name is checked.
    let mut wire = Link::register(&gateway, "r", "x", "file");
    assert!(wire.refused(4403).contains("belongs to another server, with id"));
    let mut edge = Edge::start(&gateway.url(), "other", &[], &["--header", &header]);
    let end = edge.program.ended();
    assert_eq!(end.code, Some(1));
    assert!(end.complaint()[0].contains("the token does not allow the name 'other'"), "{:?}", end.stderr);
    assert_eq!(client.call_text("cam-1_echo", r#"{"text":"here"}"#), "here");
}

#[test]
fn a_token_may_be_given_by_its_digest() {
    // SHA-256 of "abc", from FIPS 180-2.
    let digest = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let gateway = Gateway::start(&["--auth-token", digest, "--auth-token", &format!("client@x:{digest}")]);
    for (token, status) in [("abc", 200), (digest, 401), (&digest[7..], 401), ("ABC", 401)] {
        assert_eq!(
            request(gateway.address, "GET", "/status", &[&bearer(token)], "").status,
            status,
            "{token}"
        );
    }
    let _edge = gateway.edge_with("s", &[], &["--header", &bearer("abc")]);
    Client::ready(gateway.address, &[&bearer("abc")]);
}

#[test]
fn another_principal_cannot_take_over() {
    let gateway =
        Gateway::start(&["--auth-token=register@a:a", "--auth-token=register@b:b", "--auth-token=client:c"]);
    let _edge = gateway.edge_with("s", &[], &["--server-id", "secret-id", "--header", &bearer("a")]);
    let over = AtomicBool::new(false);
    let calls = thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let (gateway, over) = (&gateway, &over);
                scope.spawn(move || {
                    let mut client = Client::ready(gateway.address, &[&bearer("c")]);
                    let mut calls = 0;
                    while calls < 50 || !over.load(Ordering::Relaxed) {
                        let text = format!("{worker}-{calls}");
                        assert_eq!(client.call_text("s_echo", &format!(r#"{{"text":"{text}"}}"#)), text);
                        calls += 1;
                    }
                    calls
                })
            })
            .collect();
        for round in 0..20 {
            for (id, name) in [("secret-id", "s"), ("x", "s")] {
                let why = Link::register(&gateway, "b", id, name).refused(4403);
                assert!(why.contains("belongs to another principal"), "round {round}: {why}");
                assert!(id == "secret-id" || !why.contains("secret-id"), "{why}");
            }
        }
        // Ids are separate for each principal: with another name it is another server, and no link
        // ends.
        let mut third = Link::register(&gateway, "b", "secret-id", "t");
        // Otherwise the workers would go on after a failure.
        over.store(true, Ordering::Relaxed);
        assert!(third.is_received());
        workers.into_iter().map(|worker| worker.join().unwrap()).sum::<u32>()
    });
    println!("{calls} calls, no error, while 40 registrations of another principal were refused");
    assert_eq!(gateway.program.log().matches("registered from").count(), 2);
}

#[test]
fn frequent_takeovers_are_refused() {
    let gateway = Gateway::start(&["--auth-token=register:r", "--auth-token=client:c"]);
    let mut links = vec![Link::register(&gateway, "r", "box", "s")];
    assert!(links[0].is_received());
    for round in 0..5 {
        let mut next = Link::register(&gateway, "r", "box", "s");
        assert!(next.is_received(), "{round}");
        assert_eq!(links.last_mut().unwrap().closed(), 4001, "{round}");
        links.push(next);
    }
    for _ in 0..3 {
        let why = Link::register(&gateway, "r", "box", "s").refused(4429);
        assert!(why.contains("too many takeovers") && why.contains("--server-id"), "{why}");
    }
    let register = ["--server-id", "box", "--header", &bearer("r")];
    let mut edge = Edge::start(&gateway.url(), "s", &[], &register);
    edge.program.wait_for("rejected the registration for now: ");
    edge.program.wait_for("reconnecting in");
    assert!(edge.program.is_running(), "it waits, although it was never registered");
    // The link with the id keeps it, and receives the requests for a server.
    let mut last = links.pop().unwrap();
    let Frame::Text(question) = last.frame() else { panic!("closed") };
    assert!(question.contains("\"initialize\""), "{question}");
    // Another id is not affected.
    assert!(Link::register(&gateway, "r", "box2", "t").is_received());
}

#[test]
fn frequent_drops_are_no_takeovers() {
    let gateway = Gateway::start(&["--auth-token=register:r", "--auth-token=client:c"]);
    for round in 1..=12 {
        let mut link = Link::register(&gateway, "r", "box", "s");
        assert!(link.is_received(), "round {round}");
        // The log does not report each end.
        let is_there = || {
            let status = request(gateway.address, "GET", "/status", &[&bearer("c")], "").body;
            status.contains(r#""name":"s""#)
        };
        assert!(is_there(), "round {round}");
        drop(link);
        eventually("it is gone", || !is_there());
    }
}

#[test]
fn pending_calls_fail_once_on_takeover() {
    let gateway = Gateway::start(&[]);
    let first = gateway.edge_with("s", &[], &["--server-id", "box"]);
    let mut client = gateway.client();
    let waiting: Vec<String> =
        (0..8).map(|key| client.begin_call("s_hold", &format!(r#"{{"key":"{key}"}}"#))).collect();
    eventually("they wait", || first.count("\"hold\"") == 8);
    let _second = Edge::start(&gateway.url(), "s", &[], &["--server-id", "box"]);
    for id in &waiting {
        let answer = client.answer(id);
        assert!(member(&answer, "error").is_some(), "{answer}");
    }
    client.tools_until(|tools| tools.len() > 1);
    let again: Vec<String> =
        client.rest().into_iter().filter(|message| member(message, "id").is_some()).collect();
    assert_eq!(again, [""; 0]);
}

/// `GET /status` from an address.
#[track_caller]
fn status(gateway: &Gateway, from: [u8; 4], token: &str) -> Answer {
    let mut wire = Wire::connect_from(from, gateway.address);
    ask(&mut wire, "GET", "/status", &[&host(gateway.address), &bearer(token)], "")
}

#[test]
fn guessing_is_throttled_and_sessions_survive() {
    let gateway = Gateway::start(&["--auth-token=@a:right", "--auth-token=@b:other"]);
    let here = [127, 0, 0, 1];
    let right = bearer("right");
    let mut known = Wire::connect(gateway.address);
    let lines = [host(gateway.address), right.clone()];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    assert_eq!(ask(&mut known, "GET", "/status", &lines, "").status, 200);
    let mut client = Client::ready(gateway.address, &[&right]);
    for guess in 0..10 {
        assert_eq!(status(&gateway, here, &format!("guess-{guess}")).status, 401, "{guess}");
    }
    for token in ["guess-10", "guess-0", "right", "other"] {
        let answer = status(&gateway, here, token);
        assert_eq!((answer.status, &*answer.body), (429, "too many invalid tokens\n"), "{token}");
        let wait: u64 = answer.field("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&wait), "{wait}");
    }
    assert_eq!(status(&gateway, [127, 0, 0, 2], "right").status, 200, "another address is another matter");
    // Authenticated connections and open sessions of the same principal continue.
    assert_eq!(ask(&mut known, "GET", "/status", &lines, "").status, 200);
    client.ask("ping", "{}");
    let post =
        |token: &str| request(gateway.address, "POST", &client.endpoint, &[&bearer(token)], PING).status;
    assert_eq!((post("right"), post("other"), post("guess-11")), (202, 429, 429));
    let unknown = request(gateway.address, "POST", "/messages?session_id=guess", &[&right], PING);
    assert_eq!(unknown.status, 429);
    let asked = request(gateway.address, "GET", "/status", &[], "");
    assert_eq!(asked.status, 401, "who shows no token is told to");
}

#[test]
fn behind_a_trusted_proxy_each_client_counts_for_itself() {
    for (flags, expected) in [(&["--trusted-proxy", "127.0.0.1"][..], 200), (&[], 429)] {
        let gateway = Gateway::start(&[&["--auth-token=right"], flags].concat());
        let status = |token: &str, client: &str| {
            let forwarded = format!("X-Forwarded-For: 203.0.113.7, {client}");
            request(gateway.address, "GET", "/status", &[&bearer(token), &forwarded], "").status
        };
        for guess in 0..10 {
            assert_eq!(status(&format!("guess-{guess}"), "192.0.2.1"), 401);
        }
        assert_eq!((status("right", "192.0.2.1"), status("right", "192.0.2.2")), (429, expected));
    }
}

#[test]
fn an_old_token_locks_nobody_out() {
    let gateway = Gateway::start(&["--auth-token=right"]);
    let here = [127, 0, 0, 9];
    let statuses: Vec<u16> = (0..12).map(|_| status(&gateway, here, "old").status).collect();
    assert_eq!(statuses[..10], [401; 10], "the eleventh failure in a minute is one too many");
    assert_eq!(statuses[10..], [429; 2]);
    assert_eq!(status(&gateway, here, "right").status, 200);
}

#[test]
fn guessing_from_many_addresses_is_bounded() {
    let gateway = Gateway::start(&["--auth-token=right"]);
    for guess in 0..10 {
        assert_eq!(status(&gateway, [127, 9, 0, 1], &format!("guess-{guess}")).status, 401);
    }
    // More than the table holds.
    for number in 0..1200u16 {
        let [high, low] = number.to_be_bytes();
        assert_eq!(status(&gateway, [127, 8, high, low.max(1)], "wrong").status, 401, "{number}");
    }
    assert_eq!(
        status(&gateway, [127, 9, 0, 1], "right").status,
        429,
        "failures from many addresses do not end the throttling"
    );
    assert_eq!(status(&gateway, [127, 8, 0, 1], "right").status, 200);
}
