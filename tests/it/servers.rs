//! The endpoints of single servers, which behave as if there were no tunnel.

use serde_json::json;

use crate::{
    harness::{Edge, Gateway, eventually},
    session::{BOTH, Session, call, initialize_request, request, value},
    wire::{Client, Wire, ask, host, member},
};

#[test]
fn a_server_endpoint_forwards_results_unchanged() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge_with("s", &["--rich", "--label", "one", "--tool", "odd.name"], &[]);
    let _other = gateway.edge("t");
    let session = Session::open(gateway.address, "/servers/s/mcp");
    let initialize_result = &session.initialize_result;
    assert_eq!(initialize_result["serverInfo"], json!({"name": "fake", "version": "1"}));
    assert_eq!(initialize_result["instructions"], "Ask one.");
    assert_eq!(
        (&initialize_result["unheard"], &initialize_result["capabilities"]["experimental"]["odd"]["x"]),
        (&json!([1.0, "of"]), &json!(1))
    );
    let tools = session.ask("tools/list", json!({}));
    let names: Vec<&str> = tools["result"]["tools"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tool| tool["name"].as_str().unwrap())
        .collect();
    assert!(
        names.contains(&"echo") && names.contains(&"odd.name") && !names.contains(&"list_servers"),
        "{names:?}"
    );
    assert_eq!(session.call_text("odd.name", json!({})), "odd.name was called");
    assert_eq!(
        session.ask("resources/read", json!({"uri": "any://thing"}))["result"]["contents"][0]["text"],
        "any://thing of one"
    );
    assert_eq!(
        session.ask("prompts/get", json!({"name": "greet", "arguments": {"who": "me"}}))["result"]["messages"]
            [0]["content"]["text"],
        "one greets me"
    );
    let params = r#"{"a":1.0,"_meta":{"k":"\u0061"}}"#;
    let answer =
        session.post(&format!(r#"{{"jsonrpc":"2.0","id":1,"method":"vendor/echo","params":{params}}}"#));
    assert_eq!(value(&answer.body)["result"]["params"], value(params));
    assert_eq!(member(&edge.wait_for("vendor/echo"), "params").as_deref(), Some(params));
    let note = r#"{"jsonrpc":"2.0","method":"notifications/vendor","params":{"x":1.0}}"#;
    assert_eq!(session.post(note).status, 202);
    assert_eq!(edge.wait_for("notifications/vendor"), note);
    assert_eq!(session.ask("no/such", json!({}))["error"]["code"], -32601);
}

#[test]
fn a_server_is_reachable_by_both_transports() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge_with("s", &["--rich"], &[]);
    let mut old = Client::open(gateway.address, "/servers/s/sse", &[]);
    assert!(old.endpoint.starts_with("/servers/s/messages?"), "{}", old.endpoint);
    old.initialize();
    assert!(old.tools().iter().any(|tool| tool == "echo"));
    assert_eq!(old.call_text("echo", r#"{"text":"x"}"#), "x");
    let notice = r#"{"method":"notifications/vendor","params":{"x":[1]}}"#;
    old.call("notify", notice);
    assert!(old.notification("notifications/vendor").contains(r#""params":{"x":[1]}"#));
    let mut all = gateway.client();
    all.ask("ping", "{}");
    assert!(!all.rest().iter().any(|message| message.contains("vendor")));
}

#[test]
fn versions_are_not_promised_beyond_the_server() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge_with("s", &["--version", "2025-03-26"], &[]);
    for (asked, given) in [
        ("2024-11-05", "2024-11-05"),
        ("2025-03-26", "2025-03-26"),
        ("2025-11-25", "2025-03-26"),
        ("x", "2025-03-26"),
    ] {
        let session = Session::open_as(gateway.address, "/servers/s/mcp", asked, &[]);
        assert_eq!(session.version, given);
    }
}

#[test]
fn unknown_servers_get_404() {
    let gateway = Gateway::start(&[]);
    let host = host(gateway.address);
    let mut wire = Wire::connect(gateway.address);
    assert_eq!(
        ask(&mut wire, "POST", "/servers/s/mcp", &[&host, BOTH], &initialize_request("2025-11-25")).status,
        404
    );
    assert_eq!(ask(&mut wire, "GET", "/servers/s/sse", &[&host], "").status, 404);
    assert_eq!(ask(&mut wire, "GET", "/servers/s/other", &[&host], "").status, 404);
}

#[test]
fn a_session_outlives_the_servers_absence() {
    let gateway = Gateway::start(&["--resume-window", "0"]);
    let id = ["--server-id", "box"];
    let mut edge = gateway.edge_with("s", &["--rich"], &id);
    gateway.program.wait_for("server 's' offers 1 resource template");
    let session = Session::open_as(gateway.address, "/servers/s/mcp", "2025-06-18", &[]);
    let mut listening = session.listen(None);
    let mut held = session.send("POST", &[BOTH], &call(1, "hold", json!({"key": "k"})));
    edge.wait_for("hold");
    edge.program.kill();
    let failed = held.answer();
    assert_eq!((failed.status, &value(&failed.body)["error"]["code"]), (200, &json!(-32603)), "{failed:?}");
    let away = session.ask("tools/list", json!({}));
    assert_eq!(away["error"]["code"], -32603, "{away}");
    assert_eq!(session.post(&request(1, "ping", json!({}))).status, 200);
    let _back = Edge::start(&gateway.url(), "s", &["--rich"], &id);
    let mut told = Vec::new();
    while told.len() < 3 {
        told.push(listening.message()["method"].as_str().unwrap().to_owned());
    }
    told.sort();
    assert_eq!(
        told,
        ["prompts", "resources", "tools"].map(|kind| format!("notifications/{kind}/list_changed"))
    );
    assert_eq!(session.call_text("echo", json!({"text": "back"})), "back");
}

#[test]
fn old_clients_get_content_that_they_know() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge("s");
    let result = r#"{"content":[{"type":"audio","data":"QUJD","mimeType":"audio/wav"},{"type":"resource_link","uri":"a://b","name":"n"}]}"#;
    let kinds = |version: &str, path: &str, tool: &str| {
        let session = Session::open_as(gateway.address, path, version, &[]);
        let answer = session.ask("tools/call", json!({"name": tool, "arguments": {"result": result}}));
        let content = answer["result"]["content"].as_array().unwrap().clone();
        content.iter().map(|block| block["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for (path, tool) in [("/mcp", "s_raw"), ("/servers/s/mcp", "raw")] {
        assert_eq!(kinds("2024-11-05", path, tool), ["text", "text"]);
        assert_eq!(kinds("2025-03-26", path, tool), ["audio", "text"]);
        assert_eq!(kinds("2025-06-18", path, tool), ["audio", "resource_link"]);
    }
    let mut old = gateway.client();
    let answer = old.call("s_raw", &json!({"result": result}).to_string());
    assert!(answer.contains("Resource: a://b (n)"), "{answer}");
}

#[test]
fn late_progress_is_dropped() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge("s");
    let session = Session::open_as(gateway.address, "/servers/s/mcp", "2025-06-18", &[]);
    let held = session.send("POST", &[BOTH], &crate::session::call_with(5, "hold", json!({"key": "k"}), 1));
    eventually("the call is held", || session.call_text("release", json!({"key": "k"})) == "released");
    drop(held);
    let mut listening = session.listen(None);
    session.call_text("tick", json!({"key": "k", "from": 1, "to": 3, "message": ""}));
    session.call_text("notify", json!({"method": "notifications/odd", "params": {}}));
    assert_eq!(listening.message()["method"], "notifications/odd");
}
