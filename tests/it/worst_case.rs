//! Combined failures: programs that are stopped, full or disconnected while something else fails as
//! well.

use std::{net::TcpListener, time::Duration};

use rustix::process::Signal;

use crate::{
    directory,
    frames::{End, introduction},
    harness::{Edge, Gateway, Program, eventually, fake_server},
    in_process,
    isolation::peer::{Peer, Place},
    relay::{Relay, Way},
    wire::{Client, member},
};

/// A handmade gateway, and the URL at which edges find it.
fn gateway() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/mcp/register", listener.local_addr().unwrap());
    (listener, url)
}

/// Returns the next edge that connects.
#[track_caller]
fn next(listener: &TcpListener) -> End {
    listener.set_nonblocking(true).unwrap();
    let mut taken = None;
    eventually("an edge comes", || {
        taken = listener.accept().ok();
        taken.is_some()
    });
    let (stream, _) = taken.unwrap();
    stream.set_nonblocking(false).unwrap();
    End::with(stream)
}

fn server() -> String {
    format!("'{}'", fake_server().display())
}

#[test]
fn an_endless_resume_window_is_accepted() {
    let (listener, url) = gateway();
    let _edge = Edge::start(&url, "s", &[], &[]);
    let mut end = next(&listener);
    end.next();
    let window = u64::MAX;
    end.say(&format!(
        r#"{{"status":"received","id":"x","message":"m","capabilities":{{"mcpport":{{"resume":{{"token":"t","window":{window}}}}}}}}}"#
    ));
    drop(end);
    assert!(next(&listener).next().contains("\"token\":\"t\""), "it reconnects");
}

#[test]
fn a_full_gateway_resumes_a_lost_link() {
    let gateway = Gateway::start(&["--max-links", "1"]);
    let relay = Relay::to(gateway.address);
    let edge = Edge::start(&relay.url(), "s", &[], &[]);
    gateway.program.wait_for("server 's' offers");
    edge.program.wait_for("registered: ");
    let mut client = gateway.client();
    for round in 1..=2 {
        relay.cut();
        assert_eq!(client.call_text("s_echo", r#"{"text":"x"}"#), "x");
        gateway.program.wait_for_nth("server 's' resumed from", round);
    }
    // Its session is kept meanwhile.
    relay.refuse(true);
    relay.cut();
    gateway.program.wait_for_nth("is reconnecting", 3);
    let mut other = End::connect(gateway.address, None);
    other.say(r#"{"jsonrpc":"2.0","id":"y","method":"register","params":{"name":"other","capabilities":{"mcpport":{}}}}"#);
    let (code, reason) = other.close_reason();
    assert!(code == 1013 && reason.contains("--max-links"), "{code} {reason}");
    relay.restore();
    assert_eq!(client.call_text("s_echo", r#"{"text":"y"}"#), "y");
}

/// A killed edge leaves its name reserved; without its id, the next one is a stranger.
#[test]
fn the_name_of_a_lost_server_stays_reserved() {
    let gateway = Gateway::start(&["--resume-window", "1s"]);
    let mut edge = gateway.edge("s");
    edge.program.kill();
    gateway.program.wait_for("server 's' is reconnecting");
    let again = Edge::start(&gateway.url(), "s", &[], &[]);
    again.program.wait_for("this name is reserved for a lost server (--server-id ");
    // Its delays have grown by now, up to 30 s.
    gateway.program.wait_for("not resumed within");
    again.program.wait_for("registered: ");
    let mut client = gateway.client();
    assert_eq!(client.call_text("s_echo", r#"{"text":"y"}"#), "y");
}

#[test]
fn the_second_signal_leaves_no_process_of_a_session() {
    let gateway = Gateway::start(&[]);
    let server = ["--session", "--ignore-eof", "--ignore-term"];
    let mut edge = gateway.edge_with("s", &server, &["--sessions", "isolated"]);
    edge.program.wait_for("registered: ");
    let mut peer = Peer::ready(&gateway, Place::ALL[3]);
    assert_ne!(peer.pid(), edge.server_pid());
    edge.program.signal(Signal::TERM);
    edge.program.wait_for("send it again");
    edge.program.signal(Signal::TERM);
    let end = edge.program.ended();
    assert_eq!((end.code, end.complaint().len()), (Some(1), 1), "{:?}", end.stderr);
    eventually("nothing is left", || edge.program.offspring().is_empty());
}

#[test]
fn an_edge_stopped_while_registering_closes_with_1001() {
    let (listener, url) = gateway();
    let mut edge = Edge::start(&url, "s", &["--ignore-eof", "--ignore-term"], &[]);
    let mut end = next(&listener);
    assert!(end.next().contains("\"register\""));
    // The gateway has accepted it, and its response is in transit.
    edge.program.signal(Signal::TERM);
    assert_eq!(end.close_reason().0, 1001);
    assert!(edge.program.is_running(), "the link closes before the server exits");
    assert_eq!(edge.program.ended().code, Some(0));
}

#[test]
fn an_edge_is_stopped_at_once_while_it_connects() {
    let (listener, url) = gateway();
    let mut edge = Edge::start(&url, "s", &[], &[]);
    let (silent, _) = listener.accept().unwrap();
    assert_eq!(edge.program.stop().code, Some(0));
    drop(silent);
}

#[test]
fn an_error_about_an_exited_server_is_not_final() {
    let (listener, url) = gateway();
    let mark = directory("mark").join("mark");
    // A process that the first one leaves behind keeps its pipes open, so the edge waits for its
    // last output.
    let first = format!("if mkdir '{}'; then read line; setsid sleep 3 & exit 1; fi", mark.display());
    let stdio = format!("{first}; exec {}", server());
    let edge = Program::start(&["register", "--stdio", &stdio, "--gateway-url", &url, "--server-name", "s"]);
    let mut end = next(&listener);
    end.next();
    end.say(r#"{"status":"received","id":"x","message":"m","capabilities":{"mcpport":{}}}"#);
    end.say(r#"{"jsonrpc":"2.0","method":"notifications/nothing"}"#);
    edge.wait_for("server process exited");
    end.say(r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#);
    let answer = end.next();
    assert!(answer.contains("\"result\""), "the next one answers: {answer}");
}

#[test]
fn a_slow_line_is_not_taken_for_a_peer_that_acknowledges_nothing() {
    let stall = Duration::from_millis(500);
    let quick = |limits: &mut mcpport::limits::Limits| {
        (limits.link.write_stall, limits.link.resume_bytes) = (stall, 1000);
        limits.link.message_floor = 256;
    };
    let gateway = in_process::Gateway::start(&[], |_| {});
    let relay = Relay::to(gateway.address);
    let _edge = in_process::Edge::start(&relay.url(), "s", &server(), &[], quick);
    let mut client = Client::ready(gateway.address, &[]);
    client.tools_until(|tools| tools.iter().any(|tool| tool == "s_echo"));
    // Two thousand bytes per second, if the clock is fine enough: each response takes longer than a
    // stall.
    relay.drip(Way::Up, Duration::from_micros(500));
    let open: Vec<String> = (0..3).map(|_| client.begin_call("s_big", r#"{"bytes":4000}"#)).collect();
    for id in &open {
        assert!(client.answer(id).contains("xxx"));
    }
    assert_eq!(relay.taken(), 1, "the connection is slow, not dead");
}

#[test]
fn a_delayed_registration_takes_nothing_over() {
    let gateway = Gateway::start(&[]);
    let mut end = End::register(gateway.address, "{}");
    let mut client = gateway.client();
    client.tools_until(|tools| tools.len() == 2);
    // The edge had given this connection up, and connected over another one.
    let mut late = End::connect(gateway.address, None);
    late.say(&introduction("{}"));
    drop(late);
    gateway.program.wait_for("without a registration");
    let call = client.begin_call("s_t", "{}");
    let id = end.request("", "tools/call");
    end.say(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"content":[]}}}}"#));
    assert!(client.answer(&call).contains("result"));
}

#[test]
fn gateway_requests_have_reserved_capacity() {
    let gateway =
        in_process::Gateway::start(&["--resume-window", "0"], |limits| limits.link.queue_messages = 2);
    let relay = Relay::to(gateway.address);
    let mut end = End::register(relay.address, r#"{"mcpport":{}}"#);
    let mut client = Client::ready(gateway.address, &[]);
    client.tools_until(|tools| tools.len() == 2);
    end.find(|frame| frame.contains("registered"));
    let first = client.begin_call("s_t", "{}");
    let upstream = end.request("", "tools/call");
    relay.freeze(Way::Down);
    let text = format!("{{\"text\":\"{}\"}}", "x".repeat(1 << 20));
    // More than all buffers of the system on the way hold.
    let open: Vec<String> = (0..24).map(|_| client.begin_call("s_t", &text)).collect();
    end.say(r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#);
    end.say(&format!(r#"{{"jsonrpc":"2.0","id":{upstream},"result":{{"content":[]}}}}"#));
    assert!(client.answer(&first).contains("result"));
    relay.restore();
    end.request("", "tools/list");
    drop(open);
}

#[test]
fn edge_answers_have_reserved_capacity() {
    let (listener, url) = gateway();
    let _edge = in_process::Edge::start(&url, "s", &server(), &[], |limits| {
        (limits.link.queue_messages, limits.child.queue_messages) = (1, 1);
    });
    let mut end = next(&listener);
    end.next();
    end.say(r#"{"status":"received","id":"x","message":"m","capabilities":{"mcpport":{}}}"#);
    let initialize = |id: u64| {
        format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"initialize","params":{{"protocolVersion":"2025-06-18"}}}}"#
        )
    };
    end.say(&initialize(1));
    end.next();
    for id in 2..40 {
        end.say(&format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"big","arguments":{{"bytes":1000000}}}}}}"#
        ));
    }
    for id in 40..50 {
        end.say(&initialize(id));
    }
    end.find(|frame| member(frame, "id").as_deref() == Some("49"));
}
