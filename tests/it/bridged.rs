//! Clients that begin with `initialize`, over both transports and at both endpoints, at servers that
//! speak MCP 2026-07-28 only.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    harness::{Edge, Gateway, eventually},
    isolation::peer::{Peer, Place, Source, text_of},
    session::value,
    wire::member,
};

const PREFIX: &str = "io.modelcontextprotocol";

/// The capabilities of a client that can be asked everything.
const ALL: &str = r#"{"sampling":{},"elicitation":{"form":{},"url":{}},"roots":{"listChanged":true}}"#;

/// A gateway with a modern server `s`.
#[track_caller]
fn world(server: &[&str], register: &[&str]) -> (Gateway, Edge) {
    let gateway = Gateway::start(&[]);
    let server = [&["--era", "modern", "--rich"], server].concat();
    let register = [&["--era", "modern"], register].concat();
    let edge = gateway.edge_with("s", &server, &register);
    edge.program.wait_for("registered: ");
    (gateway, edge)
}

/// A client of this version with these capabilities.
#[track_caller]
fn peer(gateway: &Gateway, place: Place, version: &str, capabilities: &str) -> Peer {
    let mut peer = Peer::open(gateway, place);
    let answer = peer.initialize(version, capabilities, r#"{"name":"peer","version":"1"}"#);
    assert_eq!(value(&answer)["result"]["protocolVersion"], version, "{answer}");
    peer.initialized();
    peer
}

fn elicitation(message: &str) -> Value {
    let schema = json!({"type": "object", "properties": {"name": {"type": "string"}}});
    let params = json!({"mode": "form", "message": message, "requestedSchema": schema});
    json!({"method": "elicitation/create", "params": params})
}

/// Waits for a request of the server, and returns the stream that it came on, its id and its params.
#[track_caller]
fn asked(peer: &mut Peer, method: &str) -> (Source, String, Value) {
    let (source, text) = peer.asked(method);
    (source, member(&text, "id").unwrap(), value(&text)["params"].clone())
}

#[test]
fn sessions_use_a_modern_server_as_one_of_theirs() {
    let (gateway, edge) = world(&["--label", "l"], &[]);
    for version in ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"] {
        for place in Place::ALL {
            let mut peer = Peer::open(&gateway, place);
            let answer = peer.initialize(version, "{}", r#"{"name":"peer","version":"1"}"#);
            let result = &value(&answer)["result"];
            assert_eq!(result["protocolVersion"], version);
            assert!(result["capabilities"]["tools"].is_object(), "{answer}");
            assert_eq!(result["capabilities"].get("tasks"), None, "{answer}");
            assert!(result["instructions"].as_str().unwrap().contains("Ask l."), "{answer}");
            peer.initialized();
            assert_eq!(value(&peer.ask("ping", "{}"))["result"], json!({}));
            for (method, list) in [
                ("tools/list", "tools"),
                ("prompts/list", "prompts"),
                ("resources/list", "resources"),
                ("resources/templates/list", "resourceTemplates"),
            ] {
                let listed = peer.ask(method, r#"{"cursor":""}"#);
                assert!(value(&listed)["result"][list].is_array(), "{listed}");
            }
            assert_eq!(peer.call_text("echo", r#"{"text":"x"}"#), "x");
            let greet = place.tool("greet");
            let prompt = peer.ask("prompts/get", &json!({"name": greet}).to_string());
            assert!(value(&prompt)["result"]["messages"].is_array(), "{prompt}");
            let read = peer.ask("resources/read", r#"{"uri":"a://one"}"#);
            assert!(value(&read)["result"]["contents"].is_array(), "{read}");
            let none = if place.single { "none" } else { "s+none" };
            let none = peer.ask("resources/read", &json!({"uri": none}).to_string());
            assert_eq!(value(&none)["error"]["code"], -32002, "{none}");
            let reference = json!({"type": "ref/prompt", "name": greet});
            let params = json!({"ref": reference, "argument": {"name": "a", "value": "v"}});
            let completed = peer.ask("completion/complete", &params.to_string());
            assert_eq!(value(&completed)["result"]["completion"]["values"], json!(["l greetv"]));
            assert_eq!(value(&peer.ask("no/such", "{}"))["error"]["code"], -32601);
            assert_eq!(value(&peer.ask("logging/setLevel", r#"{"level":"error"}"#))["result"], json!({}));
        }
    }
    for never in ["initialize", "notifications/initialized", "ping", "setLevel"] {
        assert_eq!(edge.count(&format!("\"{never}")), 0, "{never}");
    }
}

#[test]
fn requests_of_sessions_get_an_envelope() {
    let (gateway, edge) = world(&[], &[]);
    let key = |name: &str| format!("{PREFIX}/{name}");
    for place in Place::ALL {
        let mut peer = peer(&gateway, place, "2025-06-18", ALL);
        let mut forged = json!({
            key("clientCapabilities"): {"tasks": {}},
            key("logLevel"): "debug",
            key("other"): 1,
            "traceparent": "00",
        });
        if !place.streamable {
            // Otherwise it would be a stateless request.
            forged[key("protocolVersion")] = json!("1999-01-01");
        }
        let params = json!({
            "name": place.tool("params"),
            "requestState": "stolen",
            "inputResponses": {"k": 1},
            "arguments": {"x": 1.0},
            "_meta": forged,
        });
        let got = value(&text_of(&peer.ask("tools/call", &params.to_string())));
        let declared = json!({"sampling": {}, "elicitation": {"form": {}}, "roots": {}});
        let meta = json!({
            key("protocolVersion"): "2026-07-28",
            key("clientCapabilities"): declared,
            key("clientInfo"): {"name": "peer", "version": "1"},
            "traceparent": "00",
        });
        assert_eq!(got, json!({"name": "params", "arguments": {"x": 1.0}, "_meta": meta}), "{place:?}");
        let params = format!(
            r#"{{"name":"{}","arguments":{{"steps":3}},"_meta":{{"progressToken":"mine"}}}}"#,
            place.tool("progress")
        );
        let call = peer.begin("tools/call", &params);
        for step in 1..=3 {
            let (_, text) = peer.asked("notifications/progress");
            assert_eq!(value(&text)["params"], json!({"progressToken": "mine", "progress": step}));
        }
        assert_eq!(text_of(&peer.answer(&call)), "done");
        // What only a client with `initialize` has to say.
        for method in ["notifications/progress", "notifications/roots/list_changed", "notifications/odd"] {
            peer.post(&format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{{"progressToken":1}}}}"#));
        }
        assert_eq!(peer.call_text("echo", r#"{"text":"end"}"#), "end");
    }
    assert_eq!(edge.count("\"notifications/"), 0);
}

#[test]
fn log_messages_come_at_the_level_of_the_session() {
    let (gateway, _edge) = world(&[], &[]);
    for place in Place::ALL {
        let mut quiet = peer(&gateway, place, "2025-06-18", "{}");
        let mut peer = peer(&gateway, place, "2025-06-18", "{}");
        let log = |level: &str| format!(r#"{{"level":"{level}","text":"{level}"}}"#);
        peer.ask("logging/setLevel", r#"{"level":"warning"}"#);
        assert_eq!(quiet.call_text("log", &log("emergency")), "not logged");
        assert_eq!(peer.call_text("log", &log("info")), "not logged");
        let call = peer.begin_call("log", &log("error"));
        let (source, text) = peer.asked("notifications/message");
        assert_eq!(value(&text)["params"]["data"], "error");
        assert_eq!(source, if place.streamable { Source::Post(call.clone()) } else { Source::Stream });
        assert_eq!(text_of(&peer.answer(&call)), "logged");
        // While one call may have messages, no other does: they do not say whose they are.
        let held = peer.begin_call("hold", r#"{"key":"k"}"#);
        eventually("the slot is taken", || peer.call_text("log", &log("error")) == "not logged");
        assert_eq!(peer.call_text("release", r#"{"key":"k"}"#), "released");
        assert_eq!(text_of(&peer.answer(&held)), "k");
        assert_eq!(peer.call_text("log", &log("error")), "logged");
        let _ = peer.asked("notifications/message");
        assert!(quiet.rest().iter().chain(&peer.rest()).all(|text| !text.contains("notifications/message")));
    }
}

#[test]
fn questions_become_requests_to_the_client() {
    let (gateway, _edge) = world(&[], &[]);
    for place in Place::ALL {
        let mut peer = peer(&gateway, place, "2025-11-25", ALL);
        let url = json!({"mode": "url", "message": "visit", "url": "https://x.example/"});
        let requests = json!({
            "form": elicitation("name?"),
            "url": {"method": "elicitation/create", "params": url},
            "ask \"model\"": {"method": "sampling/createMessage", "params": {"messages": [], "maxTokens": 9}},
            "roots": {"method": "roots/list"},
        });
        let call = peer.begin_call("input", &json!({"requests": requests, "rounds": 2}).to_string());
        let source = if place.streamable { Source::Post(call.clone()) } else { Source::Stream };
        let label = if place.single { "" } else { "[s] " };
        let mut elicitations = Vec::new();
        for round in 0..2 {
            let mut ids = BTreeSet::new();
            for _ in 0..2 {
                let (from, id, params) = asked(&mut peer, "elicitation/create");
                assert_eq!(from, source);
                if params["mode"] == "url" {
                    assert_eq!(params["message"], format!("{label}visit"));
                    elicitations.push(params["elicitationId"].as_str().unwrap().to_owned());
                    peer.respond(&id, r#"{"action":"accept"}"#);
                } else {
                    assert_eq!(params, {
                        let mut params = elicitation(&format!("{label}name?"))["params"].clone();
                        params["mode"] = json!("form");
                        params
                    });
                    peer.respond(&id, &format!(r#"{{"action":"accept","content":{{"name":"n{round}"}}}}"#));
                }
                ids.insert(id);
            }
            let (_, id, params) = asked(&mut peer, "sampling/createMessage");
            assert_eq!(params, json!({"messages": [], "maxTokens": 9}));
            peer.respond(&id, r#"{"role":"assistant","content":[]}"#);
            ids.insert(id);
            let (_, id, params) = asked(&mut peer, "roots/list");
            assert_eq!(params, json!({}));
            peer.respond(&id, r#"{"roots":[]}"#);
            ids.insert(id);
            assert_eq!(ids.len(), 4);
        }
        let answers = |round: usize| {
            json!({
                "form": {"action": "accept", "content": {"name": format!("n{round}")}},
                "url": {"action": "accept"},
                "ask \"model\"": {"role": "assistant", "content": []},
                "roots": {"roots": []},
            })
        };
        for id in &elicitations {
            let (_, text) = peer.asked("notifications/elicitation/complete");
            assert_eq!(value(&text)["params"], json!({"elicitationId": id}));
        }
        let answer = peer.answer(&call);
        assert_eq!(value(&text_of(&answer)), json!([answers(0), answers(1)]));
        assert_eq!(elicitations.iter().collect::<BTreeSet<_>>().len(), 2);
        // Also of prompts and resources.
        for (method, params) in [
            ("prompts/get", json!({"name": place.tool("input")})),
            ("resources/read", json!({"uri": "input://x"})),
        ] {
            if method == "resources/read" && !place.single {
                continue;
            }
            let call = peer.begin(method, &params.to_string());
            let (_, id, _) = asked(&mut peer, "elicitation/create");
            peer.respond(&id, r#"{"action":"decline"}"#);
            assert!(peer.answer(&call).contains("decline"), "{method}");
        }
        assert_eq!(peer.rest(), [""; 0], "{place:?}");
    }
    let mut peer = peer(&gateway, Place::ALL[1], "2025-06-18", "{}");
    let counts = value(&peer.call_text("counts", "{}"));
    assert_eq!(counts["input complete"], 4 + 4 + 2, "{counts}");
}

/// Each session is asked what its own call needs, and its answer goes to that call.
#[test]
fn sessions_that_are_asked_at_once_are_distinguished() {
    let (gateway, edge) = world(&[], &[]);
    let mut peers: Vec<(Peer, String)> = (0..8)
        .map(|number: usize| {
            let mut peer = peer(&gateway, Place::ALL[number % 4], "2025-06-18", ALL);
            let requests = json!({"k": elicitation(&format!("who are you, {number}?"))});
            let call = peer.begin_call("input", &json!({"requests": requests, "rounds": 3}).to_string());
            (peer, call)
        })
        .collect();
    for round in 0..3 {
        for (number, (peer, _)) in peers.iter_mut().enumerate().rev() {
            let (_, id, params) = asked(peer, "elicitation/create");
            assert!(params["message"].as_str().unwrap().ends_with(&format!("you, {number}?")), "{params}");
            peer.respond(&id, &format!(r#"{{"by":{number},"round":{round}}}"#));
        }
    }
    for (number, (peer, call)) in peers.iter_mut().enumerate() {
        let by = |round: usize| json!({"k": {"by": number, "round": round}});
        assert_eq!(value(&text_of(&peer.answer(call))), json!([by(0), by(1), by(2)]));
        assert_eq!(peer.rest(), [""; 0]);
    }
    assert_eq!(edge.count("inputResponses"), 8 * 3);
}

#[test]
fn state_and_answers_are_sent_back_as_the_server_wants_them() {
    let (gateway, edge) = world(&[], &[]);
    for place in Place::ALL {
        let mut peer = peer(&gateway, place, "2025-06-18", ALL);
        // State alone.
        assert_eq!(peer.call_text("input", r#"{"requests":{}}"#), "[{}]");
        // No state.
        let call = peer.begin_call("input", r#"{"stateless":true}"#);
        let (_, id, _) = asked(&mut peer, "elicitation/create");
        peer.respond(&id, "{\"action\":\"accept\",\n\"content\":{\"name\":\"\u{e9}\"}}");
        let answer = json!([{"k": {"action": "accept", "content": {"name": "\u{e9}"}}}]);
        assert_eq!(value(&text_of(&peer.answer(&call))), answer);
        // A large state, and a progress token.
        let params = json!({
            "name": place.tool("input"),
            "arguments": {"pad": 60_000},
            "_meta": {"progressToken": "mine"},
        });
        let call = peer.begin("tools/call", &params.to_string());
        let (_, id, _) = asked(&mut peer, "elicitation/create");
        peer.respond(&id, r#"{"action":"cancel"}"#);
        assert_eq!(value(&text_of(&peer.answer(&call))), json!([{"k": {"action": "cancel"}}]));
    }
    for line in edge.got().iter().filter(|line| line.contains("\"progressToken\"")) {
        let message = value(line);
        assert_eq!(message["params"]["_meta"]["progressToken"], message["id"]);
    }
}

#[test]
fn clients_that_cannot_be_asked_get_a_reason() {
    let (gateway, edge) = world(&[], &[]);
    let tools = json!({"method": "sampling/createMessage", "params": {"tools": []}});
    let url = json!({"method": "elicitation/create", "params": {"mode": "url", "message": "", "url": "u:"}});
    let roots = json!({"method": "roots/list"});
    let many: serde_json::Map<String, Value> =
        (0..9).map(|number| (number.to_string(), roots.clone())).collect();
    for place in Place::ALL {
        for (version, capabilities, requests, reason) in [
            ("2025-06-18", "{}", json!({"k": roots}), "declared nothing"),
            ("2025-03-26", ALL, json!({"k": elicitation("m")}), "asked for elicitation with a form"),
            ("2025-06-18", ALL, json!({"f": elicitation("m"), "u": url}), "asked for elicitation at a URL"),
            ("2025-06-18", ALL, json!({"k": tools}), "asked for sampling with tools"),
            ("2025-11-25", r#"{"roots":{}}"#, json!({"f": elicitation("m"), "r": roots}), "with a form"),
            ("2025-06-18", ALL, json!({"k": {"method": "x/y"}}), "invalid input_required result"),
            ("2025-06-18", ALL, Value::Object(many.clone()), "too many questions at once"),
        ] {
            let mut peer = peer(&gateway, place, version, capabilities);
            let answer = value(&peer.call("input", &json!({"requests": requests}).to_string()));
            assert_eq!(answer["result"]["isError"], true, "{answer}");
            let text = answer["result"]["content"][0]["text"].as_str().unwrap();
            assert!(text.contains(reason), "{text}");
            assert_eq!(peer.rest(), [""; 0], "nothing is asked");
            let plan = json!({"requests": requests}).to_string();
            let params = json!({"name": place.tool("input"), "arguments": {"plan": plan}});
            let answer = value(&peer.ask("prompts/get", &params.to_string()));
            assert_eq!(answer["error"]["code"], -32603, "{answer}");
        }
        // State alone asks nothing of the client, but there is nothing to keep it for.
        let mut peer = peer(&gateway, place, "2025-06-18", "{}");
        let answer = value(&peer.call("input", r#"{"requests":{}}"#));
        assert_eq!(answer["result"]["isError"], true, "{answer}");
        let needed = value(&peer.call("need", r#"{"capability":"roots"}"#));
        assert_eq!(needed["result"]["isError"], true, "{needed}");
    }
    assert_eq!(edge.count("inputResponses"), 0);
}

#[test]
fn errors_of_the_client_and_endless_rounds_end_the_call() {
    let (gateway, _edge) = world(&[], &[]);
    for place in Place::ALL {
        let mut peer = peer(&gateway, place, "2025-06-18", ALL);
        let requests = json!({"a": elicitation("m"), "b": {"method": "roots/list"}});
        let call = peer.begin_call("input", &json!({"requests": requests}).to_string());
        let (_, open, _) = asked(&mut peer, "roots/list");
        let (_, id, _) = asked(&mut peer, "elicitation/create");
        peer.post(&format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-1,"message":"no"}}}}"#));
        let answer = value(&peer.answer(&call));
        let text = answer["result"]["content"][0]["text"].as_str().unwrap();
        assert!(answer["result"]["isError"] == true && text.contains("with an error"), "{answer}");
        let (_, text) = peer.asked("notifications/cancelled");
        assert_eq!(value(&text)["params"]["requestId"].to_string(), open);
        peer.respond(&open, r#"{"roots":[]}"#);
        let call = peer.begin_call("input", r#"{"rounds":99}"#);
        for _ in 0..10 {
            let (_, id, _) = asked(&mut peer, "elicitation/create");
            peer.respond(&id, r#"{"action":"accept"}"#);
        }
        assert!(text_of(&peer.answer(&call)).contains("too many times"));
        assert_eq!(peer.rest(), [""; 0]);
        assert_eq!(peer.call_text("echo", r#"{"text":"on"}"#), "on");
    }
}

#[test]
fn cancelled_calls_are_not_sent_again() {
    let (gateway, edge) = world(&[], &[]);
    for place in Place::ALL {
        let mut peer = peer(&gateway, place, "2025-06-18", ALL);
        let call = peer.begin_call("input", "{}");
        let (_, id, _) = asked(&mut peer, "elicitation/create");
        let params = json!({"requestId": value(&call)});
        peer.post(
            &json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}).to_string(),
        );
        let (_, text) = peer.asked("notifications/cancelled");
        assert_eq!(value(&text)["params"]["requestId"].to_string(), id);
        if place.streamable {
            assert_eq!(value(&peer.answer(&call))["error"]["code"], -32800);
        }
        peer.respond(&id, r#"{"action":"accept"}"#);
        // The session ends while its client is asked.
        peer.begin_call("input", "{}");
        asked(&mut peer, "elicitation/create");
        peer.end();
    }
    assert_eq!((edge.count("inputResponses"), edge.count("notifications/cancelled")), (0, 0));
}

/// Each restart of the server takes longer than the one before.
#[test]
fn questions_end_with_their_server() {
    let (gateway, mut edge) = world(&[], &["--restart", "always"]);
    for place in Place::SINGLE {
        let mut peer = peer(&gateway, place, "2025-06-18", ALL);
        let mut other = peer_at(&gateway, place);
        let call = peer.begin_call("input", "{}");
        let (_, id, _) = asked(&mut peer, "elicitation/create");
        let crash = value(&other.call("crash", "{}"));
        assert_eq!(crash["error"]["code"], -32603, "{crash}");
        let answer = value(&peer.answer(&call));
        assert_eq!(answer["error"]["code"], -32603, "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains("restarted"), "{answer}");
        let (_, text) = peer.asked("notifications/cancelled");
        assert_eq!(value(&text)["params"]["requestId"].to_string(), id);
        peer.respond(&id, r#"{"action":"accept"}"#);
        // The session goes on.
        let call = peer.begin_call("input", "{}");
        let (_, id, _) = asked(&mut peer, "elicitation/create");
        peer.respond(&id, r#"{"action":"accept"}"#);
        assert!(text_of(&peer.answer(&call)).contains("accept"));
    }
    let mut peer = peer(&gateway, Place::ALL[0], "2025-06-18", ALL);
    let call = peer.begin_call("input", "{}");
    asked(&mut peer, "elicitation/create");
    edge.program.stop();
    assert_eq!(value(&peer.answer(&call))["error"]["code"], -32603);
}

#[track_caller]
fn peer_at(gateway: &Gateway, place: Place) -> Peer {
    peer(gateway, place, "2025-06-18", "{}")
}
