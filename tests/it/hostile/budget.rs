//! The memory budget: who is charged, what is evicted first, and how the gateway responds when it
//! is used up.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, prlimit};
use serde_json::json;

use super::{
    counter, memory,
    raw::{Raw, TEXT, frame, head, registration},
    status,
};
use crate::{
    harness::{Edge, Gateway, Program, eventually},
    in_process,
    session::{BOTH, Session, call, request},
    wire::{Client, UPGRADE, Wire, ask, host, text},
};

const MIB: usize = 1 << 20;

/// Bytes that are charged.
#[track_caller]
fn bytes(address: SocketAddr) -> u64 {
    status(address)["tables"]["bytes"].as_u64().unwrap()
}

/// A POST of this many bytes without the last one.
#[track_caller]
fn unfinished(address: SocketAddr, lines: &[&str], bytes: usize) -> Wire {
    let mut wire = Wire::connect(address);
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    let own = host(address);
    wire.send(format!("POST /mcp HTTP/1.1\r\n{own}\r\n{BOTH}\r\n{lines}Content-Length: {bytes}\r\n\r\n"));
    wire.send(vec![b' '; bytes - 1]);
    wire
}

/// Twenty sessions are absent with full streams; a client that reads gets all of its large
/// responses.
#[test]
fn abandoned_sessions_do_not_cost_a_reader_its_stream() {
    let gateway = in_process::Gateway::start(&[], |limits| limits.memory.bytes = 16 * MIB);
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

/// Responses that wait for absent clients are evicted, oldest first; a client that resumes a later
/// one finds it.
#[test]
fn parked_answers_make_room_for_later_ones() {
    let gateway = in_process::Gateway::start(&[], |limits| {
        limits.memory.bytes = 16 * MIB;
        limits.session.stream_after = Duration::from_millis(20);
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

/// A body that does not fit is refused while it is received; small calls still pass.
#[test]
fn bodies_beyond_the_budget_get_413() {
    let gateway = in_process::Gateway::start(&[], |limits| limits.memory.bytes = 16 * MIB);
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

/// With several principals one gets half, and an error beyond that; the other keeps its share.
#[test]
fn a_principal_has_half_of_the_budget() {
    let tokens = ["--auth-token", "first", "--auth-token", "second"];
    let gateway = in_process::Gateway::start(&tokens, |limits| limits.memory.bytes = 16 * MIB);
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
    // The lists of the server are the other principal's, and take a few KiB.
    let sizes = [4 * MIB, 4 * MIB - 12 * 1024];
    let _held = sizes.map(|bytes| unfinished(gateway.address, &[own], bytes));
    eventually("they hold half", || used() >= (8 * MIB - 12 * 1024) as u64);
    let refused = first.post(&call(7, "s_echo", json!({"text": "x"})));
    assert_eq!((refused.status, refused.field("retry-after")), (503, Some("1")), "{refused:?}");
    assert!(refused.body.contains("\"id\":7") && refused.body.contains("--max-memory"), "{refused:?}");
    assert_eq!(second.call_text("s_big", json!({"bytes": 2_000_000})).len(), 2_000_000);
}

/// Links that announce large frames are charged for them; one for which there is no memory waits,
/// and is closed in the end.
#[test]
fn announced_frames_beyond_the_budget_get_1013() {
    let gateway = in_process::Gateway::start(&[], |limits| {
        limits.memory.bytes = 16 * MIB;
        limits.link.memory_wait = Duration::from_millis(300);
    });
    let mut links: Vec<Raw> =
        (0..4).map(|number| Raw::registered(gateway.address, &format!("s{number}"))).collect();
    for (number, link) in links[..3].iter_mut().enumerate() {
        link.send(&head(TEXT, 4 * MIB as u64));
        let least = (number + 1) * 4 * MIB;
        eventually("it is charged", || bytes(gateway.address) >= least as u64);
    }
    let mut last = links.pop().unwrap();
    last.send(&head(TEXT, 4 * MIB as u64));
    let (code, reason) = last.closed();
    assert_eq!((code, reason.contains("--max-memory")), (1013, true), "{reason}");
    eventually("it is counted", || counter(gateway.address, "memory_refusals") == 1);
    let session = Session::open(gateway.address, "/mcp");
    assert!(session.post(&call(1, "list_servers", json!({}))).body.contains("result"), "small calls pass");
    drop(links);
    eventually("all is given back", || bytes(gateway.address) < MIB as u64);
}

/// One principal's announced frames leave the other's half of the budget alone.
#[test]
fn announced_frames_of_one_principal_leave_the_other_its_share() {
    let tokens = ["--auth-token", "first", "--auth-token", "second"];
    let gateway = in_process::Gateway::start(&tokens, |limits| {
        limits.memory.bytes = 32 * MIB;
        limits.link.memory_wait = Duration::from_millis(300);
    });
    let url = format!("ws://{}/mcp/register", gateway.address);
    let edge = Edge::start(&url, "s", &[], &["--header", "Authorization: Bearer second"]);
    edge.program.wait_for("registered: ");
    let lines = ["Authorization: Bearer first"];
    let mut links: Vec<Raw> = (0..6)
        .map(|number| {
            let mut link = Raw::upgraded_by(gateway.address, &lines, b"");
            link.send(&frame(TEXT, registration(&format!("a{number}")).as_bytes()));
            link.text_with("\"received\"");
            link.send(&head(TEXT, 4 * MIB as u64));
            link
        })
        .collect();
    let (code, reason) = links[5].closed();
    assert_eq!((code, reason.contains("--max-memory")), (1013, true), "{reason}");
    let second = Session::open_as(gateway.address, "/mcp", "2025-11-25", &["Authorization: Bearer second"]);
    assert_eq!(second.call_text("s_big", json!({"bytes": 3_000_000})).len(), 3_000_000);
}

/// A frame waits until there is memory for it, and none of it is lost.
#[test]
fn frames_that_wait_for_memory_pass_later() {
    let gateway = in_process::Gateway::start(&[], |limits| limits.memory.bytes = 16 * MIB);
    let mut others: Vec<Raw> =
        (0..3).map(|number| Raw::registered(gateway.address, &format!("s{number}"))).collect();
    let mut link = Raw::registered(gateway.address, "s");
    for other in &mut others {
        other.send(&head(TEXT, 4 * MIB as u64));
    }
    eventually("they hold 12 MiB", || bytes(gateway.address) >= 12 * MIB as u64);
    let session = Session::open(gateway.address, "/mcp");
    let waiting = session.send("POST", &[BOTH], &call(1, "s_echo", json!({})));
    let request = link.text_with("tools/call");
    let padding = "x".repeat(5 * MIB / 2);
    thread::scope(|scope| {
        let answering = scope.spawn(|| {
            link.answer(&request, &format!(r#"{{"content":[{{"type":"text","text":"{padding}"}}]}}"#));
            // Sent after the large frame, so it arrives only if that was accepted.
            link.text(r#"{"jsonrpc":"2.0","id":"behind","method":"ping"}"#);
            link.text_with("\"behind\"");
        });
        others.pop();
        answering.join().unwrap();
    });
    let mut waiting = waiting;
    assert!(waiting.answer().body.len() > 5 * MIB / 2);
}

/// The buffers that large frames leave in a link are charged, and freed when no more arrive.
#[test]
fn buffers_of_links_are_given_back() {
    let gateway = in_process::Gateway::start(&[], |limits| limits.memory.bytes = 64 * MIB);
    let mut links: Vec<Raw> =
        (0..4).map(|number| Raw::registered(gateway.address, &format!("s{number}"))).collect();
    let mut text = head(TEXT, 4 * MIB as u64);
    text.extend(vec![b' '; 4 * MIB - 2]);
    text.extend(b"{}");
    for round in 1..=2 {
        for link in &mut links {
            link.send(&text);
            link.text(&format!(r#"{{"jsonrpc":"2.0","id":"round{round}","method":"ping"}}"#));
            link.text_with("\"round");
        }
        eventually("they are given back", || bytes(gateway.address) < MIB as u64);
    }
    assert_eq!(counter(gateway.address, "memory_refusals"), 0);
}

/// Subscriptions are charged to their principal, and credited when they end.
#[test]
fn subscriptions_are_charged() {
    let gateway = in_process::Gateway::start(&[], |limits| limits.memory.bytes = 16 * MIB);
    let mut link = Raw::registered(gateway.address, "s");
    let session = Session::open(gateway.address, "/servers/s/mcp");
    let before = bytes(gateway.address);
    let uri = |number: usize| format!("a://{number:04}{}", "x".repeat(1000));
    for number in 0..100 {
        let waiting =
            session.send("POST", &[BOTH], &request(1, "resources/subscribe", json!({"uri": uri(number)})));
        let asked = link.text_with("resources/subscribe");
        link.answer(&asked, "{}");
        let mut waiting = waiting;
        assert_eq!(waiting.answer().status, 200);
    }
    let paid = bytes(gateway.address) - before;
    assert!((300_000..400_000).contains(&paid), "{paid} bytes");
    assert_eq!(session.send("DELETE", &[], "").answer().status, 204);
    assert!(bytes(gateway.address) <= before, "they are credited when the session ends");
}

/// The `initialize` params of sessions, and long URIs that they subscribe to: refused if there is
/// no memory, and credited when the session ends.
#[test]
fn facts_and_subscriptions_beyond_the_budget_are_refused() {
    let gateway = in_process::Gateway::start(&[], |limits| limits.memory.bytes = 16 * MIB);
    let _link = Raw::registered(gateway.address, "s");
    let session = Session::open(gateway.address, "/servers/s/mcp");
    let held: Vec<Wire> = (0..3).map(|_| unfinished(gateway.address, &[], 4 * MIB)).collect();
    eventually("they hold 12 MiB", || bytes(gateway.address) >= 11 * MIB as u64);
    let mut sessions = Vec::new();
    // What is left when the second is refused is less than large amounts may take.
    for length in [60 * 1024, 17 * 1024] {
        let name = "x".repeat(length);
        let client = json!({"name": name, "version": "1"});
        let initialize_params =
            json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client});
        let refused = loop {
            let lines = [&host(gateway.address), BOTH];
            let body = request(7, "initialize", initialize_params.clone());
            let answer = ask(&mut Wire::connect(gateway.address), "POST", "/mcp", &lines, &body);
            match answer.field("mcp-session-id") {
                Some(id) => sessions.push(id.to_owned()),
                None => break answer,
            }
            assert!(sessions.len() < 200, "none is refused");
        };
        assert!(refused.body.contains("--max-memory") && refused.body.contains("\"id\":7"), "{refused:?}");
    }
    assert!(sessions.len() > 10, "{} sessions", sessions.len());
    let uri = format!("a://{}", "\u{1f980}".repeat(2000));
    let refused = session.post(&request(8, "resources/subscribe", json!({"uri": uri})));
    assert!(refused.body.contains("--max-memory") && refused.body.contains("\"id\":8"), "{refused:?}");
    assert!(session.post(&request(9, "ping", json!({}))).body.contains("result"), "small calls pass");
    drop(held);
    for id in sessions {
        let lines = [host(gateway.address), format!("Mcp-Session-Id: {id}")];
        let lines = lines.each_ref().map(String::as_str);
        assert_eq!(ask(&mut Wire::connect(gateway.address), "DELETE", "/mcp", &lines, "").status, 204);
    }
    eventually("all is given back", || bytes(gateway.address) < 64 * 1024);
}

/// A server's `initialize` result is kept, and charged like its lists.
#[test]
fn answers_to_initialize_are_charged() {
    let gateway = in_process::Gateway::start(&[], |limits| limits.memory.bytes = 16 * MIB);
    let text = "x".repeat(2 * MIB);
    let mut links = Vec::new();
    let (code, reason) = loop {
        let mut link = Raw::upgraded(gateway.address);
        link.text(&registration(&format!("s{}", links.len())));
        link.text_with("\"status\"");
        let initialize_params = link.text_with("\"initialize\"");
        link.answer(
            &initialize_params,
            &format!(
                r#"{{"protocolVersion":"2025-06-18","capabilities":{{}},"serverInfo":{{"name":"x","version":"1"}},"instructions":"{text}"}}"#
            ),
        );
        let listed = loop {
            let Some((first, payload)) = link.frame() else { panic!("no reason") };
            let text = String::from_utf8_lossy(&payload).into_owned();
            if first == TEXT && text.contains("\"tools/list\"") {
                break None;
            }
            if first == 0x88 {
                break Some((u16::from_be_bytes([payload[0], payload[1]]), text));
            }
        };
        if let Some(closed) = listed {
            break closed;
        }
        links.push(link);
        assert!(links.len() < 8, "none is refused");
    };
    assert_eq!((code, reason.contains("--max-memory")), (1013, true), "{reason}");
    assert!(!links.is_empty());
    drop(links);
    eventually("all is given back", || bytes(gateway.address) < 64 * 1024);
}

/// Returns the bytes in use, as the principal with this header line sees them.
#[track_caller]
fn status_of(address: SocketAddr, line: &str) -> u64 {
    let answer = crate::wire::ask(&mut Wire::connect(address), "GET", "/status", &[&host(address), line], "");
    crate::session::value(&answer.body)["tables"]["bytes"].as_u64().unwrap()
}

/// Lists are charged as long as their servers are registered; one that does not fit is retried
/// later.
#[test]
fn lists_beyond_the_budget_delay_the_server() {
    let gateway =
        in_process::Gateway::start(&["--resume-window", "0"], |limits| limits.memory.bytes = 16 * MIB);
    let url = format!("ws://{}/mcp/register", gateway.address);
    // Each has 500 resources with URIs of 1 200 bytes, about 2 MiB in total.
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

/// Without the flag, the budget fits the memory that the system allows the process.
#[test]
fn default_budget_follows_the_limits_of_the_system() {
    let gateway = Gateway::start_within(&[], 96 * 1024);
    gateway.program.wait_for("memory budget: 48 MiB");
    let _held: Vec<Wire> = (0..30)
        .map(|_| {
            let mut wire = Wire::connect(gateway.address);
            let own = host(gateway.address);
            let head =
                format!("POST /mcp HTTP/1.1\r\n{own}\r\n{BOTH}\r\nContent-Length: {}\r\n\r\n", 4 * MIB);
            let _ = wire.try_send(head).and_then(|()| wire.try_send(vec![b' '; 4 * MIB - 1]));
            wire
        })
        .collect();
    assert!(counter(gateway.address, "refused") > 10);
}

/// Parked messages, unread responses, bodies, lists, announced frames, subscriptions and
/// `initialize` params, all at once, with little memory and a limit on the address space: the
/// gateway stays within its budget, and all calls of a well-behaved client are answered.
/// `MCPPORT_MEMORY_SECONDS` sets the duration.
#[test]
fn stays_within_its_budget_under_attack() {
    let seconds = std::env::var("MCPPORT_MEMORY_SECONDS").map_or(4, |seconds| seconds.parse().unwrap());
    // Otherwise glibc reserves 64 MiB of addresses for each thread; the static build does not.
    let gateway = Gateway::start_in(&["--max-memory", "32M"], &[("MALLOC_ARENA_MAX", "1")]);
    let pid = gateway.program.pid();
    let max = Some(96 * MIB as u64);
    let process = rustix::process::Pid::from_raw(pid.try_into().unwrap());
    prlimit(process, Resource::As, Rlimit { current: max, maximum: max }).unwrap();
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
        let refusals = counter(gateway.address, "memory_refusals");
        println!("{calls} calls answered, {refusals} refusals for want of memory");
        println!(
            "at most {} KiB resident, {} KiB of addresses",
            memory(pid, "VmHWM:"),
            memory(pid, "VmPeak:")
        );
        assert!(calls > 0);
    });
    // The budget, and the memory besides it: see `limits::MAX_MEMORY`.
    assert!(memory(pid, "VmHWM:") < 80 * 1024, "{} KiB", memory(pid, "VmHWM:"));
}

/// A link that registers, announces a large frame and sends a quarter of it.
fn announcing(address: SocketAddr, name: &str) -> Wire {
    let mut wire = Wire::connect(address);
    let upgrade = text("GET", "/mcp/register", &[&[host(address).as_str()], UPGRADE].concat(), "");
    let registration = frame(TEXT, registration(name).as_bytes());
    let announced = [head(TEXT, 4 * MIB as u64), vec![b' '; MIB]].concat();
    let _ = wire.try_send([upgrade.as_bytes(), &registration, &announced].concat());
    wire
}

/// Holds as much as it can until the end, and ignores refusals.
fn attack(address: SocketAddr, end: Instant) {
    let own = host(address);
    let big = call(1, "bad0_big", json!({"bytes": 3_900_000}));
    let padding = "x".repeat(16 * 1024);
    let gone: Vec<Session> = (0..12).map(|_| Session::open(address, "/servers/bad0/mcp")).collect();
    for session in &gone {
        drop(session.try_listen(None));
    }
    let mut round = 0;
    while Instant::now() < end {
        round += 1;
        let mut held = Vec::new();
        for number in 0..8 {
            held.push(announcing(address, &format!("announces{round}-{number}")));
        }
        for (number, session) in gone.iter().enumerate() {
            let uri = format!("a://{round}/{number}/{}", "x".repeat(2000));
            held.push(session.send("POST", &[BOTH], &request(3, "resources/subscribe", json!({"uri": uri}))));
            let client = json!({"name": "x".repeat(60_000), "version": "1"});
            let initialize_params =
                json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client});
            let body = request(4, "initialize", initialize_params);
            let mut wire = Wire::connect(address);
            let _ = wire.try_send(text("POST", "/mcp", &[&own, BOTH], &body));
            held.push(wire);
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
