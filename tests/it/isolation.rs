//! Sessions with a process of their own (`register --sessions isolated`), over both transports and at both endpoints.

mod peer;

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use self::peer::{Peer, Place, Source, text_of};
use crate::{
    directory,
    wire::member,
    world::{Edge, Gateway, eventually},
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

/// The processes of sessions; `server_pid` is the shared one.
fn processes(edge: &Edge) -> Vec<u32> {
    let shared = edge.server_pid();
    edge.program.offspring().into_iter().filter(|pid| *pid != shared).collect()
}

#[track_caller]
fn wait_for_processes(edge: &Edge, count: usize) {
    eventually(&format!("{count} sessions have a process"), || processes(edge).len() == count);
}

/// Where `initialize` of processes beyond the shared one waits for a word.
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

    /// The word has to be there as soon as the file is.
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
            assert_eq!(processes(&edge), [0; 0], "a session at the aggregate has not touched it");
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
            let greeting = value(&peer.call_text("greeting", "{}"));
            let said = json!({"protocolVersion": version, "capabilities": value(capabilities), "clientInfo": value(info)});
            assert_eq!(greeting, said, "{place:?}");
        }
    }
}

/// What servers ask, and what clients answer.
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
        // A client may also say no.
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
