//! Edges that violate the link protocol get a close code, and no other peer is affected.

use std::{
    io::Write,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    counter,
    raw::{PING, Raw, TEXT, frame, head, registration},
    status,
};
use crate::{
    harness::{Gateway, eventually},
    in_process,
    session::{BOTH, Session, call, value},
    wire::{Client, get},
};

/// Rule 23: each violation has its code, and the peer can read it.
#[test]
fn violations_close_with_their_code() {
    let gateway = in_process::Gateway::start(&[], |limits| limits.link.message_bytes = 70_000);
    let cases: &[(&str, Vec<u8>, u16)] = &[
        ("a frame that is announced too large", head(TEXT, 70_001), 1009),
        ("a frame of 2^63 bytes", head(TEXT, 1 << 63), 1009),
        (
            "fragments that are too large together",
            [frame(1, &[b'x'; 60_000]), frame(0x80, &[b'x'; 12_000])].concat(),
            1009,
        ),
        ("no mask", vec![TEXT, 2, b'{', b'}'], 1002),
        ("RSV1", frame(TEXT | 0x40, b"{}"), 1002),
        ("RSV2", frame(TEXT | 0x20, b"{}"), 1002),
        ("RSV3", frame(TEXT | 0x10, b"{}"), 1002),
        ("an unknown opcode", frame(0x83, b"{}"), 1002),
        ("an unknown control opcode", frame(0x8b, b"{}"), 1002),
        ("a ping in fragments", frame(0x09, b""), 1002),
        ("a ping that is too long", frame(PING, &[b'x'; 126]), 1002),
        ("a continuation of nothing", frame(0x80, b"{}"), 1002),
        ("a text inside a text", [frame(0x01, b"{"), frame(TEXT, b"}")].concat(), 1002),
        ("a close frame of one byte", frame(0x88, b"x"), 1002),
        ("text that is not UTF-8", frame(TEXT, b"\xff\xfe"), 1007),
        ("text that ends inside a character", frame(TEXT, b"\xc3"), 1007),
        ("binary", frame(0x82, b"{}"), 1003),
        ("something else than a registration", frame(TEXT, b"{}"), 1008),
        ("a call before the registration", frame(TEXT, br#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#), 1008),
        ("an answer before the registration", frame(TEXT, br#"{"jsonrpc":"2.0","id":1,"result":{}}"#), 1008),
        ("a registration that is too large", frame(TEXT, &[b' '; 65_537]), 1009),
    ];
    for (what, bytes, code) in cases {
        let mut raw = Raw::upgraded(gateway.address);
        raw.send(bytes);
        let (told, reason) = raw.try_closed().unwrap_or_else(|| panic!("{what}: it ends without a word"));
        assert_eq!(told, *code, "{what}: {reason}");
        assert_eq!(raw.frame(), None, "{what}: nothing comes behind");
    }
    eventually("all links are gone", || status(gateway.address)["tables"]["links"] == 0);
    assert_eq!(counter(gateway.address, "links_ended"), cases.len() as u64);
}

/// Rule 23: an endless message is ended by its size or its rate.
#[test]
fn endless_fragments_are_closed_with_1008() {
    let gateway = in_process::Gateway::start(&[], |limits| {
        limits.link.message_bytes = 64 * 1024;
        limits.link.message_time = Duration::from_millis(400);
        limits.link.message_floor = 1 << 20;
    });
    for (first, again) in [(frame(1, b""), frame(0, b"")), (frame(1, b" "), frame(0, b" "))] {
        let mut raw = Raw::registered(gateway.address, "endless");
        raw.send(&first);
        let many = again.repeat(2000);
        while raw.stream.write_all(&many).is_ok() {}
        let (code, reason) =
            raw.try_closed().unwrap_or_else(|| panic!("fragments of {} bytes", again.len() - 6));
        assert_eq!((code, reason.as_str()), (1008, "too many fragments"));
    }
    let mut raw = Raw::registered(gateway.address, "slow");
    // Bytes that arrive together with the end of a message are noticed with the next byte, or as
    // silence.
    eventually("its list is read", || status(gateway.address)["servers"][0]["tools"] == 1);
    raw.send(&head(TEXT, 100));
    assert_eq!(raw.closed(), (1008, "a message was received too slowly".into()));
}

/// A message may take as long as its line needs: only one slower than the minimum rate is cut off.
#[test]
fn a_slow_line_gets_a_large_message_through() {
    let gateway = in_process::Gateway::start(&[], |limits| {
        limits.link.message_time = Duration::from_millis(1000);
        limits.link.message_floor = 500;
        limits.link.ping_every = Duration::from_millis(500);
        limits.link.dead_after = Duration::from_millis(1500);
    });
    let mut raw = Raw::registered(gateway.address, "slow");
    eventually("its list is read", || status(gateway.address)["servers"][0]["tools"] == 1);
    let session = Session::open(gateway.address, "/servers/slow/mcp");
    let mut asked = session.send("POST", &[BOTH], &call(1, "echo", json!({"text": "x"})));
    let id = crate::wire::member(&raw.text_with("tools/call"), "id").unwrap();
    let text = format!(
        r#"{{"jsonrpc":"2.0","id":{id},"result":{{"content":[{{"type":"text","text":"{}"}}]}}}}"#,
        "y".repeat(5000)
    );
    // Three times the minimum rate, and several times longer than an empty message or a dead peer
    // may take.
    raw.send(&head(TEXT, text.len() as u64));
    for piece in text.as_bytes().chunks(150) {
        raw.send(piece);
        thread::sleep(Duration::from_millis(100));
    }
    let answer = value(&asked.answer().body);
    assert_eq!(answer["result"]["content"][0]["text"].as_str().map(str::len), Some(5000));
}

/// Rule 24: a peer that pings and does not read is closed after a hundred pings, and holds no
/// memory.
#[test]
fn a_flood_of_pings_is_closed() {
    let gateway = Gateway::start(&[]);
    let mut raw = Raw::upgraded(gateway.address);
    let pings = frame(PING, b"?").repeat(1000);
    for _ in 0..100 {
        if raw.stream.write_all(&pings).is_err() {
            break;
        }
    }
    let mut pongs = 0;
    let code = loop {
        match raw.frame().expect("a close frame") {
            (first, payload) if first & 15 == 8 => break u16::from_be_bytes([payload[0], payload[1]]),
            (first, _) => {
                assert_eq!(first, 0x8a, "nothing but pongs");
                pongs += 1;
            }
        }
    };
    assert_eq!(code, 1008);
    assert!(pongs <= 100, "{pongs} pongs");
    assert_eq!(get(gateway.address, "/health").status, 200);
}

/// Rule 22: a link that does not register in time is closed; the frame may arrive with the request.
#[test]
fn a_link_registers_in_time() {
    let gateway =
        in_process::Gateway::start(&[], |limits| limits.link.register_time = Duration::from_millis(300));
    let mut raw = Raw::upgraded(gateway.address);
    let begun = Instant::now();
    assert_eq!(raw.closed(), (1008, "timed out waiting for the first frame".into()));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // Rule 11: bytes after the upgrade request belong to the link.
    let mut raw = Raw::upgraded_with(gateway.address, &frame(TEXT, registration("glued").as_bytes()));
    raw.text_with("\"status\"");
    raw.text_with("\"initialize\"");
    // A second registration is treated as an unknown request; the first stays valid.
    raw.text(&registration("other"));
    assert!(raw.text_with("-32601").contains("method not found"));
    let servers = status(gateway.address)["servers"].clone();
    assert_eq!(servers[0]["name"], "glued", "{servers}");
    assert_eq!((servers[0]["state"].as_str(), servers[1].is_null()), (Some("connected"), true), "{servers}");
}

/// A link over the limit is told to retry, and is accepted when there is room.
#[test]
fn links_have_a_limit() {
    let gateway = Gateway::start(&["--max-links", "1"]);
    let raw = Raw::registered(gateway.address, "one");
    let host = crate::wire::host(gateway.address);
    let second = || {
        let lines = [&[host.as_str()], crate::wire::UPGRADE].concat();
        let mut wire = crate::wire::Wire::connect(gateway.address);
        wire.send(crate::wire::text("GET", "/mcp/register", &lines, ""));
        wire.head().unwrap()
    };
    let refused = second();
    assert_eq!((refused.status, refused.field("retry-after")), (503, Some("1")));
    drop(raw);
    eventually("the place is free", || second().status == 101);
}

/// A server that reports a change after each listing is listed at a limited rate, and others are
/// served meanwhile.
#[test]
fn constant_list_changes_are_rate_limited() {
    let pause = Duration::from_millis(400);
    let gateway = in_process::Gateway::start(&[], |limits| limits.catalog.list_pause = pause);
    let mut raw = Raw::registered(gateway.address, "restless");
    let changed = r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#;
    // A client at the server's own endpoint gets every notification; one at the aggregate only
    // those of real changes.
    let mut client = Client::ready(gateway.address, &[]);
    let (begun, mut listings) = (Instant::now(), 0);
    while begun.elapsed() < 3 * pause {
        raw.text(changed);
        let list = raw.text_with("\"tools/list\"");
        listings += 1;
        // During a listing, too.
        raw.text(changed);
        raw.answer(&list, &format!(r#"{{"tools":[{{"name":"t{listings}","inputSchema":{{}}}}]}}"#));
    }
    let max = begun.elapsed().as_millis() / pause.as_millis() + 1;
    assert!((2..=max as usize).contains(&listings), "{listings} listings, at most {max}");
    client.tools_until(|tools| tools.contains(&format!("restless_t{listings}")));
}
