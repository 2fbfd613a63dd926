//! Connection limits: endless connections, silent connections, and a lack of descriptors.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use super::{calls, counter, status};
use crate::{
    harness::{Gateway, eventually},
    in_process,
    session::Session,
    wire::{Client, Wire, ask, get, host, tcp},
};

/// A connection over which one request was answered, and which stays open.
#[track_caller]
fn used(gateway: std::net::SocketAddr) -> Wire {
    let mut wire = Wire::connect(gateway);
    assert_eq!(ask(&mut wire, "GET", "/health", &[&host(gateway)], "").status, 200);
    wire
}

/// Rule 14: a connection over the limit gets 503 at once, and the others are not affected.
#[test]
fn connections_have_a_limit() {
    let gateway = in_process::Gateway::start(&[], |limits| limits.http.connections = 5);
    let mut open: Vec<Wire> = (0..5).map(|_| used(gateway.address)).collect();
    for _ in 0..3 {
        let begun = Instant::now();
        let mut wire = Wire::connect(gateway.address);
        wire.send(crate::wire::text("GET", "/health", &[&host(gateway.address)], ""));
        let answer = wire.answer();
        assert_eq!((answer.status, answer.field("retry-after")), (503, Some("1")), "{answer:?}");
        assert_eq!(answer.field("connection"), Some("close"));
        assert!(answer.body.contains("--max-connections"), "{answer:?}");
        assert!(wire.is_closed() && begun.elapsed() < Duration::from_secs(1));
    }
    let own = host(gateway.address);
    for wire in &mut open {
        assert_eq!(ask(wire, "GET", "/health", &[&own], "").status, 200);
    }
    drop(open.pop());
    eventually("the place is free", || get(gateway.address, "/status").status == 200);
    drop(open);
    // Until then, the connection that asks may itself be rejected.
    eventually("all places are free", || {
        let answer = get(gateway.address, "/status");
        answer.status == 200 && crate::session::value(&answer.body)["tables"]["connections"] == 1
    });
    assert!(counter(gateway.address, "turned_away") >= 3);
}

/// A connection over the limit of one address gets 429 (here loopback, with the limit that is meant
/// for other addresses).
#[test]
fn addresses_have_a_limit() {
    let gateway = in_process::Gateway::start(&[], |limits| limits.http.connections_from_loopback = 2);
    let open = [used(gateway.address), used(gateway.address)];
    let answer = get(gateway.address, "/health");
    assert_eq!((answer.status, answer.field("retry-after")), (429, Some("1")), "{answer:?}");
    drop(open);
    eventually("the places are free", || get(gateway.address, "/health").status == 200);
}

/// Unauthenticated connections evict each other, never authenticated ones.
#[test]
fn silent_connections_lock_nobody_out() {
    let gateway = in_process::Gateway::start(&[], |limits| limits.http.connections_unauthenticated = 4);
    let mut known: Vec<Wire> = (0..4).map(|_| used(gateway.address)).collect();
    let mut client = Client::ready(gateway.address, &[]);
    let mut silent: Vec<TcpStream> = (0..40).map(|_| tcp(gateway.address)).collect();
    for stream in &mut silent {
        // Some have begun to send.
        let _ = stream.write_all(b"GET / HTT");
    }
    for wire in &mut known {
        assert_eq!(ask(wire, "GET", "/health", &[&host(gateway.address)], "").status, 200);
    }
    assert!(client.ask("ping", "{}").contains("result"));
    eventually("the oldest are gone", || counter(gateway.address, "pushed_out") >= 36);
    let mut rest = [0; 1];
    assert!(matches!(silent[0].read(&mut rest), Ok(0) | Err(_)), "the first of them is closed");
    // A refused request does not authenticate the connection.
    let tables = status(gateway.address)["tables"].clone();
    assert!(tables["connections"].as_u64() <= Some(4 + 1 + 4 + 1), "{tables}");
}

/// Rule 14: without descriptors the gateway waits; it neither spins nor fills the log, and
/// recovers.
#[test]
fn a_gateway_without_descriptors_waits() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge("s");
    let session = Session::open(gateway.address, "/mcp");
    calls(&session, "s_echo", 1);
    let pid = gateway.program.pid();
    let limit = |max: u64| {
        let id = Pid::from_raw(i32::try_from(pid).unwrap());
        let maximum = getrlimit(Resource::Nofile).maximum;
        prlimit(id, Resource::Nofile, Rlimit { current: Some(max), maximum }).unwrap();
    };
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64;
    limit(open + 5);
    let crowd: Vec<TcpStream> = (0..30).map(|_| tcp(gateway.address)).collect();
    gateway.program.wait_for("cannot accept a connection");
    let (before, begun) = (cpu_time(pid), Instant::now());
    thread::sleep(Duration::from_millis(2500));
    let (spent, passed) = (cpu_time(pid) - before, begun.elapsed());
    assert!(spent < passed / 10, "{spent:?} of {passed:?}");
    let lines = gateway.program.log().matches("cannot accept a connection").count();
    assert!(lines <= passed.as_secs() as usize + 3, "{lines} lines in {passed:?}");
    drop(crowd);
    limit(1024);
    calls(&session, "s_echo", 3);
    println!("without descriptors: {spent:?} of processor time in {passed:?}, {lines} lines");
}

/// Returns the processor time of a process.
fn cpu_time(pid: u32) -> Duration {
    let usage = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<u64> =
        usage.rsplit_once(')').unwrap().1.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    Duration::from_millis((fields[10] + fields[11]) * 10)
}

/// The status requires a token and contains no secret; its tables are empty at rest.
#[test]
fn status_shows_servers_and_counters() {
    let arguments =
        ["--auth-token", "canary-4711", "--auth-token", "other-0815", "--status-path", "/how/are/you"];
    let gateway = Gateway::start(&arguments);
    assert_eq!(get(gateway.address, "/how/are/you").status, 401);
    let token = "Authorization: Bearer canary-4711";
    let now = || {
        let answer = crate::wire::request(gateway.address, "GET", "/how/are/you", &[token], "");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(!answer.body.contains("canary") && !answer.body.contains("0815"), "{}", answer.body);
        crate::session::value(&answer.body)
    };
    let first = now();
    assert_eq!(first["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((first["open"].as_bool(), first["uptime_seconds"].is_u64()), (Some(false), true));
    let header = token.to_string();
    let mut edge = gateway.edge_with("s", &["--rich"], &["--header", &header, "--server-id", "box"]);
    let mut client = Client::ready(gateway.address, &[token]);
    let session = Session::open_as(gateway.address, "/mcp", "2025-11-25", &[token]);
    let mut stream = session.listen(None);
    stream.next();
    let id = client.begin_call("s_hold", r#"{"key":"k"}"#);
    edge.wait_for("\"hold\"");
    // The gateway requests lists meanwhile, which count as calls.
    eventually("only the client's call is under way", || now()["servers"][0]["calls"] == 1);
    let busy = now();
    let server = &busy["servers"][0];
    assert_eq!(
        (&server["name"], &server["id"], &server["state"]),
        (&"s".into(), &"box".into(), &"connected".into())
    );
    assert_eq!((server["calls"].as_u64(), server["tools"].as_u64()), (Some(1), Some(16)), "{server}");
    let tables = &busy["tables"];
    let size = |name: &str| tables[name].as_u64().unwrap();
    assert_eq!(
        ["links", "servers", "sessions", "calls", "streams", "addresses"].map(size),
        [1, 1, 2, 1, 2, 1],
        "{tables}"
    );
    client.call("s_release", r#"{"key":"k"}"#);
    client.answer(&id);
    session.send("DELETE", &[], "").answer();
    drop((client, stream, session));
    edge.program.stop();
    let mut last = now();
    eventually("the tables are empty", || {
        last = now();
        let sizes = last["tables"].as_object().unwrap();
        let own = |name: &str| u64::from(matches!(name, "connections" | "addresses"));
        sizes.iter().all(|(name, size)| size.as_u64() == Some(own(name)))
    });
    assert!(last["counters"]["calls"].as_u64() >= Some(2), "{last}");
}

#[test]
fn status_shows_a_gateway_without_tokens() {
    let gateway = Gateway::start(&["--host", "0.0.0.0"]);
    assert_eq!(status(gateway.address)["open"], true);
    let gateway = Gateway::start(&[]);
    assert_eq!(status(gateway.address)["open"], false);
    let gateway = Gateway::start(&["--host", "0.0.0.0", "--auth-token", "t"]);
    let lines = ["Authorization: Bearer t"];
    let answer = crate::wire::request(gateway.address, "GET", "/status", &lines, "");
    assert!(answer.body.contains("\"open\":false"), "{answer:?}");
}
