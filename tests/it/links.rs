//! The link: who may register, how a broken link is handled, and what is kept.

use std::{
    io::{Read, Write},
    net::TcpListener,
};

use rustix::process::Signal;

use crate::{
    harness::{Edge, Gateway, Program, eventually},
    relay::{Relay, Way},
    wire::{Wire, ask, get, member, request},
};

/// Returns the one error line of a program that ended with exit code 1.
#[track_caller]
fn complaint(program: &mut Program) -> String {
    let end = program.ended();
    assert_eq!((end.code, end.complaint().len()), (Some(1), 1), "{:?}", end.stderr);
    end.complaint()[0].to_owned()
}

#[test]
fn a_name_belongs_to_one_server() {
    let gateway = Gateway::start(&[]);
    let id = "i".repeat(120);
    let _first = gateway.edge_with("taken", &[], &["--server-id", &id]);
    let mut second = Edge::start(&gateway.url(), "taken", &[], &[]);
    let line = complaint(&mut second.program);
    assert!(line.contains("the name 'taken' belongs to another server") && line.contains(&id), "{line}");
    assert!(second.program.offspring().is_empty());
    assert_eq!(gateway.client().call_text("taken_echo", r#"{"text":"still here"}"#), "still here");
}

#[test]
fn the_same_id_takes_over() {
    let gateway = Gateway::start(&["--timeout-run-tool", "10m"]);
    let mut first = gateway.edge_with("s", &[], &["--server-id", "box"]);
    first.program.wait_for("registered: ");
    let mut client = gateway.client();
    let id = client.begin_call("s_hold", r#"{"key":"k"}"#);
    first.wait_for("\"hold\"");
    let second = Edge::start(&gateway.url(), "s", &[], &["--server-id", "box"]);
    let answer = client.answer(&id);
    assert!(answer.contains("server 's' disconnected") && member(&answer, "error").is_some(), "{answer}");
    first.program.wait_for("with the same server id; see --server-id");
    second.program.wait_for("registered");
    client.tools_until(|tools| tools.len() == 17);
    assert_eq!(client.call_text("s_pid", "{}"), second.server_pid().to_string());
    assert!(first.program.is_running(), "once registered, it retries");
}

#[test]
fn an_id_belongs_to_the_token_that_registered_it() {
    let gateway = Gateway::start(&["--auth-token", "one", "--auth-token", "two"]);
    let token = |token| ["--server-id", "box", "--header", token];
    let _first = gateway.edge_with("s", &[], &token("Authorization: Bearer one"));
    let second = Edge::start(&gateway.url(), "other", &[], &token("Authorization: Bearer two"));
    second.program.wait_for("registered: ");
    // Two servers: neither replaces the other, and each token sees only its own id.
    for (bearer, own, other) in [("one", "s", "other"), ("two", "other", "s")] {
        let line = format!("Authorization: Bearer {bearer}");
        let status = request(gateway.address, "GET", "/status", &[&line], "").body;
        assert!(status.contains(&format!(r#""name":"{own}","id":"box","#)), "{status}");
        assert!(status.contains(&format!(r#""name":"{other}","state":"connected","#)), "{status}");
    }
}

#[test]
fn names_that_are_not_allowed() {
    let gateway = Gateway::start(&[]);
    for name in ["", "a b", "ü", "a/b", "a'b", "a\"b", &"n".repeat(65)] {
        let end = Program::finish(&["register", "--stdio", "cat", "--server-name", name]);
        assert_eq!((end.code, end.complaint().len()), (Some(2), 1), "{name}: {:?}", end.stderr);
        assert!(end.complaint()[0].contains("--server-name"), "{:?}", end.stderr);
    }
    for name in ["a", "A.b-c_d", "0", &"n".repeat(64)] {
        gateway.edge(name);
    }
}

#[test]
fn a_server_that_cannot_be_used_is_given_up() {
    let gateway = Gateway::start(&["--timeout-rpc", "1s", "--timeout-run-tool", "1s"]);
    for (arguments, words) in [
        (&["--mute", "initialize"][..], "initialize timed out after 1 s"),
        (&["--mute", "tools/list"], "tools/list timed out after 1 s"),
        (&["--refuse", "initialize"], "initialize failed: not in the mood"),
        (&["--refuse", "tools/list"], "tools/list failed: not in the mood"),
        (&["--version", "1999-01-01"], "protocol version 1999-01-01"),
    ] {
        // The edge retries if a server is only slow, unless told otherwise.
        let mut edge = Edge::start(&gateway.url(), "s", arguments, &["--require-gateway"]);
        let line = complaint(&mut edge.program);
        assert!(line.contains("dropped the server") && line.contains(words), "{line}");
        assert!(edge.program.offspring().is_empty());
    }
}

#[test]
fn a_restarted_gateway_gets_the_same_server_back() {
    let mut gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let pid = edge.server_pid().to_string();
    assert_eq!(gateway.client().call_text("s_pid", "{}"), pid);
    for round in 1..=2 {
        edge.program.wait_for_nth("registered: ", round);
        gateway.program.kill();
        gateway = gateway.again(&[]);
        gateway.program.wait_for("server 's' offers 16 tools");
        let mut client = gateway.client();
        assert_eq!(client.call_text("s_pid", "{}"), pid, "the child keeps running");
        assert_eq!((edge.count("\"initialize\""), edge.count("notifications/initialized")), (1, 1));
        assert_eq!(edge.count("tools/list"), 1 + round);
    }
}

#[test]
fn an_edge_connects_when_its_gateway_starts_later() {
    let first = Gateway::start(&[]);
    let mut gone = first;
    gone.program.kill();
    let edge = Edge::start(&gone.url(), "s", &[], &[]);
    edge.program.wait_for("connection refused");
    let gateway = gone.again(&[]);
    gateway.program.wait_for("server 's' offers");
    edge.program.wait_for("registered");
}

#[test]
fn an_answer_to_an_earlier_link_is_dropped() {
    let mut gateway = Gateway::start(&["--resume-window", "0"]);
    let edge = gateway.edge("s");
    let mut client = gateway.client();
    let keys: Vec<String> = (0..4).map(|key| format!("{{\"key\":\"old{key}\"}}")).collect();
    for key in &keys {
        client.begin_call("s_hold", key);
    }
    eventually("all of them wait", || edge.count("\"hold\"") == 4);
    gateway.program.kill();
    // Nobody waits for them any more, and the server gets a cancellation.
    eventually("they are cancelled", || edge.count("notifications/cancelled") == 4);
    gateway = gateway.again(&[]);
    gateway.program.wait_for("server 's' offers");
    let mut client = gateway.client();
    // The new gateway numbers from 1 again, so the server sees other ids than before.
    let waiting: Vec<String> =
        (0..4).map(|key| client.begin_call("s_hold", &format!("{{\"key\":\"new{key}\"}}"))).collect();
    eventually("the new ones wait", || edge.count("\"hold\"") == 8);
    for key in &keys {
        client.call("s_release", key);
    }
    for (key, id) in waiting.iter().enumerate() {
        client.call("s_release", &format!("{{\"key\":\"new{key}\"}}"));
        assert!(client.answer(id).contains(&format!("new{key}")));
    }
    assert_eq!(client.rest(), [""; 0]);
    let ids: std::collections::HashSet<_> = edge
        .got()
        .iter()
        .filter(|line| !line.contains("cancelled"))
        .filter_map(|line| member(line, "id"))
        .collect();
    let asked =
        edge.got().iter().filter(|line| line.contains("\"id\"") && !line.contains("cancelled")).count();
    assert_eq!(ids.len(), asked, "each id is used once in the life of a server");
}

#[test]
fn a_token_that_is_refused_at_the_start_ends_the_program() {
    let gateway = Gateway::start(&["--auth-token", "right"]);
    for (arguments, words) in [
        (&[][..], "requires a token (401)"),
        (&["--header", "Authorization: Bearer canary"], "rejected the token (401)"),
    ] {
        let mut edge = Edge::start(&gateway.url(), "s", &[], arguments);
        let line = complaint(&mut edge.program);
        assert!(line.contains(words) && !line.contains("canary"), "{line}");
        assert!(edge.program.offspring().is_empty());
    }
}

#[test]
fn an_edge_retries_when_its_token_is_refused_later() {
    let mut gateway = Gateway::start(&["--auth-token", "right"]);
    let mut edge = gateway.edge_with("s", &[], &["--header", "Authorization: Bearer right"]);
    edge.program.wait_for("registered: ");
    gateway.program.kill();
    let _other = gateway.again(&["--auth-token", "changed"]);
    let line = edge.program.wait_for("[ERROR]");
    assert!(line.contains("401"), "{line}");
    assert!(edge.program.is_running());
}

#[test]
fn a_foreign_http_server_is_recognized() {
    for (answer, words) in [
        ("garbage\r\n\r\n", "the response is not HTTP"),
        ("SSH-2.0-x\r\n", "the response is not HTTP"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "HTTP status 200 instead of an upgrade"),
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "no registration endpoint"),
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "rejected the registration (403)"),
        ("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "at a limit (503)"),
        (
            "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
            "",
        ),
        ("", ""),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("ws://{}/mcp/register", listener.local_addr().unwrap());
        let mut edge = Edge::start(&url, "s", &[], &["--require-gateway"]);
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = [0; 1024];
        assert!(stream.read(&mut bytes).unwrap() > 0);
        stream.write_all(answer.as_bytes()).unwrap();
        drop((stream, listener));
        let line = complaint(&mut edge.program);
        assert!(line.contains(words) && line.len() < 400, "{answer:?}: {line}");
    }
}

#[test]
fn garbage_on_the_port_affects_no_other() {
    let gateway = Gateway::start(&[]);
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..],
        b"SSH-2.0-x\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
    ] {
        let mut wire = Wire::connect(gateway.address);
        wire.send(garbage);
        let answer = wire.answer();
        assert_eq!((answer.status, answer.field("connection")), (400, Some("close")), "{answer:?}");
        assert!(wire.is_closed());
    }
    assert_eq!(get(gateway.address, "/health").status, 200);
}

#[test]
fn invalid_upgrades_are_refused() {
    let gateway = Gateway::start(&[]);
    let host = crate::wire::host(gateway.address);
    for (lines, status) in [
        (&[][..], 426),
        (&["Connection: Upgrade", "Upgrade: h2c"], 426),
        (&["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"], 400),
        (
            &[
                "Connection: Upgrade",
                "Upgrade: websocket",
                "Sec-WebSocket-Version: 8",
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            ],
            426,
        ),
    ] {
        let lines = [&[host.as_str()], lines].concat();
        let answer = ask(&mut Wire::connect(gateway.address), "GET", "/mcp/register", &lines, "");
        assert_eq!(answer.status, status, "{lines:?}: {answer:?}");
    }
}

#[test]
fn a_gateway_drains_when_it_is_stopped() {
    let mut gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let mut client = gateway.client();
    let end = gateway.program.stop();
    assert_eq!((end.code, end.complaint().len()), (Some(0), 0), "{:?}", end.stderr);
    client.ended();
    edge.program.wait_for("the gateway is stopping");
    edge.program.wait_for("reconnecting in");
}

#[test]
fn a_call_that_runs_at_the_end_is_answered() {
    let mut gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let mut client = gateway.client();
    let id = client.begin_call("s_sleep", r#"{"ms":500}"#);
    edge.wait_for("\"sleep\"");
    gateway.program.signal(Signal::TERM);
    assert!(client.answer(&id).contains("slept"));
    client.ended();
    assert_eq!(gateway.program.ended().code, Some(0));
}

#[test]
fn a_call_that_does_not_end_is_failed_before_the_end() {
    // Both at once, because this takes as long as a gateway waits for calls.
    let mut worlds = ["shared", "isolated"].map(|sessions| {
        let gateway = Gateway::start(&[]);
        let edge = gateway.edge_with("s", &[], &["--sessions", sessions]);
        let mut client = gateway.client();
        let id = client.begin_call("s_hold", r#"{"key":"k"}"#);
        edge.wait_for("\"hold\"");
        gateway.program.signal(Signal::TERM);
        (gateway, edge, client, id)
    });
    for (gateway, _edge, client, id) in &mut worlds {
        let answer = client.answer(id);
        assert!(answer.contains("server 's' disconnected: the gateway is stopping"), "{answer}");
        client.ended();
        assert_eq!(gateway.program.ended().code, Some(0));
    }
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut gateway = Gateway::start(&[]);
    // A connection within a request keeps the gateway waiting.
    let mut wire = Wire::connect(gateway.address);
    wire.send("POST /messages?session_id=x HTTP/1.1\r\n");
    get(gateway.address, "/health");
    gateway.program.signal(Signal::TERM);
    gateway.program.wait_for("stopping: ");
    gateway.program.signal(Signal::INT);
    let end = gateway.program.ended();
    assert_eq!(end.code, Some(1), "{:?}", end.stderr);
    assert!(end.complaint()[0].contains("again: exited at once"), "{:?}", end.stderr);
}

#[test]
fn calls_that_run_when_register_is_stopped_are_answered() {
    for sessions in ["shared", "isolated"] {
        let gateway = Gateway::start(&[]);
        let mut edge = gateway.edge_with("s", &[], &["--sessions", sessions]);
        let (mut client, mut late) = (gateway.client(), gateway.client());
        let id = client.begin_call("s_sleep", r#"{"ms":3000}"#);
        edge.wait_for("\"sleep\"");
        edge.program.signal(Signal::TERM);
        edge.program.wait_for("waiting up to 8 s for 1 running calls");
        // New calls fail at once: those of the same client, and those that would need a new
        // process.
        for client in [&mut client, &mut late] {
            let refused = client.begin_call("s_echo", "{}");
            let answer = client.answer(&refused);
            assert!(answer.contains("the edge is stopping"), "{sessions}: {answer}");
        }
        assert!(client.answer(&id).contains("slept"), "{sessions}");
        assert_eq!(edge.program.ended().code, Some(0), "{sessions}");
        assert!(edge.program.offspring().is_empty(), "{sessions}");
    }
}

#[test]
fn register_without_running_calls_ends_at_once() {
    for sessions in ["shared", "isolated"] {
        let gateway = Gateway::start(&[]);
        let mut edge = gateway.edge_with("s", &[], &["--sessions", sessions]);
        let mut client = gateway.client();
        client.call("s_echo", "{}");
        // The edge does not wait for a cancelled call.
        let id = client.begin_call("s_hold", r#"{"key":"k"}"#);
        edge.wait_for("\"hold\"");
        client.post(&format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{id}}}}}"#
        ));
        edge.wait_for("notifications/cancelled");
        let end = edge.program.stop();
        assert_eq!(end.code, Some(0));
        assert!(!end.stderr.join("\n").contains("waiting up to"), "{sessions}: {:?}", end.stderr);
    }
}

#[test]
fn calls_that_outlast_the_stop_of_register_fail_and_a_second_signal_ends_it() {
    let start = |sessions| {
        let gateway = Gateway::start(&[]);
        let edge = gateway.edge_with("s", &[], &["--sessions", sessions]);
        let mut client = gateway.client();
        let id = client.begin_call("s_hold", r#"{"key":"k"}"#);
        edge.wait_for("\"hold\"");
        edge.program.signal(Signal::TERM);
        edge.program.wait_for("for 1 running calls");
        (gateway, edge, client, id)
    };
    // All at once: two of them take as long as an edge waits for calls.
    let mut worlds = [("shared", false), ("isolated", false), ("shared", true), ("isolated", true)]
        .map(|(sessions, twice)| (start(sessions), twice));
    for ((_gateway, edge, client, id), twice) in worlds.iter_mut().rev() {
        if *twice {
            edge.program.signal(Signal::TERM);
        }
        let end = edge.program.ended();
        let log = end.stderr.join("\n");
        assert_eq!(end.code, Some(i32::from(*twice)), "{log}");
        assert_eq!(log.contains("failed 1 calls that did not complete within 8 s"), !*twice, "{log}");
        if !*twice {
            let answer = client.answer(id);
            assert!(answer.contains("code 1001: the edge is stopping"), "{answer}");
        }
        eventually("its servers end", || edge.program.offspring().is_empty());
    }
}

/// A link that is cut after the last response is sent, and before the gateway has received it.
#[test]
fn an_answer_under_way_when_register_stops_survives_a_cut_link() {
    for sessions in ["shared", "isolated"] {
        let gateway = Gateway::start(&[]);
        let relay = Relay::to(gateway.address);
        let mut edge = Edge::start(&relay.url(), "s", &[], &["--sessions", sessions]);
        gateway.program.wait_for("server 's' offers");
        let mut client = gateway.client();
        let id = client.begin_call("s_sleep", r#"{"ms":1000}"#);
        edge.wait_for("\"sleep\"");
        relay.freeze(Way::Up);
        edge.program.signal(Signal::TERM);
        edge.program.wait_for("for 1 running calls");
        edge.program.wait_for("waiting for the gateway to acknowledge");
        relay.cut();
        relay.thaw(Way::Up);
        let answer = client.answer(&id);
        assert!(answer.contains("slept"), "{sessions}: {answer}");
        assert_eq!(edge.program.ended().code, Some(0), "{sessions}");
    }
}

#[test]
fn a_gateway_that_acknowledges_nothing_holds_register_for_8_seconds_only() {
    let gateway = Gateway::start(&[]);
    let relay = Relay::to(gateway.address);
    let mut edge = Edge::start(&relay.url(), "s", &[], &[]);
    gateway.program.wait_for("server 's' offers");
    let mut client = gateway.client();
    client.begin_call("s_sleep", r#"{"ms":500}"#);
    edge.wait_for("\"sleep\"");
    relay.freeze(Way::Up);
    edge.program.signal(Signal::TERM);
    let end = edge.program.ended();
    assert_eq!(end.code, Some(0), "{:?}", end.stderr);
    assert!(end.stderr.join("\n").contains("the last responses may be lost"), "{:?}", end.stderr);
    assert!(edge.program.offspring().is_empty());
}
