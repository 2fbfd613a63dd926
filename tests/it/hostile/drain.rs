//! A gateway that stops while it is busy.

use std::{
    io::ErrorKind,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::json;

use super::raw::Raw;
use crate::{
    harness::Gateway,
    session::{BOTH, Session, call, value},
    wire::{Wire, host, text},
};

/// Rule 40: SIGTERM under load. New connections are not served, calls and streams end, links get
/// 1001, and the exit code is 0.
#[test]
fn shutdown_under_load_is_orderly() {
    let mut gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let mut raw = Raw::registered(gateway.address, "raw");
    let session = Session::open(gateway.address, "/mcp");
    let mut streams: Vec<_> = (0..5).map(|_| Session::open(gateway.address, "/mcp").listen(None)).collect();
    let mut legacy = gateway.client();
    let short: Vec<Wire> = (0..8).map(|n| posted(&session, n, "s_sleep", json!({"ms": 300}))).collect();
    let mut long = posted(&session, 100, "s_hold", json!({"key": "k"}));
    edge.wait_for("\"hold\"");
    let begun = Instant::now();
    gateway.program.signal(Signal::TERM);
    gateway.program.wait_for("stopping: ");
    thread::sleep(Duration::from_millis(100).saturating_sub(begun.elapsed()));
    match TcpStream::connect(gateway.address) {
        // The kernel may accept it as long as the socket exists; nobody serves it.
        Ok(stream) => {
            let mut wire = Wire::new(stream);
            wire.send("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
            assert!(wire.head().is_err(), "a new connection is served");
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionRefused),
    }
    for mut wire in short {
        assert!(wire.answer().body.contains("slept"));
    }
    let failed = value(&long.answer().body);
    assert!(
        failed["error"]["message"]
            .as_str()
            .unwrap_or_default()
            .contains("disconnected: the gateway is stopping"),
        "{failed}"
    );
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    for stream in &mut streams {
        while let Some(event) = stream.try_next().unwrap() {
            assert!(event.data.is_none_or(|data| data.is_empty() || data.contains("list_changed")));
        }
    }
    legacy.ended();
    assert_eq!(raw.closed(), (1001, "the gateway is stopping".into()));
    let end = gateway.program.ended();
    assert_eq!((end.code, end.complaint().len()), (Some(0), 0), "{:?}", end.stderr);
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    let last = end.stderr.last().cloned().unwrap_or_default();
    assert!(last.contains("served for") && last.contains("calls 9"), "{last}");
}

/// Rule 40: the second signal stops the program at once.
#[test]
fn the_second_signal_is_obeyed_at_once() {
    let mut gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let session = Session::open(gateway.address, "/mcp");
    let _long = posted(&session, 1, "s_hold", json!({"key": "k"}));
    edge.wait_for("\"hold\"");
    gateway.program.signal(Signal::TERM);
    gateway.program.wait_for("stopping: ");
    let begun = Instant::now();
    gateway.program.signal(Signal::TERM);
    let end = gateway.program.ended();
    let took = begun.elapsed();
    assert_eq!(end.code, Some(1), "{:?}", end.stderr);
    assert!(took < Duration::from_millis(200), "{took:?}");
}

/// After the signal, idle connections and open sessions cannot make new calls. The running call
/// completes, and the program exits as soon as its response is sent.
#[test]
fn stop_refuses_new_calls_and_delivers_running_ones() {
    let mut gateway = Gateway::start(&[]);
    let mut raw = Raw::registered(gateway.address, "raw");
    let session = Session::open(gateway.address, "/mcp");
    let mut legacy = gateway.client();
    let mut running = posted(&session, 1, "raw_echo", json!({}));
    let request = raw.text_with("tools/call");
    let mut kept: Vec<Wire> = (0..4).map(|_| Wire::connect(gateway.address)).collect();
    for wire in &mut kept {
        wire.send(format!("GET /health HTTP/1.1\r\n{}\r\n\r\n", host(gateway.address)));
        assert_eq!(wire.answer().field("connection"), None);
    }
    gateway.program.signal(Signal::TERM);
    gateway.program.wait_for("stopping: ");
    let lines = session.lines();
    let lines: Vec<&str> = lines.iter().map(String::as_str).chain([BOTH]).collect();
    let endpoint = legacy.endpoint.clone();
    let [streamable, old, health, cancel] = &mut kept[..] else { unreachable!() };

    streamable.send(text("POST", "/mcp", &lines, &call(2, "raw_echo", json!({}))));
    let answer = streamable.answer();
    assert_eq!(
        (answer.status, answer.field("connection"), answer.body.as_str()),
        (
            200,
            Some("close"),
            r#"{"jsonrpc":"2.0","id":2,"error":{"code":-32000,"message":"the gateway is stopping"}}"#
        )
    );
    assert!(streamable.is_closed());

    old.send(text("POST", &endpoint, &[&host(gateway.address)], &call(3, "raw_echo", json!({}))));
    let answer = old.answer();
    assert_eq!((answer.status, answer.field("connection")), (202, Some("close")));
    let refused = legacy.answer("3");
    assert!(refused.contains("the gateway is stopping"), "{refused}");

    health.send(text("GET", "/health", &[&host(gateway.address)], ""));
    let answer = health.answer();
    assert_eq!((answer.status, answer.field("connection")), (503, Some("close")));

    // Messages that a running call may need still pass.
    let ended = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":9}}"#;
    cancel.send(text("POST", "/mcp", &lines, ended));
    let answer = cancel.answer();
    assert_eq!((answer.status, answer.field("connection")), (202, Some("close")));

    assert!(gateway.program.is_running());
    let begun = Instant::now();
    raw.answer(&request, r#"{"content":[{"type":"text","text":"late"}]}"#);
    let answer = running.answer();
    assert_eq!((answer.status, answer.field("connection")), (200, Some("close")));
    assert!(answer.body.contains("late"), "{}", answer.body);
    assert_eq!(raw.closed(), (1001, "the gateway is stopping".into()));
    drop(raw);
    let end = gateway.program.ended();
    assert_eq!((end.code, end.complaint().len()), (Some(0), 0), "{:?}", end.stderr);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

/// No edge can resume at a gateway that stops, so calls do not wait for one.
#[test]
fn stop_does_not_wait_for_lost_links() {
    let mut gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let session = Session::open(gateway.address, "/mcp");
    let mut held = posted(&session, 1, "s_hold", json!({"key": "k"}));
    edge.wait_for("\"hold\"");
    edge.program.signal(Signal::KILL);
    gateway.program.wait_for("is reconnecting");
    let begun = Instant::now();
    gateway.program.signal(Signal::TERM);
    let answer = held.answer();
    assert!(answer.body.contains("disconnected: the gateway is stopping"), "{}", answer.body);
    assert_eq!(gateway.program.ended().code, Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

fn posted(session: &Session, id: i64, tool: &str, arguments: serde_json::Value) -> Wire {
    session.send("POST", &[BOTH], &call(id, tool, arguments))
}
