//! The end of a gateway in the middle of its work.

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
    session::{BOTH, Session, call, value},
    wire::Wire,
    world::Gateway,
};

/// Rule 40: SIGTERM under load. Nobody new is served, calls end, streams end, links hear 1001, the exit is clean.
#[test]
fn the_end_under_load_is_orderly() {
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
        // The kernel may take it in as long as the socket stands; nobody serves it.
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
        failed["error"]["message"].as_str().unwrap_or_default().contains("the gateway stops"),
        "{failed}"
    );
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    for stream in &mut streams {
        while let Some(event) = stream.try_next().unwrap() {
            assert!(event.data.is_none_or(|data| data.is_empty() || data.contains("list_changed")));
        }
    }
    legacy.ended();
    assert_eq!(raw.closed(), (1001, "the gateway stops".into()));
    let end = gateway.program.ended();
    assert_eq!((end.code, end.complaint().len()), (Some(0), 0), "{:?}", end.stderr);
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    let last = end.stderr.last().cloned().unwrap_or_default();
    assert!(last.contains("served for") && last.contains("calls 9"), "{last}");
}

/// Rule 40: the second signal is obeyed at once.
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

fn posted(session: &Session, id: i64, tool: &str, arguments: serde_json::Value) -> Wire {
    session.send("POST", &[BOTH], &call(id, tool, arguments))
}
