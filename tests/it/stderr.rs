//! The log where nobody reads it.

use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::ChildStderr,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::json;

use crate::{
    frames::End,
    session::{BOTH, Session, request},
    wire::{Wire, get, text},
    world::{Gateway, Program, eventually},
};

/// By which an edge says that it has started its server anew.
const RESTARTED: &str = r#"{"status":"restarted"}"#;

/// A gateway whose log is read up to its address, and no further.
fn unread() -> (Program, BufReader<ChildStderr>, SocketAddr) {
    let (program, mut stderr) = Program::start_unread(&["gateway", "--port", "0", "--log-level", "debug"]);
    let mut line = String::new();
    while !line.contains("listening on ") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "no address");
    }
    let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next()).unwrap();
    let address = address.parse().unwrap();
    (program, stderr, address)
}

/// Requests that are logged with 250 bytes each, more than a pipe and the buffer hold.
fn fill(address: SocketAddr) {
    let session = Session::open(address, "/mcp");
    let lines = session.lines();
    let lines: Vec<&str> = lines.iter().map(String::as_str).chain([BOTH]).collect();
    let body = request(1, &"x".repeat(200), json!({}));
    for _ in 0..4 {
        let mut wire = Wire::connect(address);
        for _ in 0..600 {
            wire.send(text("POST", "/mcp", &lines, &body));
            assert_eq!(wire.answer().status, 200);
        }
    }
}

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let (mut program, mut stderr, address) = unread();
    fill(address);
    assert_eq!(get(address, "/health").status, 200);
    program.signal(Signal::TERM);
    let mut log = String::new();
    stderr.read_to_string(&mut log).unwrap();
    assert_eq!(program.ended().code, Some(0));
    let (gap, _) = log.lines().zip(1..).find(|(line, _)| line.contains("log lines dropped")).expect("a gap");
    assert!(gap.contains("[WARN]"), "{gap}");
    assert!(log.lines().all(|line| line.starts_with("20")), "no line is cut");
}

#[test]
fn a_log_that_nobody_reads_does_not_delay_the_end() {
    let (mut program, stderr, address) = unread();
    fill(address);
    let begun = Instant::now();
    program.signal(Signal::TERM);
    assert_eq!(program.ended().code, Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    drop(stderr);
}

/// A flood of one kind does not hide the one line of another kind, though both come from one address.
#[test]
fn a_refused_registration_is_logged_among_dropped_links() {
    let gateway = Gateway::start(&[]);
    for _ in 0..20 {
        drop(End::connect(gateway.address, None));
    }
    gateway.program.wait_for("ended without a registration");
    let mut refused = End::connect(gateway.address, None);
    refused.say(r#"{"jsonrpc":"2.0","id":"x","method":"register","params":{"name":"not a name"}}"#);
    refused.farewell();
    gateway.program.wait_for("is refused: ");
}

/// What one link can cause at will has a share of the log, and what is left out is counted.
#[test]
fn one_link_does_not_flood_the_log() {
    let gateway = Gateway::start(&[]);
    let mut server = End::register(gateway.address, r#"{"mcpport":{}}"#);
    gateway.program.wait_for("server 's' offers");
    for _ in 0..200 {
        server.say(RESTARTED);
    }
    // Answered in order, so that all of them are read by then.
    server.say(r#"{"jsonrpc":"2.0","id":"read","method":"ping"}"#);
    server.find(|frame| frame.contains("\"read\""));
    eventually("the next line tells what was left out", || {
        server.say(RESTARTED);
        gateway.program.log().contains(" more were not logged)")
    });
    let lines = gateway.program.log().matches("was started anew").count();
    assert!((20..=100).contains(&lines), "{lines}");
}
