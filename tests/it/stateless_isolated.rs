//! Clients without a session (MCP 2026-07-28) at servers with a process of its own for each of their
//! principals (`register --sessions isolated`).

use std::{collections::BTreeSet, net::SocketAddr, thread, time::Duration};

use serde_json::{Value, json};

use crate::{
    harness::{Edge, Gateway, eventually, fake_server, kill},
    in_process,
    relay::Relay,
    reload::Reloaded,
    wire::{self, Answer, Wire, host, request},
};

/// A client of a principal, at the endpoint of server `s`.
#[derive(Clone, Debug)]
struct Caller {
    address: SocketAddr,
    token: String,
    target: &'static str,
    capabilities: Value,
    level: Option<&'static str>,
}

impl Caller {
    fn new(address: SocketAddr, token: &str) -> Self {
        let (token, target) = (token.to_owned(), "/servers/s/mcp");
        Self { address, token, target, capabilities: json!({}), level: None }
    }

    fn with(&self, capabilities: Value) -> Self {
        Self { capabilities, ..self.clone() }
    }

    /// The lines and the body of a request.
    fn request(&self, id: &Value, method: &str, mut params: Value) -> (Vec<String>, String) {
        let meta = |name: &str| format!("io.modelcontextprotocol/{name}");
        params["_meta"][meta("protocolVersion")] = json!("2026-07-28");
        params["_meta"][meta("clientCapabilities")] = self.capabilities.clone();
        if let Some(level) = self.level {
            params["_meta"][meta("logLevel")] = json!(level);
        }
        let mut lines = vec![
            host(self.address),
            "Accept: application/json, text/event-stream".into(),
            "MCP-Protocol-Version: 2026-07-28".into(),
            format!("Mcp-Method: {method}"),
            format!("Authorization: Bearer {}", self.token),
        ];
        if let Some(name) = params["name"].as_str().or_else(|| params["uri"].as_str()) {
            lines.push(format!("Mcp-Name: {name}"));
        }
        (lines, json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string())
    }

    #[track_caller]
    fn post(&self, method: &str, params: Value) -> Answer {
        let (lines, body) = self.request(&json!("an id"), method, params);
        let lines: Vec<&str> = lines.iter().skip(1).map(String::as_str).collect();
        request(self.address, "POST", self.target, &lines, &body)
    }

    /// The response, which is the last message.
    #[track_caller]
    fn ask(&self, method: &str, params: Value) -> Value {
        let answer = self.post(method, params);
        let message = match answer.body.rsplit_once("data: ") {
            Some((_, last)) => last.lines().next().unwrap(),
            None => &answer.body,
        };
        let response: Value = serde_json::from_str(message).unwrap_or_else(|_| panic!("{answer:?}"));
        assert_eq!(response["id"], "an id");
        response
    }

    #[track_caller]
    fn call(&self, tool: &str, arguments: Value) -> Value {
        self.ask("tools/call", json!({"name": tool, "arguments": arguments}))
    }

    #[track_caller]
    fn text(&self, tool: &str, arguments: Value) -> String {
        let response = self.call(tool, arguments);
        response["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{response}")).to_owned()
    }

    #[track_caller]
    fn pid(&self) -> u32 {
        self.text("pid", json!({})).parse().unwrap()
    }
}

const TOKENS: [&str; 4] = [
    "--auth-token=register:r",
    "--auth-token=client@a:a",
    "--auth-token=client@b:b",
    "--auth-token=client@c:c",
];

/// A gateway with three principals, and an isolated server.
struct World {
    gateway: Gateway,
    edge: Edge,
}

impl World {
    #[track_caller]
    fn start(server: &[&str], register: &[&str]) -> Self {
        let gateway = Gateway::start(&TOKENS);
        let register =
            [&["--header", "Authorization: Bearer r", "--sessions", "isolated"], register].concat();
        let edge = gateway.edge_with("s", server, &register);
        edge.program.wait_for("registered: ");
        Self { gateway, edge }
    }

    fn legacy() -> Self {
        Self::start(&["--session", "--rich"], &[])
    }

    fn modern() -> Self {
        Self::start(&["--era", "modern", "--rich"], &["--era", "modern"])
    }

    fn caller(&self, token: &str) -> Caller {
        Caller::new(self.gateway.address, token)
    }

    fn processes(&self) -> Vec<u32> {
        processes(&self.edge)
    }
}

/// The processes of principals.
fn processes(edge: &Edge) -> Vec<u32> {
    let shared = edge.server_pid();
    let mut all: Vec<u32> = edge.program.offspring().into_iter().filter(|pid| *pid != shared).collect();
    all.sort_unstable();
    all
}

fn sorted<const N: usize>(mut all: [u32; N]) -> [u32; N] {
    all.sort_unstable();
    all
}

#[test]
fn each_principal_has_a_process_of_its_own() {
    for world in [World::modern(), World::legacy()] {
        let (a, b) = (world.caller("a"), world.caller("b"));
        let described = a.ask("server/discover", json!({}));
        assert_eq!(described["result"]["supportedVersions"], json!(["2026-07-28"]), "{described}");
        assert_eq!(world.processes(), [0; 0], "what the gateway answers itself needs no process");
        let pids = [a.pid(), b.pid()];
        assert!(pids[0] != pids[1] && !pids.contains(&world.edge.server_pid()), "{pids:?}");
        assert_eq!([a.pid(), b.pid()], pids);
        // The same one at the endpoint of all servers.
        let all = Caller { target: "/mcp", ..a.clone() };
        assert_eq!(all.text("s_pid", json!({})).parse(), Ok(pids[0]));
        assert!(a.ask("tools/list", json!({}))["result"]["tools"].is_array());
        assert_eq!(world.processes(), sorted(pids));
    }
}

#[test]
fn a_modern_process_is_not_initialized_and_a_legacy_one_once() {
    let world = World::modern();
    world.caller("a").pid();
    assert_eq!(world.edge.count("\"initialize\""), 0);
    let world = World::legacy();
    let initialized = world.edge.count("\"initialize\"");
    let greeting = world.caller("a").text("greeting", json!({}));
    let said: Value = serde_json::from_str(&greeting).unwrap();
    assert_eq!((&said["capabilities"], &said["clientInfo"]["name"]), (&json!({}), &json!("mcpport")));
    world.caller("a").pid();
    assert_eq!(world.edge.count("\"initialize\""), initialized + 1);
}

#[test]
fn calls_of_a_principal_run_side_by_side_in_its_process() {
    for world in [World::modern(), World::legacy()] {
        let caller = world.caller("a");
        let calls: Vec<_> = (0..8)
            .map(|number| {
                let caller = caller.clone();
                thread::spawn(move || caller.text("hold", json!({"key": number.to_string()})))
            })
            .collect();
        for number in 0..8 {
            world.edge.wait_for(&format!("\"key\":\"{number}\""));
        }
        for number in (0..8).rev() {
            caller.call("release", json!({"key": number.to_string()}));
        }
        calls.into_iter().for_each(|call| drop(call.join().unwrap()));
        assert_eq!(world.processes().len(), 1);
    }
}

#[test]
fn a_process_that_ends_fails_its_calls_and_the_next_call_starts_another() {
    for world in [World::modern(), World::legacy()] {
        let (a, b) = (world.caller("a"), world.caller("b"));
        let pids = [a.pid(), b.pid()];
        let crashed = a.call("crash", json!({}));
        assert_eq!(crashed["error"]["code"], -32603, "{crashed}");
        let after = a.pid();
        assert!(!pids.contains(&after));
        assert_eq!(b.pid(), pids[1], "another principal's goes on");
    }
}

#[test]
fn processes_end_with_the_token_of_their_principal() {
    let mut reloaded = Reloaded::start("register:r\nclient@a:a\nclient@b:b\n", &[]);
    let register = ["--header", "Authorization: Bearer r", "--sessions", "isolated"];
    let edge = reloaded.gateway.edge_with("s", &["--session"], &register);
    let [a, b] = ["a", "b"].map(|token| Caller::new(reloaded.gateway.address, token));
    let pids = [a.pid(), b.pid()];
    assert_eq!(processes(&edge), sorted(pids));
    reloaded.tokens("register:r\nclient@b:b\n");
    eventually("its process ends", || processes(&edge) == [pids[1]]);
    assert_eq!((a.post("tools/list", json!({})).status, b.pid()), (401, pids[1]));
}

#[test]
fn an_idle_process_ends() {
    let change = |limits: &mut mcpport::limits::Limits| limits.session.idle = Duration::from_secs(2);
    let gateway = in_process::Gateway::start(&[], change);
    let url = format!("ws://{}/mcp/register", gateway.address);
    let edge = Edge::start(&url, "s", &["--session"], &["--sessions", "isolated"]);
    edge.program.wait_for("registered: ");
    let caller = Caller::new(gateway.address, "x");
    let first = caller.pid();
    let holding = {
        let caller = caller.clone();
        thread::spawn(move || caller.text("hold", json!({"key": "k"})))
    };
    edge.wait_for("\"hold\"");
    thread::sleep(Duration::from_secs(4));
    assert_eq!(processes(&edge), [first], "a call runs in it");
    caller.call("release", json!({"key": "k"}));
    holding.join().unwrap();
    eventually("the process ends", || processes(&edge).is_empty());
    assert_ne!(caller.pid(), first);
}

#[test]
fn principals_share_the_limit_of_processes() {
    let world = World::start(&["--session"], &["--max-sessions", "2"]);
    let pids = [world.caller("a").pid(), world.caller("b").pid()];
    let refused = world.caller("c").call("pid", json!({}));
    assert_eq!(refused["error"]["code"], -31000, "{refused}");
    let why = refused["error"]["message"].as_str().unwrap();
    assert!(why.contains("--max-sessions"), "{why}");
    assert_eq!([world.caller("a").pid(), world.caller("b").pid()], pids);
}

#[test]
fn a_state_returns_to_the_process_that_gave_it() {
    let world = World::modern();
    let [a, b] = ["a", "b"].map(|token| world.caller(token).with(json!({"elicitation": {}})));
    let asked = a.call("input", json!({}));
    let state = &asked["result"]["requestState"];
    assert_eq!(
        (&asked["result"]["resultType"], state.is_string()),
        (&json!("input_required"), true),
        "{asked}"
    );
    let answers = json!({"k": {"action": "decline"}});
    let retry = json!({"name": "input", "arguments": {}, "inputResponses": answers, "requestState": state});
    assert_eq!(b.ask("tools/call", retry.clone())["error"]["code"], -32602);
    assert_eq!(world.processes().len(), 1, "no process is started for it");
    assert_eq!(a.ask("tools/call", retry.clone())["result"]["resultType"], "complete");
    a.call("crash", json!({}));
    let refused = a.ask("tools/call", retry);
    assert_eq!(
        (&refused["error"]["code"], &refused["error"]["data"]["reason"]),
        (&json!(-32602), &json!("restarted")),
        "{refused}"
    );
    eventually("no process is started for it", || world.processes().is_empty());
}

/// What a server of before may ask a client.
fn can_be_asked() -> Value {
    json!({"elicitation": {"form": {}}, "sampling": {}, "roots": {}})
}

fn form(message: &str) -> Value {
    json!({"method": "elicitation/create", "params": {"message": message, "requestedSchema": {"type": "object"}}})
}

/// The arguments of a call that asks this.
fn ask(asked: &Value, count: u64) -> Value {
    json!({"method": asked["method"], "params": asked["params"], "count": count})
}

/// The repetition of a call with these answers and the state of this response.
#[track_caller]
fn retry(arguments: &Value, asked: &Value, answers: Value) -> Value {
    let result = &asked["result"];
    assert_eq!(
        (&result["resultType"], result["requestState"].is_string()),
        (&json!("input_required"), true),
        "{asked}"
    );
    json!({"name": "ask", "arguments": arguments, "inputResponses": answers, "requestState": result["requestState"]})
}

#[track_caller]
fn text_of(response: &Value) -> Value {
    assert_eq!(response["result"]["resultType"], "complete", "{response}");
    let text = response["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{response}"));
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_legacy_server_asks_the_client_of_a_call() {
    let world = World::legacy();
    let caller = world.caller("a").with(can_be_asked());
    let said: Value = serde_json::from_str(&caller.text("greeting", json!({}))).unwrap();
    assert_eq!(said["capabilities"], can_be_asked());
    let sampling = json!({"method": "sampling/createMessage", "params": {"messages": [], "maxTokens": 9}});
    let roots = json!({"method": "roots/list", "params": {}});
    for (question, key, answer) in [
        (form("name?"), "elicitation", json!({"action": "accept", "content": {"name": "n"}})),
        (
            sampling,
            "sampling",
            json!({"role": "assistant", "content": {"type": "text", "text": "t"}, "model": "m"}),
        ),
        (roots, "roots", json!({"roots": [{"uri": "file:///r"}]})),
    ] {
        let arguments = ask(&question, 2);
        let asked = caller.call("ask", arguments.clone());
        let requests = &asked["result"]["inputRequests"];
        let keys = [format!("{key}-1"), format!("{key}-2")];
        assert_eq!(
            requests.as_object().map(|all| all.keys().cloned().collect::<Vec<_>>()),
            Some(keys.to_vec())
        );
        assert_eq!(requests[&keys[0]]["method"], question["method"]);
        // Without all answers, and with others, it asks the same again.
        let few = retry(&arguments, &asked, json!({&keys[1]: answer, "other": {}}));
        let again = caller.ask("tools/call", few);
        assert_eq!(&again["result"]["inputRequests"], requests, "{again}");
        let all = retry(&arguments, &again, json!({&keys[0]: answer, &keys[1]: answer, "other": 7}));
        let answered = text_of(&caller.ask("tools/call", all.clone()));
        assert_eq!((&answered[0]["result"], &answered[1]["result"]), (&answer, &answer));
        // Nothing is parked any more.
        let late = caller.ask("tools/call", all);
        assert_eq!(late["error"]["code"], -32602, "{late}");
    }
    assert_eq!(world.processes().len(), 1);
}

#[test]
fn a_question_that_the_client_did_not_declare_fails_at_once() {
    let world = World::legacy();
    let caller = world.caller("a").with(json!({"roots": {}}));
    let answered = text_of(&caller.call("ask", ask(&form("name?"), 1)));
    assert_eq!(answered[0]["error"]["code"], -32601);
    let plain = text_of(&world.caller("a").call("ask", ask(&form("name?"), 1)));
    assert_eq!(plain[0]["error"]["code"], -32601);
    assert_eq!(world.processes().len(), 2, "one for each set of capabilities");
}

#[test]
fn a_parked_call_is_for_its_principal_and_ends_with_its_process() {
    let world = World::legacy();
    let [a, b] = ["a", "b"].map(|token| world.caller(token).with(can_be_asked()));
    let arguments = ask(&form("name?"), 1);
    let asked = a.call("ask", arguments.clone());
    let answers = json!({"elicitation-1": {"action": "decline"}});
    let mine = retry(&arguments, &asked, answers);
    assert_eq!(b.ask("tools/call", mine.clone())["error"]["code"], -32602);
    let mut other = mine.clone();
    other["name"] = json!("echo");
    assert_eq!(a.ask("tools/call", other)["error"]["code"], -32602);
    for pid in world.processes() {
        kill(pid);
    }
    eventually("the process ends", || world.processes().is_empty());
    eventually("the gateway knows", || {
        a.ask("tools/call", mine.clone())["error"]["data"]["reason"] == "restarted"
    });
    assert_eq!(world.processes(), [0; 0], "nothing is executed");
}

#[test]
fn one_call_at_a_time_holds_a_process_and_others_wait() {
    let world = World::legacy();
    let caller = world.caller("a").with(can_be_asked());
    let hold = |key: usize| {
        let caller = caller.clone();
        thread::spawn(move || caller.text("hold", json!({"key": key.to_string()})))
    };
    let calls: Vec<_> = (0..6).map(hold).collect();
    eventually("four processes", || world.edge.count("\"hold\"") == 4);
    assert_eq!(world.processes().len(), 4);
    let mut done = BTreeSet::new();
    // What ends a call is the end of its process: no other call reaches it.
    let free = |done: &mut BTreeSet<u32>| {
        let pid = world.processes().into_iter().find(|pid| !done.contains(pid)).unwrap();
        done.insert(pid);
        kill(pid);
    };
    free(&mut done);
    eventually("the next has a process", || world.edge.count("\"hold\"") == 5);
    free(&mut done);
    eventually("the last has a process", || world.edge.count("\"hold\"") == 6);
    drop(world);
    calls.into_iter().for_each(|call| drop(call.join()));
}

#[test]
fn a_waiting_call_gets_the_process_of_the_one_before() {
    let world = World::start(&["--session"], &["--max-sessions", "1"]);
    let caller = world.caller("a").with(can_be_asked());
    let pid = caller.pid();
    let sleeping = {
        let caller = caller.clone();
        thread::spawn(move || caller.text("sleep", json!({"ms": 500})))
    };
    world.edge.wait_for("\"sleep\"");
    assert_eq!(caller.pid(), pid);
    sleeping.join().unwrap();
    // One with other capabilities takes its place.
    let other = world.caller("a").pid();
    assert_ne!(other, pid);
}

#[test]
fn a_parked_call_outlives_the_connection_of_its_request() {
    let world = World::legacy();
    let caller = world.caller("a").with(can_be_asked());
    let arguments = ask(&form("name?"), 1);
    let asked = caller.call("ask", arguments.clone());
    // That connection is closed.
    thread::sleep(Duration::from_millis(300));
    let answers = json!({"elicitation-1": {"action": "accept", "content": {}}});
    let answered = text_of(&caller.ask("tools/call", retry(&arguments, &asked, answers)));
    assert_eq!(answered[0]["result"]["action"], "accept");
    assert_eq!(world.edge.count("notifications/cancelled"), 0);
}

#[test]
fn parked_calls_survive_cuts_of_the_link() {
    let gateway = Gateway::start(&[]);
    let relay = Relay::to(gateway.address);
    let server = format!("'{}' --session", fake_server().display());
    let soon = |limits: &mut mcpport::limits::Limits| {
        limits.link.backoff_base = Duration::from_millis(5);
        limits.link.backoff_cap = Duration::from_millis(50);
    };
    let _edge = in_process::Edge::start(&relay.url(), "s", &server, &["--sessions", "isolated"], soon);
    gateway.client().tools_until(|tools| tools.iter().any(|tool| tool == "s_pid"));
    let caller = Caller::new(gateway.address, "x").with(can_be_asked());
    let pid = caller.pid();
    for round in 1..=3 {
        let arguments = ask(&form("name?"), 1);
        let asked = caller.call("ask", arguments.clone());
        relay.cut();
        // Also while no link is there.
        let answers = json!({"elicitation-1": {"action": "accept", "content": {"round": round}}});
        let answered = text_of(&caller.ask("tools/call", retry(&arguments, &asked, answers)));
        assert_eq!(answered[0]["result"]["content"]["round"], round);
        eventually("the edge is back", || relay.taken() > round);
    }
    assert_eq!(caller.pid(), pid);
}

#[test]
fn a_client_that_leaves_frees_the_process() {
    let world = World::start(&["--session"], &["--max-sessions", "1"]);
    let caller = world.caller("a").with(can_be_asked());
    let (lines, body) =
        caller.request(&json!(1), "tools/call", json!({"name": "hold", "arguments": {"key": "k"}}));
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let mut wire = Wire::connect(world.gateway.address);
    wire.send(wire::text("POST", caller.target, &lines, &body));
    world.edge.wait_for("\"hold\"");
    // One that waits for the process, and leaves too.
    let mut waiting = Wire::connect(world.gateway.address);
    waiting.send(wire::text("POST", caller.target, &lines, &body));
    thread::sleep(Duration::from_millis(200));
    drop(waiting);
    thread::sleep(Duration::from_millis(200));
    drop(wire);
    world.edge.wait_for("notifications/cancelled");
    caller.pid();
    assert_eq!(world.edge.count("\"hold\""), 1);
}

#[test]
fn urls_that_a_server_needs_are_asked_for_and_the_call_is_repeated() {
    let shared = {
        let gateway = Gateway::start(&TOKENS);
        let edge = gateway.edge_with("s", &[], &["--header", "Authorization: Bearer r"]);
        World { gateway, edge }
    };
    for world in [shared, World::legacy()] {
        let url = json!({"mode": "url", "elicitationId": "e", "url": "https://a.b", "message": "visit"});
        let arguments = json!({"code": -32042, "message": "visit", "data": {"elicitations": [url]}});
        let caller = world.caller("a").with(json!({"elicitation": {"url": {}}}));
        let asked = caller.call("fail", arguments.clone());
        let question = &asked["result"]["inputRequests"]["elicitation-1"];
        let params = json!({"mode": "url", "url": "https://a.b", "message": "visit"});
        assert_eq!(question, &json!({"method": "elicitation/create", "params": params}), "{asked}");
        let mut repeated = retry(&arguments, &asked, json!({"elicitation-1": {"action": "accept"}}));
        repeated["name"] = json!("fail");
        let again = caller.ask("tools/call", repeated);
        assert_eq!(again["result"]["resultType"], "input_required", "the server decides: {again}");
        assert_eq!(world.edge.count("\"fail\""), 2);
        let refused = world.caller("a").post("tools/call", json!({"name": "fail", "arguments": arguments}));
        let error: Value = serde_json::from_str(&refused.body).unwrap();
        assert_eq!((refused.status, &error["error"]["code"]), (400, &json!(-32021)), "{error}");
    }
}

#[test]
fn a_call_that_nobody_returns_to_is_cancelled_at_its_server() {
    let change = |limits: &mut mcpport::limits::Limits| limits.stateless.parked_time = Duration::from_secs(1);
    let gateway = in_process::Gateway::start(&[], change);
    let url = format!("ws://{}/mcp/register", gateway.address);
    let edge = Edge::start(&url, "s", &["--session"], &["--sessions", "isolated"]);
    edge.program.wait_for("registered: ");
    let caller = Caller::new(gateway.address, "x").with(can_be_asked());
    let arguments = ask(&form("name?"), 1);
    let asked = caller.call("ask", arguments.clone());
    edge.wait_for(r#""result":{"action":"cancel"}"#);
    edge.wait_for("notifications/cancelled");
    let late =
        caller.ask("tools/call", retry(&arguments, &asked, json!({"elicitation-1": {"action": "decline"}})));
    assert_eq!(late["error"]["code"], -32602);
    caller.pid();
    assert_eq!(processes(&edge).len(), 1, "its process is free again");
}

#[test]
fn log_messages_reach_the_call_that_wants_them() {
    let world = World::legacy();
    let caller = Caller { level: Some("info"), ..world.caller("a") };
    let described = caller.ask("server/discover", json!({}));
    assert!(described["result"]["capabilities"]["logging"].is_object(), "{described}");
    let log = |level: &str| json!({"name": "log", "arguments": {"level": level, "text": "heard"}});
    let heard = caller.post("tools/call", log("error"));
    assert!(heard.body.contains("notifications/message") && heard.body.contains("heard"), "{heard:?}");
    let low = caller.post("tools/call", log("debug"));
    assert!(!low.body.contains("notifications/message"), "{low:?}");
    let none = world.caller("a").post("tools/call", log("error"));
    assert!(!none.body.contains("notifications/message"), "{none:?}");
    assert_eq!(world.edge.count("logging/setLevel"), 1);
}

#[test]
fn a_question_that_the_server_takes_back_is_not_asked() {
    let world = World::legacy();
    let caller = world.caller("a").with(can_be_asked());
    assert_eq!(caller.text("retract", ask(&form("name?"), 1)), "retracted");
    assert_eq!(caller.text("echo", json!({"text": "x"})), "x");
}

#[test]
fn a_principal_is_told_of_changes_in_its_own_process() {
    let world = World::modern();
    let open = |token: &'static str| {
        let caller = world.caller(token);
        let filter = json!({"notifications": {"toolsListChanged": true}});
        let (lines, body) = caller.request(&json!(token), "subscriptions/listen", filter);
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let mut wire = Wire::connect(world.gateway.address);
        wire.send(wire::text("POST", caller.target, &lines, &body));
        wire.head().unwrap();
        let acknowledged = String::from_utf8(wire.chunk().unwrap().unwrap()).unwrap();
        assert!(acknowledged.contains("subscriptions/acknowledged"), "{acknowledged}");
        wire
    };
    let [mut a, mut b] = ["a", "b"].map(open);
    let mut told = |token: &str| {
        world.caller(token).call("touch", json!({"kind": "tools"}));
        let wire = if token == "a" { &mut a } else { &mut b };
        String::from_utf8(wire.chunk().unwrap().unwrap()).unwrap()
    };
    for token in ["a", "b", "a"] {
        let changed = told(token);
        let id = format!("\"io.modelcontextprotocol/subscriptionId\":\"{token}\"");
        assert!(changed.contains("tools/list_changed") && changed.contains(&id), "{changed}");
    }
}
