//! The budget of bytes: who pays, who is dropped first, and what is answered at its end.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, prlimit};
use serde_json::json;

use super::{counter, memory, status};
use crate::{
    inside,
    session::{BOTH, Session, call},
    wire::{Client, Wire, host},
    world::{Edge, Gateway, Program, eventually},
};

const MIB: usize = 1 << 20;

/// Bytes that are charged.
#[track_caller]
fn bytes(address: SocketAddr) -> u64 {
    status(address)["tables"]["bytes"].as_u64().unwrap()
}

/// A POST of so many bytes of which the last one does not come.
#[track_caller]
fn unfinished(address: SocketAddr, lines: &[&str], bytes: usize) -> Wire {
    let mut wire = Wire::connect(address);
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    let own = host(address);
    wire.send(format!("POST /mcp HTTP/1.1\r\n{own}\r\n{BOTH}\r\n{lines}Content-Length: {bytes}\r\n\r\n"));
    wire.send(vec![b' '; bytes - 1]);
    wire
}

/// Twenty sessions went away without a word, and their streams are full; one that reads gets all of its large answers.
#[test]
fn abandoned_sessions_do_not_cost_a_reader_its_stream() {
    let gateway = inside::Gateway::start(&[], |limits| limits.memory.bytes = 16 * MIB);
    let _edge = gateway.edge("s", &[]);
    let gone: Vec<Session> = (0..24)
        .map(|_| {
            let session = Session::open(gateway.address, "/servers/s/mcp");
            session.listen(None).next();
            session
        })
        .collect();
    eventually("their connections have ended", || status(gateway.address)["tables"]["streams"] == 0);
    let padding = "x".repeat(16 * 1024);
    for _ in 0..50 {
        let notice = json!({"method": "notifications/odd", "params": {"padding": padding}});
        gone[0].call_text("notify", notice);
    }
    let mut reader = Client::ready(gateway.address, &[]);
    for round in 0..4 {
        let open: Vec<String> = (0..6).map(|_| reader.begin_call("s_big", r#"{"bytes":700000}"#)).collect();
        for id in open {
            assert!(reader.answer(&id).len() > 700_000, "round {round}");
        }
    }
    assert_eq!(counter(gateway.address, "slow_clients"), 0);
}

/// Answers that wait for clients which do not come back go, the oldest first; who comes back to a later one finds it.
#[test]
fn parked_answers_make_room_for_later_ones() {
    let gateway = inside::Gateway::start(&[], |limits| {
        limits.memory.bytes = 16 * MIB;
        limits.session.silence = Duration::from_millis(20);
    });
    let _edge = gateway.edge("s", &[]);
    let helper = Session::open(gateway.address, "/mcp");
    let parked: Vec<(Session, String)> = (0..24)
        .map(|number| {
            let session = Session::open(gateway.address, "/mcp");
            let key = format!("{number}{}", "k".repeat(MIB));
            let mut stream = session.stream(&call(1, "s_hold", json!({"key": key})));
            let id = stream.next().id.unwrap();
            drop(stream);
            let gone = || status(gateway.address)["tables"]["streams"] == 0;
            eventually("its connection has ended", gone);
            assert!(helper.post(&call(2, "s_release", json!({"key": key}))).body.contains("released"));
            (session, id)
        })
        .collect();
    assert!(helper.post(&call(3, "s_big", json!({"bytes": 3_000_000}))).body.len() > 3_000_000);
    let [(first, first_id), .., (last, last_id)] = &parked[..] else { unreachable!() };
    let lost = first.try_listen(Some(first_id)).head().unwrap();
    assert_eq!(lost.status, 400, "{lost:?}");
    let mut found = last.listen(Some(last_id));
    assert_eq!(found.next().data.as_deref(), Some(""));
    assert!(found.message()["result"]["content"][0]["text"].as_str().unwrap().starts_with("23k"));
    assert_eq!(counter(gateway.address, "memory_refusals"), 0);
}

/// A body for which there is no room is refused while it comes in; small calls still pass.
#[test]
fn bodies_beyond_the_budget_get_413() {
    let gateway = inside::Gateway::start(&[], |limits| limits.memory.bytes = 16 * MIB);
    let _edge = gateway.edge("s", &[]);
    let session = Session::open(gateway.address, "/mcp");
    eventually("the lists are there, and nothing else", || bytes(gateway.address) < MIB as u64);
    let held: Vec<Wire> = (0..3).map(|_| unfinished(gateway.address, &[], 4 * MIB)).collect();
    eventually("they hold 12 MiB", || bytes(gateway.address) >= 11 * MIB as u64);
    let mut wire = Wire::connect(gateway.address);
    let own = host(gateway.address);
    wire.send(format!("POST /mcp HTTP/1.1\r\n{own}\r\n{BOTH}\r\nContent-Length: {}\r\n\r\n", 4 * MIB));
    // The rest would find a closed connection.
    let _ = wire.try_send(vec![b' '; 3 * MIB]);
    let refused = wire.answer();
    assert_eq!((refused.status, refused.field("connection")), (413, Some("close")), "{refused:?}");
    assert!(refused.body.contains("--max-memory"), "{refused:?}");
    assert_eq!(session.call_text("s_echo", json!({"text": "small"})), "small");
    drop(held);
    eventually("it is given back", || bytes(gateway.address) < MIB as u64);
    assert_eq!(session.call_text("s_big", json!({"bytes": 4_000_000})).len(), 4_000_000);
}

/// With several principals one gets half; beyond that it is told so, and the other has its share.
#[test]
fn a_principal_has_half_of_the_budget() {
    let tokens = ["--auth-token", "first", "--auth-token", "second"];
    let gateway = inside::Gateway::start(&tokens, |limits| limits.memory.bytes = 16 * MIB);
    let url = format!("ws://{}/mcp/register", gateway.address);
    let _edge = Edge::start(&url, "s", &[], &["--header", "Authorization: Bearer second"]);
    let open = |token: &str| {
        let line = format!("Authorization: Bearer {token}");
        Session::open_as(gateway.address, "/mcp", "2025-11-25", &[&line])
    };
    let (first, second) = (open("first"), open("second"));
    eventually("the server is there", || second.post(&call(1, "s_echo", json!({}))).body.contains("result"));
    let own = "Authorization: Bearer first";
    let used = || status_of(gateway.address, "Authorization: Bearer second");
    // The lists of the server are the other's, and a few KiB.
    let sizes = [4 * MIB, 4 * MIB - 12 * 1024];
    let _held = sizes.map(|bytes| unfinished(gateway.address, &[own], bytes));
    eventually("they hold half", || used() >= (8 * MIB - 12 * 1024) as u64);
    let refused = first.post(&call(7, "s_echo", json!({"text": "x"})));
    assert_eq!((refused.status, refused.field("retry-after")), (503, Some("1")), "{refused:?}");
    assert!(refused.body.contains("\"id\":7") && refused.body.contains("--max-memory"), "{refused:?}");
    assert_eq!(second.call_text("s_big", json!({"bytes": 2_000_000})).len(), 2_000_000);
}

/// Bytes in use, as a principal with this line sees them.
#[track_caller]
fn status_of(address: SocketAddr, line: &str) -> u64 {
    let answer = crate::wire::ask(&mut Wire::connect(address), "GET", "/status", &[&host(address), line], "");
    crate::session::value(&answer.body)["tables"]["bytes"].as_u64().unwrap()
}

/// Lists of servers are charged as long as the servers are there; one for which there is no room is put off.
#[test]
fn lists_beyond_the_budget_put_the_server_off() {
    let gateway = inside::Gateway::start(&["--resume-window", "0"], |limits| limits.memory.bytes = 16 * MIB);
    let url = format!("ws://{}/mcp/register", gateway.address);
    // Each has 500 resources with URIs of 1 200 bytes, about 2 MiB in all.
    let server = ["--rich", "--many", "500"];
    let mut edges: Vec<Edge> = Vec::new();
    for number in 0..12 {
        let before = counter(gateway.address, "memory_refusals");
        let edge = Edge::start(&url, &format!("s{number}"), &server, &[]);
        let listed = |program: &Program| program.log().contains("registered: ");
        let put_off = || counter(gateway.address, "memory_refusals") > before;
        eventually("it is listed or put off", || listed(&edge.program) || put_off());
        edges.push(edge);
        if put_off() {
            break;
        }
    }
    assert!((4..12).contains(&edges.len()), "{} servers", edges.len());
    let last = edges.pop().unwrap();
    assert!(bytes(gateway.address) <= 16 * MIB as u64);
    edges.clear();
    last.program.wait_for("registered: ");
    drop(last);
    eventually("all is given back", || bytes(gateway.address) == 0);
}

/// Parked messages, unread answers, bodies and lists, all at once, with little memory and a limit of the system's on addresses:
/// the gateway stays alive within its budget, and a good client's calls are all answered. `MCPPORT_MEMORY_SECONDS`: how long.
#[test]
fn stays_within_its_budget_under_attack() {
    let seconds = std::env::var("MCPPORT_MEMORY_SECONDS").map_or(4, |seconds| seconds.parse().unwrap());
    // Else glibc reserves 64 MiB of addresses for each thread; the static build does not.
    let gateway = Gateway::start_in(&["--max-memory", "32M"], &[("MALLOC_ARENA_MAX", "1")]);
    let pid = gateway.program.pid();
    let most = Some(96 * MIB as u64);
    let process = rustix::process::Pid::from_raw(pid.try_into().unwrap());
    prlimit(process, Resource::As, Rlimit { current: most, maximum: most }).unwrap();
    let _good = gateway.edge("good");
    let _bad: Vec<Edge> = (0..4)
        .map(|number| Edge::start(&gateway.url(), &format!("bad{number}"), &["--rich", "--many", "500"], &[]))
        .collect();
    gateway.program.wait_for("server 'bad0' offers");
    let end = Instant::now() + Duration::from_secs(seconds);
    let session = Session::open(gateway.address, "/mcp");
    thread::scope(|scope| {
        scope.spawn(|| attack(gateway.address, end));
        let mut calls = 0;
        while Instant::now() < end {
            assert_eq!(session.call_text("good_echo", json!({"text": "good"})), "good");
            calls += 1;
        }
        println!("{calls} calls answered, {} KiB resident at most", memory(pid, "VmHWM:"));
    });
    // The budget, and what stands beside it: see `limits::MAX_MEMORY`.
    assert!(memory(pid, "VmHWM:") < 80 * 1024, "{} KiB", memory(pid, "VmHWM:"));
}

/// Holds what it can get until the end. Whatever is refused is refused.
fn attack(address: SocketAddr, end: Instant) {
    let own = host(address);
    let big = call(1, "bad0_big", json!({"bytes": 3_900_000}));
    let padding = "x".repeat(16 * 1024);
    let gone: Vec<Session> = (0..12).map(|_| Session::open(address, "/servers/bad0/mcp")).collect();
    for session in &gone {
        drop(session.try_listen(None));
    }
    while Instant::now() < end {
        let mut held = Vec::new();
        for session in &gone {
            held.push(session.send("POST", &[BOTH], &big.replace("bad0_big", "big")));
            let mut wire = Wire::connect(address);
            let length = 4 * MIB;
            let head = format!("POST /mcp HTTP/1.1\r\n{own}\r\n{BOTH}\r\nContent-Length: {length}\r\n\r\n");
            let _ = wire.try_send(head).and_then(|()| wire.try_send(vec![b' '; 3 * MIB]));
            held.push(wire);
            let notice = json!({"method": "notifications/odd", "params": {"padding": padding}});
            held.push(session.send("POST", &[BOTH], &call(2, "notify", notice)));
        }
        thread::sleep(Duration::from_millis(200));
    }
}
