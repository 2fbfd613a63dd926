//! The fake server as a server of MCP 2026-07-28: what the other tests rely on, over its stdio.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::harness::{TIMEOUT, fake_server};

const PREFIX: &str = "io.modelcontextprotocol";

/// A fake server and its output.
struct Fake {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<Value>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Fake {
    fn start(flags: &[&str]) -> Self {
        let mut command = Command::new(fake_server());
        let command = command.args(flags).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str(&line).unwrap_or(Value::String(line)));
            }
        });
        Self { stdin: child.stdin.take().unwrap(), child, lines }
    }

    fn send(&mut self, message: &Value) {
        writeln!(self.stdin, "{message}").unwrap();
    }

    #[track_caller]
    fn next(&self) -> Value {
        self.lines.recv_timeout(TIMEOUT).expect("a line of the server")
    }

    /// Sends a request with an envelope, and returns what comes up to its response.
    fn all(&mut self, id: &Value, method: &str, params: Value) -> Vec<Value> {
        self.send(&request(id, method, params));
        let mut got = vec![self.next()];
        while got.last().unwrap()["id"] != *id {
            got.push(self.next());
        }
        got
    }

    /// The response to a request with an envelope.
    fn ask(&mut self, id: u64, method: &str, params: Value) -> Value {
        self.all(&json!(id), method, params).pop().unwrap()
    }

    fn call(&mut self, id: u64, tool: &str, arguments: Value) -> Value {
        self.ask(id, "tools/call", json!({"name": tool, "arguments": arguments}))
    }

    /// The text of a tool's result.
    fn text(&mut self, id: u64, tool: &str, arguments: Value) -> String {
        text(&self.call(id, tool, arguments)).to_owned()
    }
}

fn text(response: &Value) -> &str {
    response["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{response}"))
}

/// A request with an envelope; `params` may have a `_meta`.
fn request(id: &Value, method: &str, mut params: Value) -> Value {
    params["_meta"][format!("{PREFIX}/protocolVersion")] = json!("2026-07-28");
    if params["_meta"].get(format!("{PREFIX}/clientCapabilities")).is_none() {
        params["_meta"][format!("{PREFIX}/clientCapabilities")] = json!({});
    }
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
}

fn initialize(id: u64) -> Value {
    let params = json!({"protocolVersion": "2025-11-25", "capabilities": {}});
    json!({"jsonrpc": "2.0", "id": id, "method": "initialize", "params": params})
}

#[test]
fn results_have_a_type_and_cache_fields() {
    let mut fake = Fake::start(&["--era", "modern", "--rich", "--label", "l", "--extension", "x/y"]);
    let discovered = &fake.ask(1, "server/discover", json!({}))["result"];
    assert_eq!(discovered["supportedVersions"], json!(["2026-07-28"]));
    assert_eq!(discovered["capabilities"]["extensions"], json!({"x/y": {}}));
    for (id, method, params, cached) in [
        (2, "server/discover", json!({}), true),
        (3, "tools/list", json!({}), true),
        (4, "resources/read", json!({"uri": "a://one"}), true),
        (5, "prompts/get", json!({"name": "greet"}), false),
        (6, "tools/call", json!({"name": "echo", "arguments": {"text": "x"}}), false),
        (7, "tools/call", json!({"name": "is_error"}), false),
    ] {
        let result = &fake.ask(id, method, params)["result"];
        assert_eq!(result["resultType"], "complete", "{method}");
        assert_eq!(result["_meta"][format!("{PREFIX}/serverInfo")]["name"], "fake", "{method}");
        assert_eq!(
            (result["ttlMs"].is_u64(), result["cacheScope"] == "public"),
            (cached, cached),
            "{method}"
        );
    }
    assert_eq!(fake.ask(8, "resources/read", json!({"uri": "none"}))["error"]["code"], -32602);
}

#[test]
fn envelopes_are_checked_and_removed_methods_unknown() {
    let mut fake = Fake::start(&["--era", "modern", "--rich"]);
    let version = format!("{PREFIX}/protocolVersion");
    let capabilities = format!("{PREFIX}/clientCapabilities");
    let level = format!("{PREFIX}/logLevel");
    for (meta, code) in [
        (json!(null), -32602),
        (json!({&version: "2026-07-28"}), -32602),
        (json!({&version: 1, &capabilities: {}}), -32602),
        (json!({&version: "2026-07-28", &capabilities: []}), -32602),
        (json!({&version: "2026-07-28", &capabilities: {}, &level: "loud"}), -32602),
        (json!({&version: "2099-01-01", &capabilities: {}}), -32022),
    ] {
        fake.send(&json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}}));
        assert_eq!(fake.next()["error"]["code"], code, "{meta}");
    }
    for method in ["ping", "logging/setLevel", "resources/subscribe", "no/such"] {
        assert_eq!(fake.ask(2, method, json!({}))["error"]["code"], -32601, "{method}");
    }
    fake.send(&initialize(3));
    let refused = &fake.next()["error"];
    assert_eq!((&refused["code"], &refused["data"]["supported"]), (&json!(-32022), &json!(["2026-07-28"])));
}

#[test]
fn the_first_request_decides_the_era() {
    let code = |answer: &Value| answer["error"]["code"].as_i64().unwrap_or_default();
    for (era, discover_decides) in [("both", false), ("first", true)] {
        let mut fake = Fake::start(&["--era", era]);
        assert_eq!(fake.ask(1, "server/discover", json!({}))["result"]["resultType"], "complete");
        fake.send(&initialize(2));
        assert_eq!(code(&fake.next()), if discover_decides { -32022 } else { 0 }, "{era}");
        let enveloped = fake.ask(3, "tools/list", json!({}));
        assert_eq!(code(&enveloped), if discover_decides { 0 } else { -32600 }, "{era}");
        let mut fake = Fake::start(&["--era", era]);
        fake.ask(1, "tools/list", json!({}));
        fake.send(&initialize(2));
        assert_eq!(code(&fake.next()), -32022, "{era}");
    }
    let mut fake = Fake::start(&[]);
    assert_eq!(code(&fake.ask(1, "server/discover", json!({}))), -32601);
}

#[test]
fn probes_are_answered_in_every_odd_way() {
    let mut fake = Fake::start(&["--probe", "die"]);
    fake.send(&request(&json!(1), "server/discover", json!({})));
    assert_eq!(fake.child.wait().unwrap().code(), Some(3));
    let mut fake = Fake::start(&["--probe", "die"]);
    fake.send(&initialize(1));
    assert_eq!(fake.next()["result"]["protocolVersion"], "2025-11-25");
    let mut fake = Fake::start(&["--probe", "silent"]);
    fake.send(&request(&json!(1), "server/discover", json!({})));
    fake.send(&initialize(2));
    assert_eq!(fake.next()["id"], 2);
    let mut fake = Fake::start(&["--probe", "garbage"]);
    fake.send(&request(&json!(1), "server/discover", json!({})));
    assert!(fake.next().is_string() && fake.next().is_string());
    let slow = Fake::start(&["--era", "modern", "--probe", "slow", "--probe-ms", "300"]);
    let mut slow = slow;
    slow.send(&request(&json!(1), "server/discover", json!({})));
    assert!(slow.lines.recv_timeout(Duration::from_millis(100)).is_err());
    assert_eq!(slow.next()["result"]["resultType"], "complete");
    for (probe, code, kind) in [
        ("untyped", Value::Null, Value::Null),
        ("older", Value::Null, json!("complete")),
        ("-32602", json!(-32602), Value::Null),
    ] {
        let mut fake = Fake::start(&["--probe", probe]);
        let answer = fake.ask(1, "server/discover", json!({}));
        assert_eq!((&answer["error"]["code"], &answer["result"]["resultType"]), (&code, &kind), "{probe}");
    }
}

#[test]
fn input_is_asked_for_and_bound_to_its_call() {
    let mut fake = Fake::start(&["--era", "modern"]);
    let requests =
        json!({"a": {"method": "roots/list"}, "b": {"method": "sampling/createMessage", "params": {}}});
    let arguments = json!({"requests": requests, "rounds": 2});
    let params = json!({"name": "input", "arguments": arguments});
    let first = &fake.ask(1, "tools/call", params.clone())["result"];
    assert_eq!((&first["resultType"], &first["inputRequests"]), (&json!("input_required"), &requests));
    let mut retry = params.clone();
    retry["requestState"] = first["requestState"].clone();
    retry["inputResponses"] = json!({"a": {"roots": []}, "unknown": 1});
    let second = &fake.ask(2, "tools/call", retry.clone())["result"];
    assert_eq!(second["inputRequests"], json!({"b": requests["b"]}), "what was not answered");
    retry["requestState"] = second["requestState"].clone();
    retry["inputResponses"] = json!({"b": {"role": "user"}});
    let third = &fake.ask(3, "tools/call", retry.clone())["result"];
    assert_eq!(third["inputRequests"], requests, "the second round");
    // Another state, another call.
    for (path, value) in [("requestState", json!("x")), ("arguments", json!({"requests": {}}))] {
        let mut other = retry.clone();
        other[path] = value;
        assert_eq!(fake.ask(4, "tools/call", other)["error"]["code"], -32602, "{path}");
    }
    retry["requestState"] = third["requestState"].clone();
    retry["inputResponses"] = json!({"a": 1, "b": 2});
    let done = fake.ask(5, "tools/call", retry);
    assert_eq!(text(&done), r#"[{"a":{"roots":[]},"b":{"role":"user"}},{"a":1,"b":2}]"#);
    let counts: Value = serde_json::from_str(&fake.text(6, "counts", json!({}))).unwrap();
    assert_eq!((&counts["call input"], &counts["input complete"]), (&json!(6), &json!(1)));
    // Without state, and with state alone.
    let mut stateless = json!({"name": "input", "arguments": {"stateless": true}});
    assert_eq!(fake.ask(7, "tools/call", stateless.clone())["result"]["requestState"], Value::Null);
    stateless["inputResponses"] = json!({"k": {"action": "decline"}});
    assert_eq!(text(&fake.ask(8, "tools/call", stateless)), r#"[{"k":{"action":"decline"}}]"#);
    let mut state = json!({"name": "input", "arguments": {"requests": {}}});
    let answer = &fake.ask(9, "tools/call", state.clone())["result"];
    assert_eq!(answer.get("inputRequests"), None);
    state["requestState"] = answer["requestState"].clone();
    assert_eq!(text(&fake.ask(10, "tools/call", state)), "[{}]");
}

#[test]
fn prompts_and_resources_ask_too() {
    let mut fake = Fake::start(&["--era", "modern", "--rich"]);
    for (method, mut params) in
        [("prompts/get", json!({"name": "input"})), ("resources/read", json!({"uri": "input://x"}))]
    {
        let first = &fake.ask(1, method, params.clone())["result"];
        assert_eq!(first["inputRequests"]["k"]["method"], "elicitation/create");
        params["requestState"] = first["requestState"].clone();
        params["inputResponses"] = json!({"k": {"action": "cancel"}});
        assert_eq!(fake.ask(2, method, params)["result"]["resultType"], "complete", "{method}");
    }
}

#[test]
fn a_strict_server_needs_declared_capabilities() {
    let mut fake = Fake::start(&["--era", "modern", "--strict"]);
    let requests = json!({"a": {"method": "sampling/createMessage"}});
    let mut params = json!({"name": "input", "arguments": {"requests": requests}});
    let refused = &fake.ask(1, "tools/call", params.clone())["error"];
    assert_eq!(
        (&refused["code"], &refused["data"]["requiredCapabilities"]),
        (&json!(-32021), &json!({"sampling": {}}))
    );
    params["_meta"] = json!({format!("{PREFIX}/clientCapabilities"): {"sampling": {}}});
    assert_eq!(fake.ask(2, "tools/call", params)["result"]["resultType"], "input_required");
    assert_eq!(fake.call(3, "need", json!({"capability": "roots"}))["error"]["code"], -32021);
}

#[test]
fn listens_get_their_changes_until_they_end() {
    let mut fake = Fake::start(&["--era", "modern", "--rich"]);
    let subscription = format!("{PREFIX}/subscriptionId");
    let filter = json!({"toolsListChanged": true, "resourceSubscriptions": ["a://one", "x://none"]});
    fake.send(&request(&json!("l"), "subscriptions/listen", json!({"notifications": filter})));
    let acknowledged = fake.next();
    assert_eq!(acknowledged["method"], "notifications/subscriptions/acknowledged");
    let honoured = json!({"toolsListChanged": true, "resourceSubscriptions": ["a://one"]});
    assert_eq!(acknowledged["params"], json!({"notifications": honoured, "_meta": {&subscription: "l"}}));
    fake.send(&request(&json!(7), "subscriptions/listen", json!({"notifications": {}})));
    assert_eq!(fake.next()["params"], json!({"notifications": {}, "_meta": {&subscription: 7}}));
    let changed = fake.all(&json!(1), "tools/call", json!({"name": "change"}));
    assert_eq!(changed.len(), 2, "one listen asked for it");
    assert_eq!(changed[0]["method"], "notifications/tools/list_changed");
    let touched =
        fake.all(&json!(2), "tools/call", json!({"name": "touch", "arguments": {"uri": "a://one/sub"}}));
    assert_eq!(touched[0]["params"], json!({"uri": "a://one/sub", "_meta": {&subscription: "l"}}));
    fake.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "l"}}));
    assert_eq!(fake.all(&json!(3), "tools/call", json!({"name": "change"})).len(), 1);
    let ended = fake.all(&json!(4), "tools/call", json!({"name": "end_listens"}));
    assert_eq!((&ended[0]["id"], &ended[0]["result"]["_meta"]), (&json!(7), &json!({&subscription: 7})));
}

#[test]
fn cancelled_requests_are_not_answered() {
    let mut fake = Fake::start(&["--era", "modern"]);
    fake.send(&request(&json!(1), "tools/call", json!({"name": "hold", "arguments": {"key": "k"}})));
    fake.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}));
    assert_eq!(
        fake.all(&json!(2), "tools/call", json!({"name": "release", "arguments": {"key": "k"}})).len(),
        1
    );
    assert_eq!(fake.text(3, "cancelled", json!({})), r#"["1"]"#);
}

#[test]
fn logs_are_sent_at_the_level_of_their_request() {
    let mut fake = Fake::start(&["--era", "modern"]);
    let log = |level: &str| json!({"name": "log", "arguments": {"level": level, "text": "t"}});
    assert_eq!(fake.all(&json!(1), "tools/call", log("error")).len(), 1, "no level, no logs");
    for (level, count) in [("info", 1), ("warning", 2), ("error", 2)] {
        let mut params = log(level);
        params["_meta"] = json!({format!("{PREFIX}/logLevel"): "warning"});
        assert_eq!(fake.all(&json!(2), "tools/call", params).len(), count, "{level}");
    }
}
