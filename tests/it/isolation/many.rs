//! Many sessions: in turn, concurrently, and a noisy one beside quiet ones.

use std::{env, fs, thread};

use super::{processes, value, wait_for_processes, world, world_with};
use crate::{
    harness::{Gateway, Program, eventually},
    isolation::peer::{CAPABILITIES, Peer, Place, text_of},
    wire::member,
};

fn descriptors(program: &Program) -> usize {
    fs::read_dir(format!("/proc/{}/fd", program.pid())).unwrap().count()
}

/// 100 sessions, or `MCPPORT_SESSIONS` of them.
#[test]
fn nothing_is_left_of_many_sessions() {
    let rounds: usize = env::var("MCPPORT_SESSIONS").map_or(100, |count| count.parse().unwrap());
    // With room for one, a single slot that is not freed fails the test.
    let (gateway, edge) = world(&["--max-sessions", "1"]);
    let counts = || (descriptors(&gateway.program), descriptors(&edge.program));
    let mut before = counts();
    for round in 0..rounds {
        let place = Place::ALL[round % 4];
        // With an event stream, it takes a moment until its end is noticed.
        let mut peer = Peer::open(&gateway, place);
        if !place.single {
            peer.initialize("2025-06-18", CAPABILITIES, "{}");
        }
        eventually("there is room", || {
            let answer = match place.single {
                true => peer.initialize("2025-06-18", CAPABILITIES, "{}"),
                false => peer.call("echo", "{}"),
            };
            member(&answer, "result").is_some()
        });
        match round % 5 {
            0 => drop(peer.begin_call("hold", r#"{"key":"k"}"#)),
            1 => drop(peer.call("crash", "{}")),
            2 => drop(peer.begin_call("ask", r#"{"method":"roots/list","params":{}}"#)),
            3 => drop(peer.call("echo", "{}")),
            _ => {}
        }
        if round % 5 != 1 || !place.single {
            peer.end();
        }
        if round == 8 {
            // Everything that is created once exists now.
            wait_for_processes(&edge, 0);
            drop(peer);
            before = counts();
        }
    }
    wait_for_processes(&edge, 0);
    eventually(&format!("as many descriptors as before: {before:?}"), || {
        let after = counts();
        after.0 <= before.0 + 3 && after.1 <= before.1 + 3
    });
    assert_eq!(edge.program.offspring(), [edge.server_pid()]);
}

#[test]
fn sessions_that_come_and_go_at_once() {
    let (gateway, edge) = world_with(&["--threads", "4"], &[], &["--threads", "2", "--max-sessions", "64"]);
    thread::scope(|scope| {
        for number in 0..8 {
            let gateway = &gateway;
            scope.spawn(move || {
                for round in 0..10 {
                    let place = Place::ALL[(number + round) % 4];
                    let mut peer = Peer::ready(gateway, place);
                    let own = format!("{number}.{round}");
                    let text = peer.call_text("echo", &format!(r#"{{"text":"{own}"}}"#));
                    assert_eq!(text, own);
                    let call = peer.begin_call("ask", r#"{"method":"roots/list","params":{},"count":2}"#);
                    for _ in 0..2 {
                        let asked = member(&peer.asked("roots/list").1, "id").unwrap();
                        peer.respond(&asked, &format!(r#"{{"own":"{own}"}}"#));
                    }
                    let answers = value(&text_of(&peer.answer(&call)));
                    assert!((0..2).all(|n| answers[n]["result"]["own"] == *own), "{answers}");
                    match (number + round) % 3 {
                        0 => drop(peer.begin_call("crash", "{}")),
                        1 => drop(peer.begin_call("hold", r#"{"key":"k"}"#)),
                        _ => {}
                    }
                    if place.streamable {
                        // It may have ended with its process.
                        peer.try_end();
                    }
                }
            });
        }
    });
    wait_for_processes(&edge, 0);
    let mut all: Vec<Peer> = (0..64).map(|_| Peer::ready(&gateway, Place::SINGLE[1])).collect();
    assert_eq!(all[63].call_text("echo", r#"{"text":"room for all"}"#), "room for all");
}

#[test]
fn a_flood_in_one_session_does_not_stop_the_others() {
    let (gateway, edge) = world(&[]);
    let mut loud: Vec<Peer> = (0..4).map(|_| Peer::ready(&gateway, Place::SINGLE[1])).collect();
    let mut quiet = Place::ALL.map(|place| Peer::ready(&gateway, place));
    for peer in &mut quiet {
        peer.pid();
    }
    for peer in &mut loud {
        peer.begin_call("flood", r#"{"count":150000}"#);
    }
    eventually("they are loud", || edge.count("\"flood\"") == 4);
    for _ in 0..5 {
        for peer in &mut quiet {
            assert_eq!(peer.call_text("echo", r#"{"text":"hello"}"#), "hello");
        }
    }
    assert!(loud.iter_mut().any(|peer| peer.rest().is_empty()), "the flood ended too early");
}

#[test]
fn an_instance_that_does_not_read_affects_no_other() {
    let (gateway, edge) = world(&[]);
    let mut peer = Peer::ready(&gateway, Place::SINGLE[1]);
    let mut other = Peer::ready(&gateway, Place::SINGLE[1]);
    peer.begin_call("deaf", "{}");
    edge.wait_for("\"deaf\"");
    let long = format!(
        r#"{{"jsonrpc":"2.0","method":"notifications/x","params":{{"x":"{}"}}}}"#,
        "x".repeat(100_000)
    );
    let mut last = 0;
    while !edge.program.log().contains("rejected a message for session 1") {
        last += 1;
        assert!(last < 1000);
        peer.post(&long);
    }
    let answer = peer.call("echo", &format!(r#"{{"text":"{}"}}"#, "x".repeat(100_000)));
    assert!(answer.contains("does not read its input"), "{answer}");
    assert_eq!(other.call_text("echo", r#"{"text":"well"}"#), "well");
    peer.end();
    eventually("it is gone all the same", || processes(&edge).len() == 1);
}

#[test]
fn shared_and_isolated_servers_side_by_side() {
    let (gateway, edge) = world(&[]);
    let shared = gateway.edge_with("t", &["--session"], &[]);
    for place in Place::WHOLE {
        let mut peers = [Peer::ready(&gateway, place), Peer::ready(&gateway, place)];
        let mut pids = Vec::new();
        for peer in &mut peers {
            pids.push(peer.pid());
            let params = r#"{"name":"t_pid","arguments":{}}"#;
            assert_eq!(text_of(&peer.ask("tools/call", params)), shared.server_pid().to_string());
            // A shared server cannot send a client requests.
            let params = r#"{"name":"t_ask","arguments":{"method":"roots/list","params":{}}}"#;
            let answers = value(&text_of(&peer.ask("tools/call", params)));
            assert_eq!(answers[0]["error"]["code"], -32601);
            let call = peer.begin_call("ask", r#"{"method":"roots/list","params":{}}"#);
            let asked = member(&peer.asked("roots/list").1, "id").unwrap();
            peer.respond(&asked, r#"{"roots":[]}"#);
            let answers = value(&text_of(&peer.answer(&call)));
            assert_eq!(answers[0]["result"]["roots"], serde_json::json!([]));
        }
        assert_ne!(pids[0], pids[1]);
        peers[0].call("crash", "{}");
        let params = r#"{"name":"t_echo","arguments":{"text":"untouched"}}"#;
        assert_eq!(text_of(&peers[0].ask("tools/call", params)), "untouched");
        peers.iter_mut().for_each(Peer::end);
    }
    wait_for_processes(&edge, 0);
    assert_eq!(shared.program.offspring(), [shared.server_pid()]);
    let gateway: &Gateway = &gateway;
    assert!(gateway.client().tools().len() > 50);
}
