//! Many clients and servers at once: each gets exactly its own messages, and one that misbehaves
//! harms no other.

use std::{collections::HashMap, thread};

use serde_json::Value;

use crate::{
    harness::{Edge, Gateway},
    wire::{Client, Wire, host, member},
};

/// The expected response to a call.
#[derive(Debug)]
enum Expected {
    Text(String),
    Error(String),
}

/// A small random number generator with a fixed seed.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

/// Returns a request for a random tool of a random server: its text, the expected response, and the
/// number of progress notifications before it.
fn call(dice: &mut Dice, servers: usize, client: usize, id: usize) -> (String, Expected, usize) {
    let server = dice.throw(servers);
    let own = format!("client {client} call {id} server {server}");
    let (tool, arguments, expected, steps) = match dice.throw(8) {
        0 => ("fail", format!(r#"{{"code":-5,"message":"{own}"}}"#), Expected::Error(own), 0),
        1 => {
            let arguments = format!(r#"{{"ms":{},"text":"{own}"}}"#, dice.throw(5));
            ("sleep", arguments, Expected::Text("slept".into()), 0)
        }
        2 => ("progress", r#"{"steps":2}"#.into(), Expected::Text("done".into()), 2),
        3 => {
            let text = own.repeat(50);
            ("echo", format!(r#"{{"text":"{text}"}}"#), Expected::Text(text), 0)
        }
        _ => ("echo", format!(r#"{{"text":"{own}"}}"#), Expected::Text(own), 0),
    };
    // All clients use the same ids and the same progress tokens.
    let text = format!(
        r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"s{server}_{tool}","arguments":{arguments},"_meta":{{"progressToken":{id}}}}}}}"#
    );
    (text, expected, steps)
}

#[track_caller]
fn check(message: &str, expected: &Expected) {
    let value: Value = serde_json::from_str(message).unwrap();
    match expected {
        Expected::Text(text) => assert_eq!(value["result"]["content"][0]["text"], **text, "{message}"),
        Expected::Error(text) => assert_eq!(value["error"]["message"], **text, "{message}"),
    }
}

/// One client makes `calls` calls, `max` at a time, over one connection for its messages.
fn work(gateway: &Gateway, client: usize, servers: usize, calls: usize, max: usize) {
    let mut dice = Dice(client as u64 + 1);
    let mut session = gateway.client();
    let mut posts = Wire::connect(gateway.address);
    let own = host(gateway.address);
    let mut waiting: HashMap<String, (Expected, usize)> = HashMap::new();
    let (mut begun, mut done) = (0, 0);
    while done < calls {
        if begun < calls && waiting.len() < max {
            let (text, expected, steps) = call(&mut dice, servers, client, begun);
            waiting.insert(begun.to_string(), (expected, steps));
            // A gateway serves only this many requests on one connection.
            if begun % 500 == 499 {
                posts = Wire::connect(gateway.address);
            }
            assert_eq!(crate::wire::ask(&mut posts, "POST", &session.endpoint, &[&own], &text).status, 202);
            begun += 1;
            continue;
        }
        let message = session.message();
        match member(&message, "id") {
            Some(id) => {
                let (expected, steps) =
                    waiting.remove(&id).unwrap_or_else(|| panic!("unexpected response: {message}"));
                assert_eq!(steps, 0, "progress is lost: {message}");
                check(&message, &expected);
                done += 1;
            }
            None => {
                let params = member(&message, "params").unwrap_or_default();
                let token = member(&params, "progressToken").unwrap_or_default();
                let (_, steps) =
                    waiting.get_mut(&token).unwrap_or_else(|| panic!("unexpected progress: {message}"));
                *steps -= 1;
            }
        }
    }
}

#[track_caller]
fn crowd(clients: usize, servers: usize, calls: usize, max: usize, arguments: &[&str]) {
    let gateway = Gateway::start(arguments);
    let edges: Vec<Edge> = (0..servers).map(|number| gateway.edge(&format!("s{number}"))).collect();
    thread::scope(|scope| {
        for client in 0..clients {
            let gateway = &gateway;
            scope.spawn(move || work(gateway, client, servers, calls, max));
        }
    });
    // No message was lost or sent twice.
    let asked: usize = edges.iter().map(|edge| edge.count("\"tools/call\"")).sum();
    assert_eq!(asked, clients * calls);
}

#[test]
fn eight_clients_and_four_servers_get_their_own_answers() {
    crowd(8, 4, 1250, 16, &[]);
}

#[test]
fn many_clients_with_a_few_calls_each_get_their_own_answers() {
    crowd(32, 1, 16, 4, &["--threads", "4"]);
}

#[test]
fn a_slow_client_is_cut_off_and_delays_no_other() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge("s");
    let mut deaf = gateway.client();
    let mut other = gateway.client();
    // More than its queue and all buffers on the way hold; it reads nothing meanwhile.
    for _ in 0..40 {
        deaf.begin_call("s_big", r#"{"bytes":900000}"#);
        assert_eq!(other.call_text("s_echo", r#"{"text":"quick"}"#), "quick");
    }
    gateway.program.wait_for("does not read; closing its stream");
    assert_eq!(other.call_text("s_echo", r#"{"text":"still here"}"#), "still here");
    deaf.ended();
}

#[test]
fn many_edges_come_at_once() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.client();
    let edges: Vec<Edge> =
        (0..20).map(|number| Edge::start(&gateway.url(), &format!("s{number}"), &[], &[])).collect();
    client.tools_until(|tools| tools.iter().filter(|tool| tool.ends_with("_echo")).count() == edges.len());
    for (number, edge) in edges.iter().enumerate() {
        assert_eq!(client.call_text(&format!("s{number}_pid"), "{}"), edge.server_pid().to_string());
    }
}

#[test]
fn foreign_text_makes_no_lines_in_a_log() {
    let gateway = Gateway::start(&["--debug"]);
    let edge = gateway.edge_with("s", &["--shout"], &["--log-level", "DEBUG"]);
    let mut client = Client::open(gateway.address, "/sse", &[]);
    client.ask("a\\nforged line\\u001b[31m\\r", "{}");
    client.call("a\\nforged line", "{}");
    client.initialize();
    let long = "l".repeat(10_000);
    client.ask(&long, "{}");
    edge.program.wait_for("shouted");
    for program in [&gateway.program, &edge.program] {
        for line in program.log().lines() {
            assert!(line.starts_with("20") && line.contains("Z ["), "not a log line: {line:?}");
            assert!(!line.contains(|character: char| character.is_control()), "{line:?}");
            assert!(line.len() < 600, "{} bytes: {line:?}", line.len());
        }
    }
}
