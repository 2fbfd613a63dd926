//! The Streamable HTTP transport: its responses, sessions and streams, as a client sees them.

use std::{io::Write, thread};

use mcpport::limits::Limits;
use serde_json::{Value, json};

use crate::{
    harness::{Edge, Gateway, eventually},
    in_process,
    session::{BOTH, Event, Session, call, call_with, events, initialize_request, request, value},
    wire::{Answer, Wire, ask, host, tcp, text},
};

const SERVER: &str = "/servers/s/mcp";

/// A request with `Host` and these lines.
#[track_caller]
fn send(gateway: &Gateway, method: &str, lines: &[&str], body: &str) -> Answer {
    let host = host(gateway.address);
    ask(&mut Wire::connect(gateway.address), method, "/mcp", &[&[&*host], lines].concat(), body)
}

fn code(answer: &Answer) -> i64 {
    value(&answer.body)["error"]["code"].as_i64().unwrap_or_default()
}

#[test]
fn a_body_that_is_no_message_gets_400() {
    let gateway = Gateway::start(&[]);
    let session = Session::open(gateway.address, "/mcp");
    for (body, expected) in [
        ("", -32700),
        ("{", -32700),
        ("\"x", -32700),
        ("5", -32600),
        ("{}", -32600),
        ("[]", -32600),
        (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, -32600),
        (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":5}"#, -32600),
    ] {
        let answer = session.post(body);
        assert_eq!((answer.status, code(&answer)), (400, expected), "{body}: {answer:?}");
        assert_eq!(value(&answer.body)["id"], Value::Null, "{body}");
    }
    let mut wire = Wire::connect(gateway.address);
    wire.send(format!("POST /mcp HTTP/1.1\r\n{}\r\n{BOTH}\r\n", host(gateway.address)));
    wire.send("Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}");
    assert_eq!(wire.answer().status, 415);
    let mut wire = Wire::connect(gateway.address);
    wire.send(format!("POST /mcp HTTP/1.1\r\n{}\r\n{BOTH}\r\n", host(gateway.address)));
    wire.send(format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n", (4 << 20) + 1));
    let answer = wire.answer();
    assert_eq!(answer.status, 413);
    assert!(answer.body.contains("--max-message-bytes"), "{answer:?}");
}

#[test]
fn in_protocol_errors_are_ok() {
    let gateway = Gateway::start(&[]);
    let session = Session::open(gateway.address, "/mcp");
    for (method, params, expected) in [
        ("no/such", json!({}), -32601),
        ("server/discover", json!({}), -32601),
        ("tools/call", json!({"name": "nobody"}), -32602),
        ("tools/call", json!({}), -32602),
        ("resources/read", json!({"uri": "a://b"}), -32002),
        ("tools/list", json!({"cursor": "x"}), -32602),
        ("logging/setLevel", json!({"level": "loud"}), -32602),
    ] {
        assert_eq!(session.ask(method, params)["error"]["code"], expected, "{method}");
    }
    for id in ["0", "-5", "1.0", "\"1\"", r#""\u0061""#, "9223372036854775808"] {
        let answer = session.post(&format!(r#"{{"jsonrpc":"2.0","method":"ping","id":{id}}}"#));
        assert_eq!(answer.body, format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#));
    }
    for posted in [
        r#"{"jsonrpc":"2.0","method":"notifications/odd"}"#,
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"nobody"}}"#,
        r#"{"jsonrpc":"2.0","id":9,"result":{}}"#,
        r#"{"jsonrpc":"2.0","id":9,"error":{"code":1,"message":"x"}}"#,
    ] {
        let answer = session.post(posted);
        assert_eq!((answer.status, answer.body.as_str()), (202, ""), "{posted}");
    }
}

#[test]
fn sessions_are_named_in_the_head() {
    let gateway = Gateway::start(&[]);
    let session = Session::open(gateway.address, "/mcp");
    assert!(session.id.len() >= 22 && session.id.bytes().all(|byte| (0x21..=0x7e).contains(&byte)));
    let ping = request(1, "ping", json!({}));
    let named = format!("Mcp-Session-Id: {}", session.id);
    for (lines, status) in [
        (vec![BOTH], 400),
        (vec![BOTH, "Mcp-Session-Id: nobody"], 404),
        (vec![BOTH, "Mcp-Session-Id:"], 404),
        (vec![BOTH, &named, &named], 400),
        (vec![BOTH, &named], 200),
        (vec![BOTH, &named, "MCP-Protocol-Version: 2025-03-26"], 200),
        (vec![BOTH, &named, "MCP-Protocol-Version: 2026-07-28"], 400),
        (vec![BOTH, &named, "MCP-Protocol-Version: x"], 400),
    ] {
        assert_eq!(send(&gateway, "POST", &lines, &ping).status, status, "{lines:?}");
    }
    let stream = "Accept: text/event-stream";
    for (lines, status) in [(vec![stream], 400), (vec![stream, "Mcp-Session-Id: nobody"], 404)] {
        assert_eq!(send(&gateway, "GET", &lines, "").status, status);
        assert_eq!(send(&gateway, "DELETE", &lines[1..], "").status, status);
    }
    let again = session.post(&initialize_request("2025-11-25"));
    assert_eq!((again.status, code(&again)), (400, -32600));
    let lost = send(&gateway, "POST", &[BOTH, "Mcp-Session-Id: nobody"], &initialize_request("2025-11-25"));
    assert_eq!(lost.status, 404);
    let probed = send(
        &gateway,
        "POST",
        &[BOTH, "MCP-Protocol-Version: 2026-07-28"],
        &initialize_request("2025-11-25"),
    );
    assert_eq!(probed.status, 200, "a client that probed may have left the header");
    let failed = send(&gateway, "POST", &[BOTH], &request(1, "initialize", json!({"protocolVersion": 5})));
    assert_eq!((code(&failed), failed.field("mcp-session-id")), (-32602, None));
    let taken = ask(
        &mut Wire::connect(gateway.address),
        "POST",
        &format!("/messages?session_id={}", session.id),
        &[&*host(gateway.address)],
        &ping,
    );
    assert_eq!(taken.status, 404, "the other transport has sessions of its own");
}

#[test]
fn a_deleted_session_is_gone() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let session = Session::open(gateway.address, "/mcp");
    let mut listening = session.listen(None);
    let mut held = session.send("POST", &[BOTH], &call(5, "s_hold", json!({"key": "k"})));
    edge.wait_for("hold");
    assert!(matches!(session.send("DELETE", &[], "").answer().status, 200 | 204));
    let ended = held.answer();
    assert_eq!((ended.status, code(&ended)), (200, -32800), "{ended:?}");
    edge.wait_for("notifications/cancelled");
    while listening.try_next().unwrap().is_some() {}
    assert_eq!(session.post(&request(1, "ping", json!({}))).status, 404);
    assert_eq!(session.send("DELETE", &[], "").answer().status, 404);
}

#[test]
fn unsupported_methods_and_types_are_refused() {
    let gateway = Gateway::start(&[]);
    let session = Session::open(gateway.address, "/mcp");
    let named = format!("Mcp-Session-Id: {}", session.id);
    for method in ["PUT", "PATCH", "OPTIONS", "HEAD"] {
        let mut wire = Wire::connect(gateway.address);
        wire.send(text(method, "/mcp", &[&*host(gateway.address), &*named], ""));
        let head = wire.head().unwrap();
        assert_eq!((head.status, head.field("allow")), (405, Some("GET, POST, DELETE")), "{method}");
    }
    let ping = request(1, "ping", json!({}));
    for (accept, status) in [
        ("Accept: application/json", 200),
        ("Accept: text/event-stream", 200),
        ("Accept: text/html", 406),
        ("Accept: text/*, application/*;q=0.5", 200),
        ("Accept: */*", 200),
        ("Accept: TEXT/Event-Stream , Application/JSON; q=1", 200),
    ] {
        assert_eq!(send(&gateway, "POST", &[accept, &named], &ping).status, status, "{accept}");
    }
    assert_eq!(send(&gateway, "GET", &["Accept: application/json", &named], "").status, 406);
    let origin = send(&gateway, "POST", &[BOTH, &named, "Origin: https://evil.example"], &ping);
    assert_eq!(origin.status, 403);
    let mut wire = Wire::connect(gateway.address);
    let rebound = ask(&mut wire, "POST", "/mcp", &["Host: evil.example", BOTH, &named], &ping);
    assert!(matches!(rebound.status, 403 | 421), "{rebound:?}");
}

#[test]
fn a_session_belongs_to_its_principal() {
    let gateway = Gateway::start(&["--auth-token", "token-of-one", "--auth-token", "token-of-another"]);
    let one = "Authorization: Bearer token-of-one";
    let session = Session::open_as(gateway.address, "/mcp", "2025-11-25", &[one]);
    let mut other =
        Session::open_as(gateway.address, "/mcp", "2025-11-25", &["Authorization: Bearer token-of-another"]);
    other.id = session.id.clone();
    let ping = request(1, "ping", json!({}));
    assert_eq!(other.post(&ping).status, 404);
    assert_eq!(other.try_listen(None).answer().status, 404);
    assert_eq!(other.send("DELETE", &[], "").answer().status, 404);
    assert_eq!(session.post(&ping).status, 200);
    let named = format!("Mcp-Session-Id: {}", session.id);
    let nobody = send(&gateway, "POST", &[BOTH, &named], &ping);
    assert_eq!((nobody.status, nobody.field("www-authenticate")), (401, Some("Bearer")));
}

#[test]
fn batches_are_for_one_version() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge("s");
    let ping = |id: i64| value(&request(id, "ping", json!({})));
    let batch = json!([ping(1), value(&call(2, "s_echo", json!({"text": "x"}))), ping(3),
        {"jsonrpc": "2.0", "method": "notifications/odd"}, {"jsonrpc": "2.0", "id": 7, "result": {}}]);
    for version in ["2024-11-05", "2025-06-18", "2025-11-25"] {
        let session = Session::open_as(gateway.address, "/mcp", version, &[]);
        let answer = session.post(&batch.to_string());
        assert_eq!((answer.status, code(&answer)), (400, -32600), "{version}");
    }
    let session = Session::open_as(gateway.address, "/mcp", "2025-03-26", &[]);
    let answer = session.post(&format!(" {batch}\n"));
    assert_eq!((answer.status, answer.field("content-type")), (200, Some("application/json")), "{answer:?}");
    let answers = value(&answer.body);
    let mut ids: Vec<i64> = answers.as_array().unwrap().iter().map(|a| a["id"].as_i64().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, [1, 2, 3]);
    let only = session.post(&json!([{"jsonrpc": "2.0", "method": "notifications/odd"}]).to_string());
    assert_eq!((only.status, only.body.as_str()), (202, ""));
    let many = Value::Array((0..65).map(ping).collect());
    for bad in [json!([]), json!([5]), json!([ping(1), value(&initialize_request("2025-03-26"))]), many] {
        let answer = session.post(&bad.to_string());
        assert_eq!((answer.status, code(&answer)), (400, -32600), "{bad}");
    }
    // If a call of a batch sends a notification first, the whole response is a stream.
    let told = value(&call_with(8, "s_progress", json!({"steps": 2}), "t"));
    let all = session.stream(&json!([told, ping(9)]).to_string()).all();
    assert_eq!(all.iter().filter(|message| message.get("id").is_some()).count(), 2, "{all:?}");
    assert_eq!(all.iter().filter(|message| message["params"]["progressToken"] == "t").count(), 2, "{all:?}");
}

#[test]
fn the_first_message_decides_the_response_form() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge("s");
    let session = Session::open_as(gateway.address, "/mcp", "2025-06-18", &[]);
    assert_eq!(session.call_text("s_echo", json!({"text": "é\r\n"})), "é\r\n");
    for bytes in [1 << 20, 3 << 20] {
        assert_eq!(session.call_text("s_big", json!({"bytes": bytes})).len(), bytes);
    }
    for token in [json!(0), json!("t"), json!(1.5)] {
        let mut stream = session.stream(&call_with(4, "s_progress", json!({"steps": 3}), token.clone()));
        assert_eq!(stream.head.field("cache-control"), Some("no-store"));
        for step in 1..=3 {
            let message = stream.message();
            assert_eq!(
                (&message["params"]["progress"], &message["params"]["progressToken"]),
                (&json!(step), &token)
            );
        }
        let last = stream.message();
        assert_eq!((&last["id"], &last["result"]["content"][0]["text"]), (&json!(4), &json!("done")));
        stream.ended();
    }
}

#[test]
fn a_cancelled_post_ends() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let session = Session::open(gateway.address, "/mcp");
    let cancel = |id: &str| {
        let note = format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{id},"reason":"é"}}}}"#
        );
        assert_eq!(session.post(&note).status, 202);
    };
    let mut plain = session.send("POST", &[BOTH], &call("a", "s_hold", json!({"key": "a"})));
    edge.wait_for(r#""key":"a""#);
    cancel("\"a\"");
    let answer = plain.answer();
    assert_eq!((answer.status, code(&answer), &value(&answer.body)["id"]), (200, -32800, &json!("a")));
    assert!(edge.wait_for("notifications/cancelled").contains("é"));
    let mut stream = session.stream_of_held(&edge, 7, "b");
    cancel("7");
    let last = stream.message();
    assert_eq!((&last["id"], &last["error"]["code"]), (&json!(7), &json!(-32800)));
    stream.ended();
}

impl Session {
    /// A call of `hold` at the server's endpoint whose stream has begun: the priming event and one
    /// progress notification are read.
    #[track_caller]
    fn stream_of_held(&self, edge: &Edge, id: i64, key: &str) -> crate::session::Events {
        let tool = |name: &str| if self.path == "/mcp" { format!("s_{name}") } else { name.to_owned() };
        let body = call_with(id, &tool("hold"), json!({"key": key}), key);
        let wire = self.send("POST", &[BOTH], &body);
        edge.wait_for(&format!(r#"{{"key":"{key}"}},"name":"hold""#));
        self.tick(key, 1, 1);
        let mut stream = events(wire);
        if self.version == "2025-11-25" {
            let first = stream.next();
            assert_eq!(first.data.as_deref(), Some(""), "{first:?}");
            assert!(first.retry.is_some() && first.id.is_some(), "{first:?}");
        }
        let told = stream.message();
        assert_eq!(told["params"]["progress"], 1, "{told}");
        stream
    }

    /// Sends progress of a held call, at the server's endpoint.
    #[track_caller]
    fn tick(&self, key: &str, from: usize, to: usize) {
        let server = self.at_server();
        assert_eq!(
            server.call_text("tick", json!({"key": key, "from": from, "to": to, "message": ""})),
            "ticked"
        );
    }

    #[track_caller]
    fn release(&self, key: &str) {
        assert_eq!(self.at_server().call_text("release", json!({"key": key})), "released");
    }

    #[track_caller]
    fn at_server(&self) -> Session {
        Self::open_as(self.address, SERVER, "2025-06-18", &[])
    }
}

#[test]
fn the_newest_get_takes_the_stream() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge("s");
    let session = Session::open_as(gateway.address, "/mcp", "2025-06-18", &[]);
    // The first one is dead: it never reads, and the gateway gets no error.
    let dead = session.try_listen(None);
    let mut before = session.listen(None);
    for _ in 0..8 {
        let listening = session.listen(None);
        before.ended();
        before = listening;
    }
    session.call_text("s_change", json!({}));
    assert_eq!(before.message()["method"], "notifications/tools/list_changed");
    drop(dead);
    // Several at once: all but one end, and that one has the stream.
    let several: Vec<_> = (0..8).map(|_| session.try_listen(None)).collect();
    let statuses: Vec<u16> = several.into_iter().map(|mut wire| wire.head().unwrap().status).collect();
    assert!(statuses.iter().all(|status| matches!(status, 200 | 409)), "{statuses:?}");
    let mut last = session.listen(None);
    session.call_text("s_change", json!({}));
    assert_eq!(last.message()["method"], "notifications/tools/list_changed");
}

#[test]
fn a_dropped_post_goes_on_and_a_closed_event_stream_does_not() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let session = Session::open(gateway.address, "/mcp");
    drop(session.send("POST", &[BOTH], &call(1, "s_hold", json!({"key": "k"}))));
    edge.wait_for(r#""key":"k""#);
    let mut old = gateway.client();
    old.begin_call("s_hold", r#"{"key":"old"}"#);
    edge.wait_for(r#""key":"old""#);
    drop(old);
    edge.wait_for("notifications/cancelled");
    session.release("k");
    assert_eq!(edge.count("notifications/cancelled"), 1);
    assert_eq!(session.call_text("s_echo", json!({"text": "on"})), "on");
}

#[test]
fn unrelated_messages_go_to_the_get_stream() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge("s");
    let session = Session::open_as(gateway.address, "/mcp", "2025-06-18", &[]);
    let mut older = session.listen(None);
    let mut listening = session.listen(None);
    older.ended();
    session.call_text("s_change", json!({}));
    let changed = listening.next();
    assert_eq!(changed.message()["method"], "notifications/tools/list_changed");
    assert_eq!((changed.retry, changed.id.is_some()), (None, true));
    drop(listening);
    let mut again = None;
    eventually("the stream is free again", || {
        let mut wire = session.try_listen(None);
        let free = wire.head().unwrap().status == 200;
        again = free.then_some(wire);
        free
    });
}

/// A held call with progress 1 read; then its connection is lost.
fn lost_call(version: &str) -> (Gateway, Edge, Session, Event) {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let session = Session::open_as(gateway.address, "/mcp", version, &[]);
    let wire = session.send("POST", &[BOTH], &call_with(5, "s_hold", json!({"key": "k"}), 77));
    edge.wait_for(r#""key":"k""#);
    session.tick("k", 1, 1);
    let mut stream = events(wire);
    let mut seen = stream.next();
    assert_eq!(seen.retry.is_some(), version == "2025-11-25");
    if version == "2025-11-25" {
        seen = stream.next();
    }
    assert_eq!(seen.message()["params"]["progress"], 1);
    (gateway, edge, session, seen)
}

#[test]
fn the_stream_of_a_post_is_resumed() {
    for version in ["2025-06-18", "2025-11-25"] {
        let (_gateway, _edge, session, seen) = lost_call(version);
        session.tick("k", 2, 4);
        let mut resumed = session.listen(seen.id.as_deref());
        for step in 2..=4 {
            let message = resumed.message();
            assert_eq!(
                (&message["params"]["progress"], &message["params"]["progressToken"]),
                (&json!(step), &json!(77))
            );
        }
        session.tick("k", 5, 5);
        let middle = resumed.next();
        assert_eq!(middle.message()["params"]["progress"], 5);
        drop(resumed);
        session.release("k");
        let rest = session.listen(middle.id.as_deref()).all();
        assert_eq!(rest.len(), 1, "{rest:?}");
        assert_eq!((&rest[0]["id"], &rest[0]["result"]["content"][0]["text"]), (&json!(5), &json!("k")));
        // It can be resumed again, from any event.
        assert_eq!(session.listen(middle.id.as_deref()).all(), rest);
        assert_eq!(session.listen(seen.id.as_deref()).all().len(), 5);
    }
}

#[test]
fn a_stream_is_taken_over_from_an_open_connection() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let session = Session::open(gateway.address, "/mcp");
    let mut old = session.stream_of_held(&edge, 5, "k");
    session.tick("k", 2, 2);
    let seen = old.next();
    let mut new = session.listen(seen.id.as_deref());
    old.ended();
    session.tick("k", 3, 3);
    session.release("k");
    assert_eq!(new.message()["params"]["progress"], 3);
    assert_eq!(new.message()["result"]["content"][0]["text"], "k");
    new.ended();
}

#[test]
fn the_stream_by_get_is_resumed() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge_with("s", &["--rich"], &[]);
    gateway.program.wait_for("server 's' offers 1 resource template");
    let session = Session::open_as(gateway.address, SERVER, "2025-06-18", &[]);
    let say = |number: i64| {
        let notice = json!({"method": "notifications/odd", "params": {"number": number}});
        assert_eq!(session.call_text("notify", notice), "notified");
    };
    let mut first = session.listen(None);
    say(1);
    say(2);
    let one = first.next();
    assert_eq!(one.message()["params"]["number"], 1);
    drop(first);
    say(3);
    let mut second = session.listen(one.id.as_deref());
    assert_eq!(
        [second.message(), second.message()].map(|m| m["params"]["number"].as_i64()),
        [Some(2), Some(3)]
    );
    // While the old connection is open.
    say(4);
    let four = second.next();
    let mut third = session.listen(four.id.as_deref());
    second.ended();
    say(5);
    assert_eq!(third.message()["params"]["number"], 5);
    drop(third);
    // An id that is not an event of this session resumes nothing.
    for (last, status) in [("99-1", 400), ("0-99", 400)] {
        let answer = session.try_listen(Some(last)).head().unwrap();
        assert_eq!(answer.status, status, "{last}");
    }
}

#[test]
fn a_client_that_never_reads_is_cut_off_alone() {
    let gateway = in_process::Gateway::start(&[], |limits| {
        limits.http.write_stall = std::time::Duration::from_millis(200);
        limits.session.keep_alive = std::time::Duration::from_millis(50);
    });
    let edge = gateway.edge("s", &[]);
    let (lazy, other) = (Session::open(gateway.address, SERVER), Session::open(gateway.address, SERVER));
    let mut listening = other.listen(None);
    assert_eq!(listening.next().data.as_deref(), Some(""));
    let mut stuck = tcp(gateway.address);
    let lines = lazy.lines();
    let lines: Vec<&str> = lines.iter().map(String::as_str).chain(["Accept: text/event-stream"]).collect();
    stuck.write_all(text("GET", SERVER, &lines, "").as_bytes()).unwrap();
    let padding = "x".repeat(900_000);
    for number in 0..12 {
        let notice = json!({"method": "notifications/odd", "params": {"number": number, "padding": padding}});
        assert_eq!(other.call_text("notify", notice), "notified");
        assert_eq!(listening.message()["params"]["number"], number);
    }
    eventually("the stream that is not read is given up", || {
        let mut wire = lazy.try_listen(None);
        wire.head().is_ok_and(|head| head.status == 200)
    });
    assert!(edge.count("notify") >= 12);
}

/// A proxy cuts a silent response; a stream is kept alive. A client that does not accept streams
/// gets none.
#[test]
fn a_silent_answer_becomes_a_stream() {
    let gateway = in_process::Gateway::start(&[], |limits| {
        // Longer than a call that is not silent takes.
        limits.session.stream_after = std::time::Duration::from_secs(1);
        limits.session.keep_alive = std::time::Duration::from_millis(50);
    });
    let edge = gateway.edge("s", &[]);
    let session = Session::open_as(gateway.address, SERVER, "2025-06-18", &[]);
    let hold = |id: i64, key: &str, accept: &str| {
        let wire = session.send("POST", &[accept], &call(id, "hold", json!({"key": key})));
        edge.wait_for(&format!("\"{key}\""));
        wire
    };
    let mut plain = hold(1, "one", "Accept: */*");
    let mut streamed = hold(2, "two", BOTH);
    let head = streamed.head().unwrap();
    assert_eq!((head.status, head.field("content-type")), (200, Some("text/event-stream")), "{}", head.head);
    for _ in 0..3 {
        assert_eq!(streamed.chunk().unwrap().unwrap(), b": keep-alive\r\n\r\n");
    }
    session.release("one");
    let answer = plain.answer();
    assert_eq!((answer.status, answer.field("content-type")), (200, Some("application/json")), "{answer:?}");
    session.release("two");
    let mut rest = Vec::new();
    while let Some(chunk) = streamed.chunk().unwrap() {
        rest.extend(chunk);
    }
    let rest = String::from_utf8(rest).unwrap().replace(": keep-alive\r\n\r\n", "");
    let id = rest.strip_prefix("id: ").and_then(|rest| rest.split("\r\n").next()).unwrap();
    let message = r#"{"jsonrpc":"2.0","id":2,"result":{"content":[{"text":"two","type":"text"}]}}"#;
    assert_eq!(rest, format!("id: {id}\r\nevent: message\r\ndata: {message}\r\n\r\n"));
}

#[test]
fn a_stream_is_taken_over_from_a_connection_that_is_stuck() {
    let gateway = in_process::Gateway::start(&[], |limits| {
        limits.session.replay_bytes = 64 << 20;
        limits.session.queue_bytes = 64 << 20;
    });
    let _edge = gateway.edge("s", &[]);
    let (session, other) = (Session::open(gateway.address, SERVER), Session::open(gateway.address, SERVER));
    let mut stuck = session.listen(None);
    let first = stuck.next();
    assert_eq!(first.data.as_deref(), Some(""));
    // More than the system buffers for one connection, so that the gateway waits for the client to
    // read.
    let padding = "x".repeat(900_000);
    let say = |number: i64| {
        let notice = json!({"method": "notifications/odd", "params": {"number": number, "padding": padding}});
        assert_eq!(other.call_text("notify", notice), "notified");
    };
    (0..16).for_each(say);
    let begun = std::time::Instant::now();
    let mut fresh = session.listen(first.id.as_deref());
    for number in 0..16 {
        assert_eq!(fresh.message()["params"]["number"], number);
    }
    assert!(begun.elapsed() < Limits::default().http.write_stall / 2, "nothing waits for the old connection");
    say(16);
    assert_eq!(fresh.message()["params"]["number"], 16);
}

#[test]
fn a_full_table_asks_to_retry_later() {
    let gateway = in_process::Gateway::start(&[], |limits| limits.session.sessions = 2);
    let (one, _two) = (Session::open(gateway.address, "/mcp"), Session::open(gateway.address, "/mcp"));
    let third = || {
        let host = host(gateway.address);
        ask(
            &mut Wire::connect(gateway.address),
            "POST",
            "/mcp",
            &[&host, BOTH],
            &initialize_request("2025-11-25"),
        )
    };
    let full = third();
    assert_eq!((full.status, full.field("retry-after")), (503, Some("1")));
    one.send("DELETE", &[], "").answer();
    assert_eq!(third().status, 200);
}

#[test]
fn only_idle_sessions_expire() {
    let gateway =
        in_process::Gateway::start(&[], |limits| limits.session.idle = std::time::Duration::from_millis(300));
    let edge = gateway.edge("s", &[]);
    let (idle, listening, calling) = (
        Session::open(gateway.address, "/mcp"),
        Session::open(gateway.address, "/mcp"),
        Session::open(gateway.address, SERVER),
    );
    let mut stream = listening.listen(None);
    assert_eq!(stream.next().data.as_deref(), Some(""));
    let mut held = calling.send("POST", &[BOTH], &call(1, "hold", json!({"key": "k"})));
    edge.wait_for(r#""key":"k""#);
    let ping = request(1, "ping", json!({}));
    // Not requested again, because that would count as use.
    thread::sleep(std::time::Duration::from_millis(1200));
    assert_eq!([idle, listening].map(|session| session.post(&ping).status), [404, 200]);
    calling.release("k");
    assert_eq!(held.answer().status, 200);
}

#[test]
fn a_lost_stream_that_missed_too_much_still_gets_its_answer() {
    let gateway = in_process::Gateway::start(&[], |limits| {
        limits.session.replay_messages = 2;
        limits.session.queue_messages = 4;
    });
    let edge = gateway.edge("s", &[]);
    let session = Session::open(gateway.address, SERVER);
    let mut stream = session.stream_of_held(&edge, 5, "k");
    session.tick("k", 2, 4);
    let seen = stream.next();
    assert_eq!(
        [stream.message(), stream.message()].map(|m| m["params"]["progress"].as_i64()),
        [Some(3), Some(4)]
    );
    drop(stream);
    // The gateway notices a lost connection by reading; then everything waits in the queue, which
    // has four slots.
    eventually("the stream rests", || session.try_listen(Some("1-4")).head().unwrap().status == 200);
    session.tick("k", 5, 20);
    session.release("k");
    let mut rest = session.listen(seen.id.as_deref()).all();
    let last = rest.pop().unwrap();
    assert_eq!(last["result"]["content"][0]["text"], "k");
    let steps: Vec<i64> = rest.iter().map(|m| m["params"]["progress"].as_i64().unwrap()).collect();
    assert!(steps.windows(2).all(|pair| pair[0] < pair[1]), "{steps:?}");
}
