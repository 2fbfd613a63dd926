//! How sessions, processes, links and programs end, what ends with them, and how many there may be.

use std::{thread, time::Duration};

use rustix::process::Signal;

use super::{Gate, isolated, processes, value, wait_for_processes, world, world_with};
use crate::{
    harness::{Edge, Gateway, Program, eventually},
    in_process,
    isolation::peer::{CAPABILITIES, Peer, Place},
    wire::{Wire, host, member, text},
};

/// The message of an error.
#[track_caller]
fn complaint(answer: &str) -> String {
    value(answer)["error"]["message"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

#[test]
fn closing_a_session_ends_its_instance() {
    let (gateway, edge) = world(&[]);
    for place in Place::ALL {
        let (mut leaver, mut other) = (Peer::ready(&gateway, place), Peer::ready(&gateway, place));
        leaver.call("family", "{}");
        leaver.begin_call("hold", r#"{"key":"k"}"#);
        let held = other.begin_call("hold", r#"{"key":"k"}"#);
        // Two servers, and a process that one of them started.
        wait_for_processes(&edge, 3);
        leaver.end();
        eventually("the whole group is gone", || processes(&edge).len() == 1);
        other.call("release", r#"{"key":"k"}"#);
        assert!(other.answer(&held).contains("\"k\""));
        other.end();
        wait_for_processes(&edge, 0);
    }
}

#[test]
fn an_instance_that_ignores_signals_is_killed() {
    let (gateway, edge) = world_with(&[], &["--ignore-eof", "--ignore-term"], &["--max-sessions", "1"]);
    let mut first = Peer::ready(&gateway, Place::ALL[3]);
    let pid = first.pid();
    first.end();
    // There is room again as soon as it has ended; an earlier session waits.
    let mut second = Peer::ready(&gateway, Place::ALL[3]);
    assert_ne!(second.pid(), pid);
    assert_eq!(processes(&edge), [second.pid()]);
}

#[test]
fn a_crash_is_reported_to_its_own_session_only() {
    let (gateway, edge) = world(&[]);
    for place in Place::ALL {
        let (mut victim, mut other) = (Peer::ready(&gateway, place), Peer::ready(&gateway, place));
        let untouched = other.pid();
        let before = victim.pid();
        victim.listen();
        let waiting = victim.begin_call("hold", r#"{"key":"k"}"#);
        let crash = victim.begin_call("crash", "{}");
        for call in [&waiting, &crash] {
            let why = complaint(&victim.answer(call));
            assert!(why.contains("server 's'") && why.contains("exit status 3"), "{why}");
        }
        if place.single {
            victim.ended();
            eventually("the session is over", || victim.is_over());
        } else {
            let after = victim.pid();
            assert!(after != before && after != untouched);
        }
        assert_eq!(other.pid(), untouched, "{place:?}");
        drop((victim, other));
    }
    assert!(edge.program.offspring().contains(&edge.server_pid()), "the shared process keeps running");
}

#[test]
fn last_words_arrive() {
    let (gateway, _edge) = world(&[]);
    for place in Place::ALL {
        for _ in 0..10 {
            let mut peer = Peer::ready(&gateway, place);
            assert_eq!(peer.call_text("leave", "{}"), "good bye");
        }
    }
}

#[test]
fn aggregate_subscriptions_outlive_an_instance() {
    let (gateway, edge) = world(&[]);
    for place in Place::WHOLE {
        let (mut peer, mut other) = (Peer::ready(&gateway, place), Peer::ready(&gateway, place));
        peer.listen();
        other.listen();
        peer.ask("logging/setLevel", r#"{"level":"alert"}"#);
        for uri in ["test://a", "test://b"] {
            assert!(peer.ask("resources/subscribe", &format!(r#"{{"uri":"{uri}"}}"#)).contains("result"));
        }
        peer.ask("resources/unsubscribe", r#"{"uri":"test://b"}"#);
        assert_eq!(peer.call_text("subscribed", "{}"), r#"{"test://a"}"#);
        peer.call("crash", "{}");
        assert_eq!(peer.call_text("subscribed", "{}"), r#"{"test://a"}"#);
        assert_eq!(peer.call_text("level", "{}"), r#"Some("alert")"#);
        peer.call("touch", r#"{"uri":"test://a"}"#);
        assert!(peer.asked("notifications/resources/updated").1.contains("test://a"));
        assert_eq!(other.call_text("subscribed", "{}"), "{}");
        assert!(other.rest().iter().all(|message| !message.contains("updated")));
    }
    assert_eq!(edge.count("resources/unsubscribe"), 2);
}

/// Starts a gateway at the address of an earlier one.
#[track_caller]
fn again(old: &Gateway) -> Gateway {
    let port = old.address.port().to_string();
    let program = Program::start(&["gateway", "--port", &port]);
    program.wait_for("listening on");
    Gateway { program, address: old.address }
}

#[test]
fn a_lost_link_ends_all_processes() {
    let (mut gateway, edge) = world_with(&["--resume-window", "0"], &[], &[]);
    let mut peers: Vec<Peer> = Place::ALL.into_iter().map(|place| Peer::ready(&gateway, place)).collect();
    for peer in &mut peers {
        peer.pid();
    }
    assert_eq!(processes(&edge).len(), 4);
    gateway.program.kill();
    wait_for_processes(&edge, 0);
    assert_eq!(edge.program.offspring(), [edge.server_pid()]);
    drop(peers);
    let gateway = again(&gateway);
    gateway.program.wait_for("server 's' offers");
    for place in Place::ALL {
        Peer::ready(&gateway, place).pid();
    }
}

/// The edge disconnects and returns: at the aggregate, a session survives that.
#[test]
fn sessions_at_the_aggregate_outlive_a_link() {
    let gateway = Gateway::start(&["--resume-window", "0"]);
    let id = ["--server-id", "box"];
    let mut edge = isolated(&gateway, &[], &id);
    let mut whole: Vec<Peer> = Place::WHOLE.into_iter().map(|place| Peer::ready(&gateway, place)).collect();
    let mut single: Vec<Peer> = Place::SINGLE.into_iter().map(|place| Peer::ready(&gateway, place)).collect();
    let mut calls = Vec::new();
    for peer in whole.iter_mut().chain(&mut single) {
        peer.listen();
        if !peer.place.single {
            peer.ask("resources/subscribe", r#"{"uri":"test://a"}"#);
        }
        calls.push(peer.begin_call("hold", r#"{"key":"k"}"#));
    }
    eventually("all calls are under way", || edge.count("\"hold\"") == 4);
    edge.program.kill();
    for (peer, call) in whole.iter_mut().chain(&mut single).zip(&calls) {
        let why = complaint(&peer.answer(call));
        assert!(why.contains("server 's' disconnected"), "{why}");
    }
    for peer in &mut single {
        peer.ended();
        assert!(peer.is_over());
    }
    eventually("its servers end", || edge.program.offspring().is_empty());
    let edge = isolated(&gateway, &[], &id);
    // Sessions that subscribed to changes get their process at once.
    wait_for_processes(&edge, 2);
    for peer in &mut whole {
        assert_eq!(peer.call_text("subscribed", "{}"), r#"{"test://a"}"#);
        peer.call("touch", r#"{"uri":"test://a"}"#);
        peer.asked("notifications/resources/updated");
    }
}

/// Channel numbers start again with each link, and processes of the old link may still be ending.
#[test]
fn a_new_link_is_not_confused_with_the_old() {
    let (mut gateway, edge) = world_with(&[], &["--ignore-eof"], &[]);
    let place = Place::ALL[3];
    let mut old = Peer::ready(&gateway, place);
    let pid = old.pid();
    gateway.program.kill();
    edge.program.wait_for("reconnecting in");
    let gateway = again(&gateway);
    gateway.program.wait_for("server 's' offers");
    let mut new = Peer::ready(&gateway, place);
    let held = new.begin_call("hold", r#"{"key":"k"}"#);
    edge.wait_for("\"hold\"");
    assert!(processes(&edge).contains(&pid), "the old process has not ended yet");
    eventually("it is gone", || !processes(&edge).contains(&pid));
    edge.program.wait_for("server process exited");
    new.call("release", r#"{"key":"k"}"#);
    assert!(new.answer(&held).contains("\"k\""));
}

#[test]
fn nothing_is_left_when_register_ends() {
    let gateway = Gateway::start(&["--resume-window", "0"]);
    for signal in [Signal::TERM, Signal::KILL] {
        let mut edge = isolated(&gateway, &[], &[]);
        let mut peers: Vec<Peer> = Place::ALL.into_iter().map(|place| Peer::ready(&gateway, place)).collect();
        for peer in &mut peers {
            peer.pid();
        }
        assert_eq!(processes(&edge).len(), 4);
        edge.program.signal(signal);
        edge.program.ended();
        if signal == Signal::TERM {
            assert_eq!(edge.program.offspring(), [0; 0]);
        }
        eventually("its servers end", || edge.program.offspring().is_empty());
        for peer in &mut peers {
            if !peer.place.single {
                assert!(peer.call("echo", "{}").contains("unknown tool"));
            }
        }
        gateway.client().tools_until(|tools| tools == ["list_servers"]);
    }
}

#[test]
fn instances_are_limited_by_max_sessions() {
    let (gateway, edge) = world(&["--max-sessions", "2"]);
    for place in Place::ALL {
        let mut peers = [Peer::ready(&gateway, place), Peer::ready(&gateway, place)];
        let pids: Vec<u32> = peers.iter_mut().map(Peer::pid).collect();
        let mut late = Peer::open(&gateway, place);
        let mut answer = late.initialize("2025-06-18", CAPABILITIES, "{}");
        if !place.single {
            answer = late.call("echo", "{}");
        }
        assert!(complaint(&answer).contains("(--max-sessions)"), "{place:?}: {answer}");
        assert_eq!(value(&answer)["error"]["code"], -32000);
        assert_eq!(peers.iter_mut().map(Peer::pid).collect::<Vec<_>>(), pids);
        peers[0].end();
        if place == Place::SINGLE[1] {
            late = Peer::ready(&gateway, place);
        } else if place.single {
            eventually("the place is free", || {
                let answer = late.initialize("2025-06-18", CAPABILITIES, "{}");
                member(&answer, "result").is_some()
            });
        } else {
            eventually("the place is free", || member(&late.call("echo", "{}"), "result").is_some());
        }
        assert!(!pids.contains(&late.pid()));
        late.end();
        peers[1].end();
        wait_for_processes(&edge, 0);
    }
}

#[test]
fn unanswered_server_requests_are_cancelled() {
    let (gateway, _edge) = world_with(&["--timeout-run-tool", "1500ms"], &[], &[]);
    for place in Place::ALL {
        let mut peer = Peer::ready(&gateway, place);
        peer.listen();
        let call = peer.begin_call("ask", r#"{"method":"roots/list","params":{}}"#);
        let asked = member(&peer.asked("roots/list").1, "id").unwrap();
        let answer = peer.answer(&call);
        assert!(complaint(&answer).contains("within 1.5 s"), "{answer}");
        let cancelled = value(&peer.asked("notifications/cancelled").1);
        assert_eq!(cancelled["params"]["requestId"].to_string(), asked, "{place:?}");
        assert_eq!(peer.call_text("echo", r#"{"text":"on"}"#), "on");
    }
}

#[test]
fn a_process_that_quits_as_soon_as_it_is_asked() {
    let gate = Gate::new();
    let (gateway, edge) = world_with(&[], &["--gate", &gate.argument()], &[]);
    gate.say("quit");
    for _ in 0..10 {
        for place in Place::SINGLE {
            let mut peer = Peer::open(&gateway, place);
            let answer = peer.initialize("2025-06-18", CAPABILITIES, "{}");
            assert!(member(&answer, "result").is_some(), "{answer}");
            eventually("the session is over", || peer.is_over());
        }
        for place in Place::WHOLE {
            // It may just have had the time for it.
            let answer = Peer::ready(&gateway, place).call("echo", "{}");
            let told = answer.contains("server 's' disconnected") && answer.contains("exit status 0");
            assert!(told || member(&answer, "result").is_some(), "{answer}");
        }
    }
    wait_for_processes(&edge, 0);
}

/// A client that disconnects while its process is not ready leaves nothing behind.
#[test]
fn a_client_that_leaves_early() {
    let gate = Gate::new();
    let (gateway, edge) = world_with(&[], &["--gate", &gate.argument()], &[]);
    gate.close();
    for place in Place::ALL {
        let mut peer = Peer::open(&gateway, place);
        if place.single {
            peer.begin("initialize", r#"{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{}}"#);
        } else {
            peer = Peer::ready(&gateway, place);
            peer.begin_call("echo", "{}");
        }
        wait_for_processes(&edge, 1);
        if place == Place::WHOLE[1] {
            // With this transport, the end of a connection means nothing.
            peer.end();
        } else {
            peer.hang_up();
        }
        wait_for_processes(&edge, 0);
    }
}

/// A message that arrives slowly may find its session closed.
#[test]
fn a_session_that_ended_gets_no_process() {
    let (gateway, edge) = world(&[]);
    let place = Place::WHOLE[0];
    let mut peer = Peer::ready(&gateway, place);
    let call = r#"{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{"name":"s_echo"}}"#;
    let request = text("POST", peer.endpoint(), &[&*host(gateway.address)], call);
    let (first, rest) = request.split_at(request.len() - 10);
    let mut wire = Wire::connect(gateway.address);
    wire.send(first.replacen("\r\n", "\r\nExpect: 100-continue\r\n", 1));
    assert_eq!(wire.head().unwrap().status, 100, "its session exists");
    peer.hang_up();
    eventually("the session is over", || peer.is_over());
    wire.send(rest);
    assert_eq!(wire.answer().status, 202);
    let mut other = Peer::ready(&gateway, place);
    assert_eq!([other.pid()], *processes(&edge));
}

#[test]
fn an_idle_session_ends_with_its_process() {
    let gateway = in_process::Gateway::start(&[], |limits| limits.session.idle = Duration::from_millis(300));
    let url = format!("ws://{}/mcp/register", gateway.address);
    let edge = Edge::start(&url, "s", &["--session"], &["--sessions", "isolated"]);
    edge.program.wait_for("registered: ");
    for place in [Place::WHOLE[1], Place::SINGLE[1]] {
        let mut peer = Peer::ready_at(gateway.address, place);
        peer.pid();
        wait_for_processes(&edge, 0);
        assert!(peer.is_over());
        let mut busy = Peer::ready_at(gateway.address, place);
        let call = busy.begin_call("ask", r#"{"method":"roots/list","params":{}}"#);
        let asked = member(&busy.asked("roots/list").1, "id").unwrap();
        // Not requested again, because that would count as use.
        thread::sleep(Duration::from_millis(1000));
        busy.respond(&asked, "{}");
        assert!(busy.answer(&call).contains("result"));
    }
}
