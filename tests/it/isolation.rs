//! Sessions with their own server process (`register --sessions isolated`), over both transports
//! and at both endpoints.

mod ends;
mod hostile;
mod many;
pub mod peer;

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use self::peer::{CAPABILITIES, Peer, Place, Source, text_of};
use crate::{
    directory,
    harness::{Edge, Gateway, eventually},
    wire::member,
};

fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// A gateway with an isolated server `s`.
#[track_caller]
fn world(register: &[&str]) -> (Gateway, Edge) {
    world_with(&[], &[], register)
}

#[track_caller]
fn world_with(gateway: &[&str], server: &[&str], register: &[&str]) -> (Gateway, Edge) {
    let gateway = Gateway::start(gateway);
    let edge = isolated(&gateway, server, register);
    (gateway, edge)
}

/// An isolated server `s`, registered.
#[track_caller]
fn isolated(gateway: &Gateway, server: &[&str], register: &[&str]) -> Edge {
    let server = [&["--session"], server].concat();
    let register = [&["--sessions", "isolated"], register].concat();
    let edge = gateway.edge_with("s", &server, &register);
    edge.program.wait_for("registered: ");
    edge
}

/// The processes of sessions; `server_pid` is the shared process.
fn processes(edge: &Edge) -> Vec<u32> {
    let shared = edge.server_pid();
    edge.program.offspring().into_iter().filter(|pid| *pid != shared).collect()
}

#[track_caller]
fn wait_for_processes(edge: &Edge, count: usize) {
    eventually(&format!("{count} sessions have a process"), || processes(edge).len() == count);
}

/// File that `initialize` of processes other than the shared one waits for.
struct Gate(PathBuf);

impl Gate {
    fn new() -> Self {
        let gate = Self(directory("gate").join("gate"));
        gate.open();
        gate
    }

    fn argument(&self) -> String {
        self.0.display().to_string()
    }

    fn open(&self) {
        self.say("yes");
    }

    /// The content must be complete as soon as the file exists.
    fn say(&self, word: &str) {
        let draft = self.0.with_extension("draft");
        fs::write(&draft, word).unwrap();
        fs::rename(draft, &self.0).unwrap();
    }

    fn close(&self) {
        fs::remove_file(&self.0).unwrap();
    }
}

#[test]
fn each_session_has_a_process_of_its_own() {
    let (gateway, edge) = world(&[]);
    for place in Place::ALL {
        let mut first = Peer::ready(&gateway, place);
        let mut second = Peer::ready(&gateway, place);
        if !place.single {
            assert_eq!(processes(&edge), [0; 0], "a session at the aggregate has not used it");
            first.ask("tools/list", "{}");
            first.ask("logging/setLevel", r#"{"level":"error"}"#);
            assert_eq!(processes(&edge), [0; 0]);
        }
        let pids = [first.pid(), second.pid()];
        assert!(pids[0] != pids[1] && !pids.contains(&edge.server_pid()), "{pids:?}");
        assert_eq!([first.pid(), second.pid()], pids, "{place:?}");
        let mut all = processes(&edge);
        all.sort_unstable();
        let mut expected = pids;
        expected.sort_unstable();
        assert_eq!(all, expected);
        first.end();
        eventually("its process ends", || processes(&edge) == [pids[1]]);
        assert_eq!(second.pid(), pids[1]);
        second.end();
        wait_for_processes(&edge, 0);
    }
}

#[test]
fn a_process_knows_its_client() {
    let (gateway, _edge) = world(&[]);
    let capabilities = r#"{"sampling":{"tools":{}},"x":[1.5,null]}"#;
    let info = "{\"name\":\"n\",\n\"version\":\"9\",\"odd\":true}";
    for place in Place::ALL {
        for version in ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"] {
            let mut peer = Peer::open(&gateway, place);
            let answer = peer.initialize(version, capabilities, info);
            if place.single {
                let id = member(&answer, "id").unwrap();
                let own = format!(
                    r#"{{"jsonrpc":"2.0","id":{id},"result":{{ "serverInfo":{{"name":"fake","version":"1"}}, "protocolVersion" : "{version}","capabilities":{{"tools":{{}},"logging":{{}},"resources":{{"subscribe":true}}}},"odd":[1.0,"é\u00e9"]}}}}"#
                );
                assert_eq!(answer, own, "{place:?}");
            } else {
                assert_eq!(value(&answer)["result"]["serverInfo"]["name"], "mcpport");
            }
            peer.initialized();
            let initialize_result = value(&peer.call_text("greeting", "{}"));
            let said = json!({"protocolVersion": version, "capabilities": value(capabilities), "clientInfo": value(info)});
            assert_eq!(initialize_result, said, "{place:?}");
        }
    }
}

/// Requests of servers, and the clients' responses.
const QUESTIONS: &[(&str, &str, &str)] = &[
    (
        "sampling/createMessage",
        r#"{"messages":[{"role":"user","content":{"type":"text","text":"?"}}],"maxTokens":7}"#,
        r#"{"role":"assistant","content":{"type":"text","text":"!"},"model":"m","odd":[1.0]}"#,
    ),
    (
        "elicitation/create",
        r#"{"message":"who?","requestedSchema":{"type":"object","properties":{"n":{"type":"string"}}}}"#,
        r#"{"action":"accept","content":{"n":"me"}}"#,
    ),
    (
        "elicitation/create",
        r#"{"mode":"url","elicitationId":"e1","url":"https://example.com/x","message":"go"}"#,
        r#"{"action":"decline"}"#,
    ),
    ("roots/list", "{}", r#"{"roots":[{"uri":"file:///home"}]}"#),
    ("vendor/thing", r#"{"a":1}"#, "{}"),
];

#[test]
fn servers_ask_their_client() {
    let (gateway, _edge) = world(&[]);
    for place in Place::ALL {
        let mut peer = Peer::ready(&gateway, place);
        for (method, params, result) in QUESTIONS {
            let id = peer.begin_call("ask", &format!(r#"{{"method":"{method}","params":{params}}}"#));
            let (source, asked) = peer.asked(method);
            let expected = if place.streamable { Source::Post(id.clone()) } else { Source::Stream };
            assert_eq!(source, expected);
            assert_eq!(value(&member(&asked, "params").unwrap()), value(params), "{place:?}");
            peer.respond(&member(&asked, "id").unwrap(), result);
            let answers = value(&text_of(&peer.answer(&id)));
            assert_eq!(answers[0]["result"], value(result), "{place:?}");
        }
        // A client may also decline.
        let id = peer.begin_call("ask", r#"{"method":"roots/list","params":{}}"#);
        let asked = member(&peer.asked("roots/list").1, "id").unwrap();
        peer.post(&format!(
            r#"{{"jsonrpc":"2.0","id":{asked},"error":{{"code":-7,"message":"no","data":[1]}}}}"#
        ));
        let answers = value(&text_of(&peer.answer(&id)));
        assert_eq!(answers[0]["error"], json!({"code": -7, "message": "no", "data": [1]}));
        assert_eq!(peer.rest(), [""; 0]);
    }
}

/// Every process numbers its requests from 0, and clients must not mix them up.
#[test]
fn server_requests_with_equal_ids_are_distinguished() {
    let gateway = Gateway::start(&[]);
    let _edges = ["s", "t"].map(|name| {
        let edge = gateway.edge_with(name, &["--session"], &["--sessions", "isolated"]);
        edge.program.wait_for("registered: ");
        edge
    });
    for place in Place::ALL {
        let mut peers = [Peer::ready(&gateway, place), Peer::ready(&gateway, place)];
        let mut calls: Vec<(usize, String, String)> = Vec::new();
        for (number, peer) in peers.iter_mut().enumerate() {
            for server in if place.single { &["s"][..] } else { &["s", "t"] } {
                let tool = if place.single { "ask".to_owned() } else { format!("{server}_ask") };
                let arguments = format!(r#"{{"method":"x/{server}","params":{{}},"count":3}}"#);
                let params = format!(r#"{{"name":"{tool}","arguments":{arguments}}}"#);
                calls.push((number, peer.begin("tools/call", &params), format!("x/{server}")));
            }
        }
        // Six requests with ids 0 to 2 are pending at a client of the aggregate; they are answered
        // in another order.
        let mut asked: Vec<(usize, String, String)> = Vec::new();
        for (number, _, method) in &calls {
            for _ in 0..3 {
                let id = member(&peers[*number].asked(method).1, "id").unwrap();
                asked.push((*number, id, method.clone()));
            }
        }
        for (number, id, method) in asked.iter().rev() {
            peers[*number].respond(id, &format!(r#"{{"by":{number},"to":"{method}"}}"#));
        }
        for (number, id, method) in &calls {
            let answers = value(&text_of(&peers[*number].answer(id)));
            let expected =
                |own: u64| json!({"jsonrpc": "2.0", "id": own, "result": {"by": number, "to": method}});
            assert_eq!(answers, json!([expected(0), expected(1), expected(2)]), "{place:?}");
        }
    }
}

#[test]
fn server_requests_are_cancelled_under_the_clients_id() {
    let (gateway, _edge) = world(&[]);
    for place in Place::ALL {
        let mut peer = Peer::ready(&gateway, place);
        for _ in 0..3 {
            let text = peer.call_text("retract", r#"{"method":"roots/list","params":{}}"#);
            assert_eq!(text, "retracted");
            let asked = member(&peer.asked("roots/list").1, "id").unwrap();
            let cancelled = value(&peer.asked("notifications/cancelled").1);
            assert_eq!(cancelled["params"]["requestId"].to_string(), asked);
            assert_eq!(cancelled["params"]["reason"], "never mind");
            // Too late, or for a request that was never made: it reaches nobody.
            peer.respond(&asked, r#"{"late":true}"#);
        }
        assert_eq!(peer.call_text("echo", r#"{"text":"on"}"#), "on");
    }
}

#[test]
fn unmatched_responses_are_dropped() {
    let (gateway, edge) = world(&[]);
    for place in Place::ALL {
        let (mut peer, mut other) = (Peer::ready(&gateway, place), Peer::ready(&gateway, place));
        let call = peer.begin_call("ask", r#"{"method":"roots/list","params":{}}"#);
        other.call("echo", "{}");
        let asked = member(&peer.asked("roots/list").1, "id").unwrap();
        for id in ["0", "999", "\"1\"", "-1", "1.0", "18446744073709551616", "\"x\""] {
            peer.respond(id, r#"{"forged":true}"#);
        }
        other.respond(&asked, r#"{"forged":true}"#);
        peer.respond(&asked, r#"{"mine":true}"#);
        peer.respond(&asked, r#"{"forged":true}"#);
        assert_eq!(value(&text_of(&peer.answer(&call)))[0]["result"], json!({"mine": true}));
        assert_eq!((peer.call_text("echo", "{}"), other.call_text("echo", "{}")), Default::default());
    }
    assert_eq!(edge.count("forged"), 0);
}

#[test]
fn logs_and_levels_are_private() {
    let (gateway, edge) = world(&[]);
    for place in Place::ALL {
        let mut peers = [Peer::ready(&gateway, place), Peer::ready(&gateway, place)];
        for (peer, level) in peers.iter_mut().zip(["debug", "error"]) {
            // At the aggregate, one sets its level before it uses the server, the other after.
            if level == "debug" {
                peer.call("echo", "{}");
            }
            peer.ask("logging/setLevel", &format!(r#"{{"level":"{level}"}}"#));
            assert_eq!(peer.call_text("level", "{}"), format!("Some({level:?})"), "{place:?}");
        }
        for peer in &mut peers {
            for level in ["info", "critical"] {
                peer.call("log", &format!(r#"{{"level":"{level}","text":"{level}"}}"#));
            }
        }
        for (peer, expected) in peers.iter_mut().zip([&["info", "critical"][..], &["critical"]]) {
            let said: Vec<Value> = peer.rest().iter().map(|text| value(text)).collect();
            let said: Vec<&Value> = said.iter().map(|message| &message["params"]["data"]).collect();
            assert_eq!(said, expected, "{place:?}");
        }
    }
    assert_eq!(edge.count("logging/setLevel"), 2 * Place::ALL.len());
}

#[test]
fn progress_stays_in_its_session() {
    let (gateway, _edge) = world(&[]);
    for place in Place::ALL {
        let mut peers: Vec<Peer> = (0..3).map(|_| Peer::ready(&gateway, place)).collect();
        let tool = place.tool("progress");
        let calls: Vec<String> = peers
            .iter_mut()
            .enumerate()
            .map(|(number, peer)| {
                let steps = number + 1;
                let arguments = format!(r#"{{"steps":{steps}}}"#);
                let params =
                    format!(r#"{{"name":"{tool}","arguments":{arguments},"_meta":{{"progressToken":0}}}}"#);
                peer.begin("tools/call", &params)
            })
            .collect();
        for (number, (peer, call)) in peers.iter_mut().zip(&calls).enumerate() {
            for step in 1..=number + 1 {
                let (source, message) = peer.asked("notifications/progress");
                let message = value(&message);
                assert_eq!(message["params"], json!({"progressToken": 0, "progress": step}));
                let expected = if place.streamable { Source::Post(call.clone()) } else { Source::Stream };
                assert_eq!(source, expected);
            }
            assert_eq!(text_of(&peer.answer(call)), "done");
            assert_eq!(peer.rest(), [""; 0]);
        }
    }
}

#[test]
fn calls_wait_until_the_process_is_initialized() {
    let gate = Gate::new();
    let (gateway, edge) = world_with(&[], &["--gate", &gate.argument()], &[]);
    for (round, place) in Place::WHOLE.into_iter().enumerate() {
        gate.close();
        let mut peer = Peer::ready(&gateway, place);
        let calls: Vec<String> =
            (0..5).map(|n| peer.begin_call("echo", &format!(r#"{{"text":"{n}"}}"#))).collect();
        let gone = peer.begin_call("echo", r#"{"text":"never"}"#);
        edge.wait_for("\"peer\"");
        peer.post(&format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{gone}}}}}"#
        ));
        eventually("it is asked", || edge.count("\"initialize\"") == round + 2);
        assert_eq!(edge.count("tools/call"), 6 * round);
        gate.open();
        for (n, call) in calls.iter().enumerate() {
            assert_eq!(text_of(&peer.answer(call)), n.to_string());
        }
    }
}

#[test]
fn a_process_that_is_not_initialized_fails_its_calls() {
    let gate = Gate::new();
    let (gateway, edge) = world_with(&["--timeout-run-tool", "1500ms"], &["--gate", &gate.argument()], &[]);
    gate.close();
    for place in Place::ALL {
        let mut peer = Peer::open(&gateway, place);
        let answer = peer.initialize("2025-06-18", CAPABILITIES, "{}");
        let answer = if place.single { answer } else { peer.call("echo", "{}") };
        let message = value(&answer)["error"]["message"].as_str().unwrap_or_default().to_owned();
        assert!(message.contains("server 's'"), "{place:?}: {answer}");
        assert!(message.contains("initialize timed out") || message.contains("within 1.5 s"), "{answer}");
        peer.end_if_begun();
        wait_for_processes(&edge, 0);
    }
    gate.say("no");
    for place in Place::ALL {
        let mut peer = Peer::open(&gateway, place);
        let answer = peer.initialize("2025-06-18", CAPABILITIES, "{}");
        let answer = if place.single { answer } else { peer.call("echo", "{}") };
        assert!(answer.contains("not for you"), "{place:?}: {answer}");
        peer.end_if_begun();
        wait_for_processes(&edge, 0);
    }
    // Each of these states ends.
    gate.open();
    for place in Place::ALL {
        assert_eq!(Peer::ready(&gateway, place).call_text("echo", r#"{"text":"well"}"#), "well");
    }
}
