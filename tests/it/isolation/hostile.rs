//! Handmade peers of a link: a gateway without isolated sessions, and peers that violate the
//! protocol.

use std::{net::TcpListener, time::Instant};

use async_tungstenite::tungstenite::Message;
use rustix::process::Signal;

use serde_json::json;

use super::{processes, value, wait_for_processes};
use crate::{
    frames::End,
    harness::{Edge, Gateway, TIMEOUT, eventually},
    hostile::memory,
    isolation::peer::{CAPABILITIES, Peer, Place},
    session::{BOTH, Session, call, initialize_request},
    wire::{Wire, get, host, text},
};

/// A port, and an edge that registers there with at most two sessions.
fn listener() -> (TcpListener, Edge) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/mcp/register", listener.local_addr().unwrap());
    let edge = Edge::start(&url, "s", &["--session"], &["--sessions", "isolated", "--max-sessions", "2"]);
    (listener, edge)
}

/// A gateway that has read the register frame, and agrees to sessions or does not.
#[track_caller]
fn gateway(listener: &TcpListener, agrees: bool) -> End {
    let mut end = End::accept(listener);
    let offer = value(&end.next());
    assert_eq!(offer["params"]["capabilities"]["mcpport"]["sessions"]["max"], 2);
    end.say(if agrees {
        r#"{"status":"received","id":"x","message":"","capabilities":{"mcpport":{"sessions":{}}}}"#
    } else {
        r#"{"status":"received","id":"x","message":"as the original says it"}"#
    });
    end
}

const PING: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
const PONG: &str = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;

#[test]
fn a_gateway_without_sessions_gets_a_shared_server() {
    let (listener, edge) = listener();
    for frame in ["+1", "#1 {}", "-1 bye"] {
        let mut end = gateway(&listener, false);
        edge.program.wait_for("does not support isolated sessions; all clients share one process");
        end.say(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"pid","arguments":{}}}"#);
        assert!(end.next().contains(&format!("\"{}\"", edge.server_pid())));
        assert_eq!(processes(&edge), [0; 0]);
        end.say(frame);
        assert_eq!(end.close_reason(), (1008, "channel frame without negotiated sessions".into()));
    }
}

#[test]
fn a_gateway_never_gets_more_processes_than_it_may() {
    let (listener, edge) = listener();
    let mut end = gateway(&listener, true);
    for nonsense in
        ["#9 {}", "-9 bye", "#9", "+0", "+99999999999", "#99999999999 {}", "+1 2", "#1 {}", "+x", ""]
    {
        end.say(nonsense);
    }
    end.say("+1");
    end.say("+2");
    end.say("+3");
    let refusal = end.next();
    assert!(refusal.starts_with("-3 ") && refusal.contains("--max-sessions"), "{refusal}");
    for (prefix, nonsense) in [("#1 ", "no message"), ("#1 ", "[]"), ("#2 ", "")] {
        end.say(&format!("{prefix}{nonsense}"));
    }
    for prefix in ["#1 ", "#2 ", ""] {
        end.say(&format!("{prefix}{PING}"));
        assert_eq!(end.next(), format!("{prefix}{PONG}"));
    }
    assert_eq!(processes(&edge).len(), 2);
    for number in 4..1000 {
        end.say(&format!("-{}", number - 2));
        end.say(&format!("+{number}"));
        if number % 100 == 0 {
            assert!(processes(&edge).len() <= 2);
        }
    }
    end.say("-1");
    end.say("-999");
    end.say(PING);
    end.find(|frame| frame == PONG);
    wait_for_processes(&edge, 1);
    end.say("+1000");
    end.say(&format!("#1000 {PING}"));
    end.find(|frame| frame == format!("#1000 {PONG}"));
    end.say("+1000");
    assert_eq!(end.close_reason(), (1008, "channel number used before".into()));
    wait_for_processes(&edge, 0);
}

#[test]
fn an_edge_leaves_a_gateway_that_opens_channels_and_does_not_read() {
    let (listener, edge) = listener();
    let mut end = gateway(&listener, true);
    end.say("+1");
    let deadline = Instant::now() + TIMEOUT;
    for number in 2.. {
        // The edge may have disconnected already.
        if end.0.send(Message::text(format!("+{number}"))).is_err() {
            break;
        }
        assert!(Instant::now() < deadline);
    }
    edge.program.wait_for("the gateway does not read");
    wait_for_processes(&edge, 0);
}

const SESSIONS: &str = r#"{"mcpport":{"sessions":{"max":9}}}"#;

#[test]
fn channels_that_were_not_agreed_on_close_with_1008() {
    let gateway = Gateway::start(&[]);
    for (capabilities, frame) in
        [(r#"{"mcpport":{}}"#, "#1 {}"), (r#"{"mcpport":{}}"#, "-1"), (SESSIONS, "+1")]
    {
        let mut end = End::register(gateway.address, capabilities);
        end.say(frame);
        assert_eq!(end.close_reason(), (1008, "channel frame without negotiated sessions".into()));
    }
    // The Python edge forwards whatever its server prints.
    let mut end = End::register(gateway.address, "{}");
    for noise in ["#1 heading", "-1 degree", "+1"] {
        end.say(noise);
    }
    let mut client = gateway.client();
    client.tools_until(|tools| tools.len() == 2);
    let call = client.begin_call("s_t", "{}");
    let id = end.request("", "tools/call");
    end.say(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"fine":true}}}}"#));
    assert!(client.answer(&call).contains("fine"));
}

#[test]
fn a_broken_edge_affects_no_other() {
    let gateway = Gateway::start(&[]);
    let mut end = End::register(gateway.address, SESSIONS);
    let mut client = gateway.client();
    client.tools_until(|tools| tools.len() == 2);
    for nonsense in ["#1 {}", "-1 bye", "-4294967295", "#4294967295 {}", "#99999999999 {}", "#", "-", "#1"] {
        end.say(nonsense);
    }
    let mut peer = Peer::open(&gateway, Place::SINGLE[0]);
    let params =
        format!(r#"{{"protocolVersion":"2025-06-18","capabilities":{CAPABILITIES},"clientInfo":{{}}}}"#);
    let initialize = peer.begin("initialize", &params);
    assert_eq!(end.find(|frame| frame.starts_with('+')), "+1");
    let id = end.request("#1 ", "initialize");
    for nonsense in ["nonsense", "[]", "{}", r#"{"jsonrpc":"2.0","id":77,"result":{}}"#] {
        end.say(&format!("#1 {nonsense}"));
    }
    end.say(&format!(r##"#1 {{"jsonrpc":"2.0","id":{id},"result":{{"protocolVersion":"2025-06-18"}}}}"##));
    assert!(peer.answer(&initialize).contains("result"));
    // More requests than a client has to accept, all with one id.
    for _ in 0..80 {
        end.say(r##"#1 {"jsonrpc":"2.0","id":0,"method":"roots/list"}"##);
    }
    for _ in 0..16 {
        let refusal = end.find(|frame| frame.contains("\"error\""));
        assert!(
            refusal.starts_with(r##"#1 {"jsonrpc":"2.0","id":0"##) && refusal.contains("-32000"),
            "{refusal}"
        );
    }
    for _ in 0..64 {
        peer.asked("roots/list");
    }
    let call = peer.begin("x", "{}");
    end.request("#1 ", "x");
    end.say("-1 it is tired\u{7}");
    let answer = peer.answer(&call);
    assert!(answer.contains("it is tired") && answer.contains("server 's' disconnected"), "{answer}");
    peer.ended();
    for late in ["-1 again", "#1 {}", r##"#1 {"jsonrpc":"2.0","method":"x"}"##] {
        end.say(late);
    }
    // The shared process runs all the time.
    let call = client.begin("tools/call", r#"{"name":"s_t"}"#);
    assert_eq!(end.find(|frame| frame.starts_with('+')), "+2");
    let id = end.request("#2 ", "initialize");
    end.say(&format!(r##"#2 {{"jsonrpc":"2.0","id":{id},"result":{{}}}}"##));
    let id = end.request("#2 ", "tools/call");
    end.say(&format!(r##"#2 {{"jsonrpc":"2.0","id":{id},"result":{{"fine":true}}}}"##));
    assert!(client.answer(&call).contains("fine"));
    assert_eq!(get(gateway.address, "/health").body, "ok");
}

/// An edge that does not respond for a while is not treated as disconnected.
#[test]
fn an_edge_that_pauses_is_not_lost() {
    let (gateway, edge) = super::world(&["--max-sessions", "1"]);
    let mut peer = Peer::ready(&gateway, Place::SINGLE[1]);
    peer.pid();
    edge.program.signal(Signal::STOP);
    peer.end();
    let mut next = Peer::open(&gateway, Place::SINGLE[1]);
    let initialize =
        next.begin("initialize", r#"{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{}}"#);
    edge.program.signal(Signal::CONT);
    assert!(next.answer(&initialize).contains("result"));
    eventually("the first is gone", || processes(&edge).len() == 1);
}

/// A server that sends and cancels requests, over and over, while its client does not read: what
/// waits is bounded.
#[test]
fn cancelled_server_requests_do_not_pile_up() {
    const QUESTIONS: usize = 96;
    let gateway = Gateway::start(&[]);
    let mut end = End::register(gateway.address, SESSIONS);
    eventually("the server is listed", || gateway.program.log().contains("server 's' offers"));
    let own = host(gateway.address);
    let mut begin = Wire::connect(gateway.address);
    begin.send(text("POST", "/servers/s/mcp", &[&own, BOTH], &initialize_request("2025-11-25")));
    let id = end.request("#1 ", "initialize");
    end.say(&format!(r##"#1 {{"jsonrpc":"2.0","id":{id},"result":{{"protocolVersion":"2025-11-25"}}}}"##));
    let session = begin.answer().field("mcp-session-id").unwrap().to_owned();
    let mut unread = Wire::connect(gateway.address);
    let session = format!("Mcp-Session-Id: {session}");
    unread.send(text("POST", "/servers/s/mcp", &[&own, BOTH, &session], &call(1, "x", json!({}))));
    end.request("#1 ", "tools/call");
    let before = memory(gateway.program.pid(), "VmRSS:");
    let long = "x".repeat(1 << 20);
    for _ in 0..QUESTIONS {
        end.say(&format!(
            r##"#1 {{"jsonrpc":"2.0","id":0,"method":"sampling/createMessage","params":{{"x":"{long}"}}}}"##
        ));
        end.say(r##"#1 {"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":0}}"##);
    }
    end.say(&format!("#1 {PING}"));
    end.find(|frame| frame.contains("-32000") && frame.contains("does not read"));
    end.find(|frame| frame == format!("#1 {PONG}"));
    let grown = memory(gateway.program.pid(), "VmRSS:").saturating_sub(before);
    assert!(grown < 48 * 1024, "{QUESTIONS} questions of 1 MiB hold {grown} KiB");
}

/// The id of a server request is kept until it is answered, so its length is limited.
#[test]
fn ids_of_server_requests_are_bounded() {
    let gateway = Gateway::start(&[]);
    let mut end = End::register(gateway.address, SESSIONS);
    let mut peer = Peer::open(&gateway, Place::SINGLE[0]);
    let initialize =
        peer.begin("initialize", r#"{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{}}"#);
    let id = end.request("#1 ", "initialize");
    end.say(&format!(r##"#1 {{"jsonrpc":"2.0","id":{id},"result":{{"protocolVersion":"2025-06-18"}}}}"##));
    peer.answer(&initialize);
    let id = |length: usize| format!("\"{}\"", "i".repeat(length - 2));
    end.say(&format!(r##"#1 {{"jsonrpc":"2.0","id":{},"method":"roots/list"}}"##, id(257)));
    let refusal = end.find(|frame| frame.contains("\"error\""));
    assert!(refusal.contains(&id(257)) && refusal.contains("-32600"), "{refusal}");
    end.say(&format!(r##"#1 {{"jsonrpc":"2.0","id":{},"method":"roots/list"}}"##, id(256)));
    peer.asked("roots/list");
}

/// Messages that wait for processes to start are limited in bytes, over all sessions.
#[test]
fn calls_that_wait_for_a_process_are_bounded() {
    let gateway = Gateway::start(&[]);
    let mut end = End::register(gateway.address, SESSIONS);
    let mut reader = gateway.client();
    reader.tools_until(|tools| tools.len() == 2);
    let text = "x".repeat(1 << 20);
    let sessions: Vec<Session> = (0..3).map(|_| Session::open(gateway.address, "/mcp")).collect();
    let mut waiting = Vec::new();
    for (number, session) in sessions.iter().cycle().take(12).enumerate() {
        waiting.push(session.send("POST", &[BOTH], &call(number as i64, "s_t", json!({"text": &text}))));
    }
    let busy = "too many messages are waiting for this session's process of server 's' to start";
    for wire in waiting.iter_mut().skip(9) {
        let answer = wire.answer().body;
        assert!(answer.contains("-32000") && answer.contains(busy), "{answer}");
    }
    // Once they are sent, there is room for the next.
    for channel in 1..=3 {
        let prefix = format!("#{channel} ");
        let id = end.request(&prefix, "initialize");
        end.say(&format!(r##"{prefix}{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"##));
    }
    let late = Session::open(gateway.address, "/mcp");
    let mut last = late.send("POST", &[BOTH], &call(1, "s_t", json!({"text": &text})));
    let id = end.request("#4 ", "initialize");
    end.say(&format!(r##"#4 {{"jsonrpc":"2.0","id":{id},"result":{{}}}}"##));
    let id = end.request("#4 ", "tools/call");
    end.say(&format!(r##"#4 {{"jsonrpc":"2.0","id":{id},"result":{{"fine":true}}}}"##));
    assert!(last.answer().body.contains("fine"));
}
