//! Peers that send slowly or without end on the HTTP side.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt::set_socket_recv_buffer_size,
};
use serde_json::json;

use crate::{
    harness::Gateway,
    in_process,
    session::{BOTH, Session, call},
    wire::{Wire, get, host, tcp, text},
};

/// Rule 3: a head that drips is answered 408 at its deadline, whatever its rate.
#[test]
fn a_slow_head_is_answered() {
    let limit = Duration::from_millis(600);
    let gateway = in_process::Gateway::start(&[], |limits| limits.http.head_time = limit);
    for drip in [Duration::from_millis(20), Duration::from_millis(250), Duration::from_secs(60)] {
        let stream = tcp(gateway.address);
        let (mut drips, begun) = (stream.try_clone().unwrap(), Instant::now());
        drips.write_all(b"GET / HTTP/1.1\r\nX: ").unwrap();
        let feeder = thread::spawn(move || {
            while drips.write_all(b"x").is_ok() && begun.elapsed() < 10 * limit && drip < 10 * limit {
                thread::sleep(drip);
            }
        });
        let mut wire = Wire::new(stream);
        let answer = wire.answer();
        assert_eq!((answer.status, answer.field("connection")), (408, Some("close")), "{answer:?}");
        assert!(begun.elapsed() >= limit, "{:?}", begun.elapsed());
        assert!(wire.is_closed());
        drop(wire);
        feeder.join().unwrap();
    }
}

/// Rule 4: a body must arrive at a minimum rate, and is refused in advance if its announced size is
/// too large.
#[test]
fn a_slow_body_is_answered() {
    let gateway = in_process::Gateway::start(&[], |limits| {
        limits.http.body_grace = Duration::from_millis(300);
        limits.http.body_bytes = 10_000;
    });
    let own = host(gateway.address);
    let post = |lines: &str| {
        format!("POST /mcp HTTP/1.1\r\n{own}\r\nContent-Type: application/json\r\n{lines}\r\n\r\n")
    };
    let mut wire = Wire::connect(gateway.address);
    wire.send(post("Content-Length: 9000"));
    wire.send("{".repeat(50));
    assert_eq!(wire.answer().status, 408);
    let mut wire = Wire::connect(gateway.address);
    wire.send(post("Content-Length: 10001"));
    assert_eq!(wire.answer().status, 413, "nothing of it was sent");
    let mut wire = Wire::connect(gateway.address);
    wire.send(post("Transfer-Encoding: chunked"));
    wire.send(format!("2711\r\n{}\r\n", "x".repeat(10_001)));
    let answer = wire.answer();
    assert_eq!((answer.status, answer.field("connection")), (413, Some("close")));
    assert!(wire.is_closed());
}

/// Rules 1 and 2 against the real program: an endless or too large head gets an error.
#[test]
fn heads_without_measure_are_answered() {
    let gateway = Gateway::start(&[]);
    let own = host(gateway.address);
    let fields: String = (0..64).map(|number| format!("X-{number}: y\r\n")).collect();
    for (bytes, status) in [
        ("A".repeat(1 << 20), 431),
        (format!("GET / HTTP/1.1\r\n{own}\r\n{fields}\r\n"), 431),
        (format!("GET /{} HTTP/1.1\r\n{own}\r\n\r\n", "x".repeat(4096)), 414),
        (format!("{} / HTTP/1.1\r\n{own}\r\n\r\n", "X".repeat(33)), 501),
        (format!("GET / HTTP/1.1\r\n{own}\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"), 400),
    ] {
        let stream = tcp(gateway.address);
        let mut writer = stream.try_clone().unwrap();
        let writes = thread::spawn(move || {
            // The gateway may refuse it before everything is written.
            let _ = writer.write_all(bytes.as_bytes());
        });
        let mut wire = Wire::new(stream);
        let answer = wire.answer();
        assert_eq!((answer.status, answer.field("connection")), (status, Some("close")), "{answer:?}");
        writes.join().unwrap();
    }
    let status = super::counter(gateway.address, "refused");
    assert_eq!(status, 5);
}

/// A peer that sends requests and reads no response is disconnected, and holds no more than its own
/// connection.
#[test]
fn a_client_that_reads_no_response_is_closed() {
    let gateway = in_process::Gateway::start(&[], |limits| {
        limits.http.write_stall = Duration::from_millis(300);
        limits.http.requests = 1_000_000;
    });
    let mut stream = tcp(gateway.address);
    let request = text("GET", "/status", &[&host(gateway.address)], "").repeat(1000);
    let begun = Instant::now();
    // The buffers of both sides do not hold this much.
    while stream.write_all(request.as_bytes()).is_ok() {
        assert!(begun.elapsed() < crate::TIMEOUT, "the connection is never closed");
    }
    assert_eq!(get(gateway.address, "/health").status, 200);
}

/// A reader that is slower than the stall limit expects, but steady, gets its whole response.
#[test]
fn steady_slow_reader_gets_its_answer() {
    let stall = Duration::from_secs(2);
    let gateway = in_process::Gateway::start(&[], |limits| limits.http.write_stall = stall);
    let _edge = gateway.edge("s", &[]);
    let session = Session::open(gateway.address, "/mcp");
    let bytes = 4_000_000;
    let mut wire = Wire::new(narrow(gateway.address, 64 * 1024));
    let mut lines = session.lines();
    lines.push(BOTH.into());
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    wire.send(text("POST", "/mcp", &lines, &call(7, "s_big", json!({"bytes": bytes}))));
    let begun = Instant::now();
    // 16 KiB in 250 ms: within the limit less than a third of the send buffer becomes free, which
    // is when the system reports it writable.
    let mut head = wire.exactly(1024).unwrap();
    while begun.elapsed() < 3 * stall {
        head.extend(wire.exactly(16 * 1024).unwrap());
        thread::sleep(Duration::from_millis(250));
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    let length: usize = length.trim().parse().unwrap();
    let body = head.split_once("\r\n\r\n").unwrap().1;
    assert!(length > bytes);
    let rest = wire.exactly(length - body.len()).expect("the connection stays open");
    assert!(rest.ends_with(b"}"));
}

/// A connection whose peer can send only this many unread bytes.
fn narrow(address: SocketAddr, window: usize) -> TcpStream {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    set_socket_recv_buffer_size(&socket, window).unwrap();
    connect(&socket, &address).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(crate::TIMEOUT)).unwrap();
    stream
}
