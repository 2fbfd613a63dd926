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
    session::{BOTH, Session, request},
    wire::{Wire, get, text},
    world::Program,
};

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
