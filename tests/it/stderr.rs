//! Logging while nobody reads stderr.

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
    harness::{Gateway, Program, eventually},
    session::{BOTH, Session, request, value},
    wire::{Wire, get, text},
};

/// The words with which an edge logs a restart of its server.
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
fn an_unread_log_blocks_nothing() {
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
fn an_unread_log_does_not_delay_shutdown() {
    let (mut program, stderr, address) = unread();
    fill(address);
    let begun = Instant::now();
    program.signal(Signal::TERM);
    assert_eq!(program.ended().code, Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    drop(stderr);
}

/// A flood of one kind does not suppress the one line of another kind, though both are caused from
/// one address.
#[test]
fn a_refused_registration_is_logged_among_dropped_links() {
    let gateway = Gateway::start(&[]);
    for _ in 0..20 {
        drop(End::connect(gateway.address, None));
    }
    gateway.program.wait_for("ended without a registration");
    let mut refused = End::connect(gateway.address, None);
    refused.say(r#"{"jsonrpc":"2.0","id":"x","method":"register","params":{"name":"not a name"}}"#);
    refused.close_reason();
    gateway.program.wait_for("rejected a registration from ");
}

/// The log lines that one link can cause are limited, and the suppressed ones are counted.
#[test]
fn one_link_does_not_flood_the_log() {
    let gateway = Gateway::start(&[]);
    let mut server = End::register(gateway.address, r#"{"mcpport":{}}"#);
    gateway.program.wait_for("server 's' offers");
    for _ in 0..200 {
        server.say(RESTARTED);
    }
    // Answered in order, so all of them have been read by then.
    server.say(r#"{"jsonrpc":"2.0","id":"read","method":"ping"}"#);
    server.find(|frame| frame.contains("\"read\""));
    eventually("the next line tells what was left out", || {
        server.say(RESTARTED);
        gateway.program.log().contains(" more were not logged)")
    });
    let lines = gateway.program.log().matches("was restarted at its edge").count();
    assert!((20..=100).contains(&lines), "{lines}");
}

/// Repeats an action of one link until lines of each kind were suppressed and counted; the first
/// ones are all there.
#[track_caller]
fn flood(gateway: &Gateway, kinds: &[&str], mut act: impl FnMut()) {
    let begun = Instant::now();
    let counted = |kind: &str| {
        let log = gateway.program.log();
        log.lines().any(|line| line.contains(kind) && line.contains(" more were not logged)"))
    };
    eventually("what was left out is counted", || {
        act();
        kinds.iter().all(|kind| counted(kind))
    });
    let log = gateway.program.log();
    // This many windows have begun by now.
    let windows = usize::try_from(begun.elapsed().as_secs()).unwrap() + 2;
    for kind in kinds {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(kind)).collect();
        let first = lines.iter().position(|line| line.contains("not logged)")).unwrap();
        assert!(first >= 4, "a server that starts has up to four: {lines:#?}");
        assert!(lines.len() <= 20 * windows, "{kind}: {}", lines.len());
    }
}

#[test]
fn links_that_come_and_go_do_not_flood_the_log() {
    let gateway = Gateway::start(&[]);
    let gone = || crate::hostile::status(gateway.address)["tables"]["servers"] == 0;
    flood(&gateway, &["server 's' (id x) registered from", "server 's' removed: "], || {
        let mut end = End::connect(gateway.address, None);
        end.introduce("{}");
        drop(end);
        eventually("it is gone", gone);
    });
    // Another link is logged all the same.
    let _edge = gateway.edge("other");
    gateway.program.wait_for("server 'other' (id ");
}

#[test]
fn links_that_resume_do_not_flood_the_log() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.client();
    let mut end = End::connect(gateway.address, None);
    let answer = value(&end.introduce(r#"{"mcpport":{"resume":{}}}"#));
    let token = answer["capabilities"]["mcpport"]["resume"]["token"].as_str().unwrap();
    let claim = format!(r#"{{"mcpport":{{"resume":{{"token":"{token}","received":0}}}}}}"#);
    let mut end = Some(end);
    flood(&gateway, &["server 's' is reconnecting: ", "server 's' resumed from "], || {
        drop(end.take());
        eventually("it is away", || client.call_text("list_servers", "{}").contains("reconnecting"));
        let mut next = End::connect(gateway.address, None);
        next.introduce(&claim);
        end = Some(next);
    });
}

#[test]
fn lists_that_change_do_not_flood_the_log() {
    let gateway = Gateway::start(&[]);
    let mut server = End::register(gateway.address, r#"{"mcpport":{}}"#);
    let mut number = 0;
    flood(&gateway, &["server 's' offers 1 tool"], || {
        server.say(RESTARTED);
        let id = server.request("", "initialize");
        let capabilities = r#"{"tools":{}}"#;
        server.say(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"protocolVersion":"2025-06-18","capabilities":{capabilities},"serverInfo":{{"name":"x","version":"1"}}}}}}"#));
        let id = server.request("", "tools/list");
        number += 1;
        server.say(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"tools":[{{"name":"t{number}","inputSchema":{{"type":"object"}}}}]}}}}"#));
    });
}

#[test]
fn calls_that_time_out_do_not_flood_the_log() {
    let gateway = Gateway::start(&["--timeout-run-tool", "1"]);
    let _server = End::register(gateway.address, "{}");
    let mut client = gateway.client();
    client.tools_until(|tools| tools.len() == 2);
    flood(&gateway, &["server 's' did not respond to tools/call within 1 s"], || {
        let calls: Vec<String> = (0..50).map(|_| client.begin_call("s_t", "{}")).collect();
        for call in calls {
            assert!(client.answer(&call).contains("did not respond within 1 s"));
        }
    });
}

/// A flood of one kind of message does not suppress another kind of the same server.
#[test]
fn odd_messages_of_one_kind_do_not_hide_those_of_another() {
    let gateway = Gateway::start(&[]);
    let mut server = End::register(gateway.address, "{}");
    for id in 90..140 {
        server.say(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#));
    }
    server.say(r#"{"jsonrpc":"2.0","id":null,"error":{"code":-1,"message":"x"}}"#);
    server.say(
        r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":99,"progress":1}}"#,
    );
    gateway.program.wait_for("sent a response to an unknown request: id 90");
    gateway.program.wait_for("server 's' sent an error response without an id");
    gateway.program.wait_for("server 's' sent progress for an unknown request");
}
