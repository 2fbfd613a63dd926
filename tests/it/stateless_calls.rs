//! Requests of MCP 2026-07-28, without a session: routing, checks, calls to servers of both
//! protocols, questions of servers, cancellation.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::{
    harness::{Edge, Gateway, eventually},
    session::{Events, events, value},
    wire::{self, Answer, Wire, host, text},
};

const VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
const LEVEL: &str = "io.modelcontextprotocol/logLevel";

/// A client without a session.
#[derive(Clone)]
struct Client {
    address: SocketAddr,
    path: &'static str,
    /// Header lines of every request.
    lines: Vec<String>,
    /// Its capabilities.
    capabilities: Value,
    /// What else is in `_meta`.
    meta: Value,
}

impl Client {
    fn new(gateway: &Gateway, path: &'static str) -> Self {
        let (lines, capabilities, meta) = (Vec::new(), json!({}), json!({}));
        Self { address: gateway.address, path, lines, capabilities, meta }
    }

    fn with(&self, name: &str, value: Value) -> Self {
        let mut client = self.clone();
        client.meta[name] = value;
        client
    }

    fn able(&self, capabilities: Value) -> Self {
        Self { capabilities, ..self.clone() }
    }

    fn body(&self, id: impl Into<Value>, method: &str, params: &Value) -> String {
        let mut params = params.clone();
        params["_meta"] = self.meta.clone();
        params["_meta"][VERSION] = json!("2026-07-28");
        params["_meta"][CAPABILITIES] = self.capabilities.clone();
        json!({"jsonrpc": "2.0", "id": id.into(), "method": method, "params": params}).to_string()
    }

    fn headers(method: &str, params: &Value) -> Vec<String> {
        let mut lines = vec!["MCP-Protocol-Version: 2026-07-28".to_owned(), format!("Mcp-Method: {method}")];
        let name = match method {
            "tools/call" | "prompts/get" => params["name"].as_str(),
            "resources/read" => params["uri"].as_str(),
            _ => None,
        };
        lines.extend(name.map(|name| format!("Mcp-Name: {name}")));
        lines
    }

    fn send_as(&self, lines: &[String], body: &str) -> Wire {
        let mut wire = Wire::connect(self.address);
        let host = host(self.address);
        let own =
            [host.as_str(), "Content-Type: application/json", "Accept: application/json, text/event-stream"];
        let more = self.lines.iter().chain(lines).map(String::as_str);
        let lines: Vec<&str> = own.into_iter().chain(more).collect();
        wire.send(text("POST", self.path, &lines, body));
        wire
    }

    fn send(&self, id: impl Into<Value>, method: &str, params: &Value) -> Wire {
        self.send_as(&Self::headers(method, params), &self.body(id, method, params))
    }

    fn post(&self, method: &str, params: &Value) -> Answer {
        self.send("a", method, params).answer()
    }

    #[track_caller]
    fn ask(&self, method: &str, params: &Value) -> Value {
        let answer = self.post(method, params);
        assert_eq!(answer.field("content-type"), Some("application/json"), "{answer:?}");
        value(&answer.body)
    }

    #[track_caller]
    fn call(&self, tool: &str, arguments: Value) -> Value {
        self.ask("tools/call", &json!({"name": tool, "arguments": arguments}))
    }

    #[track_caller]
    fn call_text(&self, tool: &str, arguments: Value) -> String {
        let answer = self.call(tool, arguments);
        answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    fn stream(&self, id: impl Into<Value>, tool: &str, arguments: Value) -> Events {
        events(self.send(id, "tools/call", &json!({"name": tool, "arguments": arguments})))
    }
}

fn modern(gateway: &Gateway) -> Edge {
    gateway.edge_with("s", &["--era", "modern", "--rich"], &["--era", "modern"])
}

#[test]
fn every_refusal_has_its_status_and_the_id_of_its_request() {
    let gateway = Gateway::start(&[]);
    let _edge = modern(&gateway);
    let client = Client::new(&gateway, "/servers/s/mcp");
    let headers = |method: &str| Client::headers(method, &json!({}));
    let list = client.body("a", "tools/list", &json!({}));
    let other = |from: &str, to: &str| list.replace(from, to);
    let with = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    let right = headers("tools/list");
    let cases: Vec<(&str, Vec<String>, String, u16, i64)> = vec![
        ("no header of the method", right[..1].to_vec(), list.clone(), 400, -32020),
        ("no header of the version", right[1..].to_vec(), list.clone(), 400, -32020),
        ("another method", headers("tools/call"), list.clone(), 400, -32020),
        ("another version in the body", right.clone(), other("2026-07-28", "v999"), 400, -32020),
        (
            "an unknown version",
            with(&["MCP-Protocol-Version: v999", "Mcp-Method: tools/list"]),
            other("2026-07-28", "v999"),
            400,
            -32022,
        ),
        ("no capabilities", right.clone(), other(CAPABILITIES, "x"), 400, -32602),
        (
            "no envelope",
            right.clone(),
            json!({"jsonrpc": "2.0", "id": "a", "method": "tools/list"}).to_string(),
            400,
            -32602,
        ),
        ("a removed method", headers("ping"), client.body("a", "ping", &json!({})), 404, -32601),
        ("an unknown method", headers("no/such"), client.body("a", "no/such", &json!({})), 404, -32601),
        (
            "a notification with an id",
            headers("notifications/x"),
            client.body("a", "notifications/x", &json!({})),
            400,
            -32600,
        ),
        (
            "a response",
            with(&["MCP-Protocol-Version: 2026-07-28"]),
            json!({"jsonrpc": "2.0", "id": "a", "result": {}}).to_string(),
            400,
            -32600,
        ),
    ];
    for (case, lines, body, status, code) in cases {
        let answer = client.send_as(&lines, &body).answer();
        let error = value(&answer.body);
        assert_eq!(
            (answer.status, &error["error"]["code"], &error["id"]),
            (status, &json!(code), &json!("a")),
            "{case}: {answer:?}"
        );
        if code == -32022 {
            assert_eq!(error["error"]["data"], json!({"supported": ["2026-07-28"], "requested": "v999"}));
        }
    }
    let dropped = json!({"jsonrpc": "2.0", "method": "notifications/initialized"}).to_string();
    assert_eq!(client.send_as(&right[..1], &dropped).answer().status, 202);
    for method in ["GET", "DELETE"] {
        let answer = wire::request(gateway.address, method, client.path, &[&right[0]], "");
        assert_eq!((answer.status, answer.field("allow")), (405, Some("POST")), "{method}");
    }
}

#[test]
fn a_modern_server_answers_as_if_asked_directly() {
    let gateway = Gateway::start(&[]);
    let _edge = modern(&gateway);
    let client = Client::new(&gateway, "/servers/s/mcp");
    let found = client.ask("server/discover", &json!({}));
    assert_eq!(found["result"]["supportedVersions"], json!(["2026-07-28"]));
    assert_eq!(
        found["result"]["_meta"]["io.modelcontextprotocol/serverInfo"],
        json!({"name": "fake", "version": "1"})
    );
    let tools = client.ask("tools/list", &json!({}));
    assert_eq!((&tools["id"], &tools["result"]["resultType"]), (&json!("a"), &json!("complete")));
    // The server says a minute and `public`.
    assert_eq!(
        (&tools["result"]["ttlMs"], &tools["result"]["cacheScope"]),
        (&json!(30_000), &json!("private"))
    );
    // The params arrive as they were sent, but for the token.
    let meta = json!({"progressToken": "mine", "traceparent": "00-a-b-01", "vendor/x": [1, {"y": null}]});
    let mut asking = client.clone();
    asking.meta = meta;
    let sent = value(&asking.call_text("params", json!({"x": 1.0})));
    assert_eq!(sent["arguments"], json!({"x": 1.0}));
    assert_eq!(
        (&sent["_meta"]["traceparent"], &sent["_meta"]["vendor/x"]),
        (&json!("00-a-b-01"), &json!([1, {"y": null}]))
    );
    assert_eq!(sent["_meta"][CAPABILITIES], json!({}));
    assert_ne!(sent["_meta"]["progressToken"], json!("mine"));
    let missing =
        client.post("tools/call", &json!({"name": "need", "arguments": {"capability": "sampling"}}));
    assert_eq!((missing.status, &value(&missing.body)["error"]["code"]), (400, &json!(-32021)));
    let able = client.able(json!({"sampling": {}}));
    assert_eq!(able.call_text("need", json!({"capability": "sampling"})), "declared");
}

#[test]
fn equal_ids_and_tokens_of_several_clients_do_not_meet() {
    let gateway = Gateway::start(&[]);
    let _edge = modern(&gateway);
    let client = Client::new(&gateway, "/servers/s/mcp").with("progressToken", json!(1));
    let mut streams: Vec<(usize, Events)> =
        (0..8).map(|number| (number, client.stream(1, "progress", json!({"steps": number + 1})))).collect();
    for (number, events) in &mut streams {
        for step in 1..=*number + 1 {
            let progress = events.message();
            assert_eq!(progress["params"]["progressToken"], json!(1), "{progress}");
            assert_eq!(progress["params"]["progress"].as_f64(), Some(step as f64), "{progress}");
        }
        let answer = events.message();
        assert_eq!((&answer["id"], answer["result"]["resultType"].as_str()), (&json!(1), Some("complete")));
        events.ended();
    }
}

#[test]
fn closing_the_connection_cancels_at_the_server() {
    let gateway = Gateway::start(&[]);
    let _edge = modern(&gateway);
    let client = Client::new(&gateway, "/servers/s/mcp");
    let waiting = client.send(1, "tools/call", &json!({"name": "hold", "arguments": {}}));
    let counts = || value(&client.call_text("counts", json!({})));
    eventually("the call to arrive", || counts()["call hold"] == 1);
    drop(waiting);
    let cancelled = || value(&client.call_text("cancelled", json!({}))).as_array().map_or(0, Vec::len);
    eventually("the cancellation to arrive", || cancelled() == 1);
}

#[test]
fn log_messages_reach_the_request_that_wants_them() {
    let gateway = Gateway::start(&[]);
    let _edge = modern(&gateway);
    let client = Client::new(&gateway, "/servers/s/mcp");
    let log = json!({"level": "warning", "text": "hot"});
    assert_eq!(client.call_text("log", log.clone()), "not logged");
    let mut events = client.with(LEVEL, json!("info")).stream(1, "log", log.clone());
    let message = events.message();
    assert_eq!(
        (&message["method"], &message["params"]["data"]),
        (&json!("notifications/message"), &json!("hot"))
    );
    assert_eq!(events.message()["id"], json!(1));
    // One call at a time can have log messages, since they do not say to which call they belong.
    let holder =
        client.with(LEVEL, json!("debug")).send(2, "tools/call", &json!({"name": "hold", "arguments": {}}));
    let counts = || value(&client.call_text("counts", json!({})));
    eventually("the call to arrive", || counts()["call hold"] == 1);
    assert_eq!(client.with(LEVEL, json!("debug")).call_text("log", log), "not logged");
    drop(holder);
}

/// A state is bound to its call, its principal and the run of its server, and cannot be altered.
#[test]
fn a_state_answers_its_own_question_only() {
    let gateway = Gateway::start(&[
        "--auth-token",
        "client@one:first",
        "--auth-token",
        "client@two:second",
        "--auth-token",
        "register:third",
    ]);
    let edge = Edge::start(
        &gateway.url(),
        "s",
        &["--era", "modern"],
        &["--era", "modern", "--header", "Authorization: Bearer third"],
    );
    let one = {
        let mut client = Client::new(&gateway, "/servers/s/mcp").able(json!({"elicitation": {}}));
        client.lines.push("Authorization: Bearer first".into());
        client
    };
    let two = Client { lines: vec!["Authorization: Bearer second".into()], ..one.clone() };
    eventually("the server to be listed", || {
        one.post("tools/list", &json!({})).status == 200
            && one.ask("tools/list", &json!({}))["result"].is_object()
    });
    let question = one.call("input", json!({}));
    assert_eq!(question["result"]["resultType"], json!("input_required"), "{question}");
    let state = question["result"]["requestState"].as_str().unwrap().to_owned();
    assert!(!state.contains("state"), "the state of the server is sealed");
    let responses = json!({"k": {"action": "accept", "content": {"name": "x"}}});
    let retry = |client: &Client, tool: &str, state: &str| {
        let params =
            json!({"name": tool, "arguments": {}, "requestState": state, "inputResponses": responses});
        client.ask("tools/call", &params)
    };
    let counts = || value(&one.call_text("counts", json!({})));
    let altered = format!("{}{}", &state[..state.len() - 2], if state.ends_with("AA") { "BB" } else { "AA" });
    for (case, refused) in [
        ("of another principal", retry(&two, "input", &state)),
        ("altered", retry(&one, "input", &altered)),
        ("of another tool", retry(&one, "echo", &state)),
        ("made up", retry(&one, "input", "state 0 of 1")),
    ] {
        assert_eq!(refused["error"]["code"], json!(-32602), "{case}: {refused}");
    }
    assert_eq!(
        (&counts()["call input"], &counts()["call echo"]),
        (&json!(1), &Value::Null),
        "nothing was run"
    );
    let answer = retry(&one, "input", &state);
    assert_eq!(answer["result"]["resultType"], json!("complete"), "{answer}");
    // A question that the client did not declare an answer for is not passed on.
    let undeclared = one.able(json!({})).call("input", json!({}));
    assert_eq!(undeclared["error"]["code"], json!(-32603), "{undeclared}");
    // The state of a process that has ended.
    let question = one.call("input", json!({}));
    let state = question["result"]["requestState"].as_str().unwrap().to_owned();
    one.call("crash", json!({}));
    eventually("the server to be back", || one.call("counts", json!({}))["result"].is_object());
    let refused = retry(&one, "input", &state);
    assert_eq!(refused["error"]["code"], json!(-32602), "{refused}");
    drop(edge);
}

#[test]
fn a_legacy_server_serves_stateless_clients() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge_with("old", &["--rich"], &[]);
    for (path, echo) in [("/servers/old/mcp", "echo"), ("/mcp", "old_echo")] {
        let client = Client::new(&gateway, path);
        let found = client.ask("server/discover", &json!({}));
        assert_eq!(found["result"]["supportedVersions"], json!(["2026-07-28"]), "{path}");
        let tools = client.ask("tools/list", &json!({}));
        assert_eq!(
            (&tools["result"]["resultType"], &tools["result"]["cacheScope"]),
            (&json!("complete"), &json!("private"))
        );
        assert!(
            tools["result"]["tools"].as_array().unwrap().iter().any(|tool| tool["name"] == echo),
            "{tools}"
        );
        let answer = client.call(echo, json!({"text": "hi"}));
        assert_eq!(answer["result"]["content"][0]["text"], json!("hi"), "{answer}");
        assert_eq!(answer["result"]["resultType"], json!("complete"));
        let unknown = client.post("no/such", &json!({}));
        assert_eq!((unknown.status, &value(&unknown.body)["error"]["code"]), (404, &json!(-32601)));
    }
}

#[test]
fn marked_parameters_are_compared_with_their_header_fields() {
    let gateway = Gateway::start(&[]);
    let schema = r#"'{"type":"object","properties":{"text":{"type":"string","x-mcp-header":"Text"}}}'"#;
    let server = ["--era", "modern", "--tool", "routed", "--schema", "routed", schema];
    let _edge = gateway.edge_with("s", &server, &["--era", "modern"]);
    let client = Client::new(&gateway, "/servers/s/mcp");
    let call = |client: &Client, tool: &str, text: &str, fields: &[&str]| {
        let params = json!({"name": tool, "arguments": {"text": text}});
        let mut lines = Client::headers("tools/call", &params);
        lines.extend(fields.iter().map(ToString::to_string));
        let answer = client.send_as(&lines, &client.body(1, "tools/call", &params)).answer();
        (answer.status, value(&answer.body)["error"]["code"].as_i64())
    };
    for (text, fields, expected) in [
        ("a", &["Mcp-Param-Text: a"][..], (200, None)),
        ("ä", &["Mcp-Param-Text: =?base64?w6Q=?="], (200, None)),
        ("a", &["Mcp-Param-Text: b"], (400, Some(-32020))),
        ("a", &[], (400, Some(-32020))),
        ("a", &["Mcp-Param-Text: a", "Mcp-Param-Text: a"], (400, Some(-32020))),
        ("a", &["mcp-param-text: a", "Mcp-Param-Other: b"], (200, None)),
    ] {
        assert_eq!(call(&client, "routed", text, fields), expected, "{text} {fields:?}");
    }
    assert_eq!(call(&client, "echo", "a", &["Mcp-Param-Text: b"]), (200, None));
    let listed = |client: &Client| {
        let tools = client.ask("tools/list", &json!({}));
        tools["result"]["tools"].to_string().contains("x-mcp-header")
    };
    assert!(listed(&client));
    // Of all servers, tools have other names and no marks.
    let every = Client::new(&gateway, "/mcp");
    assert!(!listed(&every));
    assert_eq!(call(&every, "s_routed", "a", &[]), (200, None));
}
