//! The two ends of a link with different `--max-message-bytes`: a message that is too large for the
//! other end fails its own call, and the link stays.

use serde_json::{Value, json};

use crate::{
    frames::End,
    harness::{Edge, Gateway, TIMEOUT},
    session::{BOTH, Session, call, value},
    wire::{Client, member},
};

/// A gateway, `s` with one shared process, `own` with one for each session, each with its own
/// flags, and a session that holds a small call at each.
struct World {
    gateway: Gateway,
    edges: [Edge; 2],
    session: Session,
}

const NAMES: [&str; 2] = ["s", "own"];

impl World {
    #[track_caller]
    fn start(gateway: &[&str], register: &[&str]) -> Self {
        let gateway = Gateway::start(gateway);
        let server = ["--tool", "say", "--rich", "--session"];
        let shared = gateway.edge_with("s", &server[..3], register);
        let own = gateway.edge_with("own", &server, &[register, &["--sessions", "isolated"]].concat());
        let session = Session::open(gateway.address, "/mcp");
        Self { gateway, edges: [shared, own], session }
    }

    /// Asserts that the call fails at once with these words, while a small one waits on the same
    /// link and is answered after it.
    #[track_caller]
    fn fails_alone(&self, name: &str, tool: &str, arguments: Value, words: &str) {
        let held = call(7, &format!("{name}_hold"), json!({"key": "k"}));
        let mut held = self.session.send("POST", &[BOTH], &held);
        self.edges[NAMES.iter().position(|one| *one == name).unwrap()].wait_for("\"key\":\"k\"");
        let arguments = json!({"name": format!("{name}_{tool}"), "arguments": arguments});
        let begun = std::time::Instant::now();
        let answer = self.session.ask("tools/call", arguments);
        assert!(begun.elapsed() < TIMEOUT / 2, "at once");
        let why = answer["error"]["message"].as_str().unwrap_or_else(|| panic!("{name}: no error"));
        assert!(why.contains(words), "{why}");
        assert_eq!(self.session.call_text(&format!("{name}_echo"), json!({"text": "small"})), "small");
        self.session.call_text(&format!("{name}_release"), json!({"key": "k"}));
        let answer = value(&held.answer().body);
        assert_eq!(answer["result"]["content"][0]["text"], "k", "the other call is answered");
    }

    /// No link was lost or replaced.
    #[track_caller]
    fn links_stayed(&self) {
        let log = self.gateway.program.log();
        for gone in ["reconnecting", "' removed: ", "' resumed from", "too large", "1009"] {
            assert!(!log.contains(gone), "{log}");
        }
    }
}

#[test]
fn a_call_too_large_for_the_edge_fails_alone() {
    let world = World::start(&[], &["--max-message-bytes", "64K"]);
    let text = "x".repeat(200_000);
    for name in NAMES {
        let words = format!(
            "and the edge of server '{name}' accepts at most 131072 (see --max-message-bytes at register)"
        );
        world.fails_alone(name, "echo", json!({"text": &text}), &words);
        // Within the frame limit, and above what the edge's own server may write.
        let fits = call(1, &format!("{name}_env"), json!({"name": "NONE", "text": &text[..100_000]}));
        assert_eq!(world.session.post(&fits).status, 200);
        // A notification is dropped; a cancellation is sent in any case.
        let own = Session::open(world.gateway.address, &format!("/servers/{name}/mcp"));
        let large = json!({"jsonrpc": "2.0", "method": "notifications/x", "params": {"text": &text}});
        assert_eq!(own.post(&large.to_string()).status, 202);
        world.gateway.program.wait_for(&format!("server '{name}' was not sent a message of 200"));
        let _cut = own.send("POST", &[BOTH], &call(9, "hold", json!({"key": "cut"})));
        let edge = &world.edges[NAMES.iter().position(|one| *one == name).unwrap()];
        edge.wait_for("\"key\":\"cut\"");
        let params = json!({"requestId": 9, "reason": &text});
        let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params});
        assert_eq!(own.post(&cancel.to_string()).status, 202);
        edge.wait_for("the client cancelled the request");
    }
    world.links_stayed();
}

#[test]
fn a_response_too_large_for_the_edge_fails_the_server_request() {
    let world = World::start(&[], &["--max-message-bytes", "64K"]);
    let own = Session::open(world.gateway.address, "/servers/own/mcp");
    let mut events = own.stream(&call(3, "ask_client", json!({"method": "roots/list"})));
    let question = loop {
        let message = events.next();
        if message.data.as_deref().is_some_and(|data| data.contains("roots/list")) {
            break message.message();
        }
    };
    let answer = json!({"jsonrpc": "2.0", "id": question["id"], "result": {"roots": ["x".repeat(200_000)]}});
    assert_eq!(own.post(&answer.to_string()).status, 202);
    let told = events.all().pop().unwrap()["result"]["content"][0]["text"].as_str().unwrap().to_owned();
    let error = value(&told)["error"].clone();
    assert_eq!(error["code"], -32603);
    assert!(error["message"].as_str().unwrap().contains("--max-message-bytes at register"), "{error}");
    world.links_stayed();
}

#[test]
fn an_answer_too_large_for_the_gateway_fails_alone() {
    let world = World::start(&["--max-message-bytes", "64K"], &[]);
    for (name, edge) in NAMES.iter().zip(&world.edges) {
        let words = "and the gateway accepts at most 131072 (see --max-message-bytes at the gateway)";
        world.fails_alone(name, "big", json!({"bytes": 200_000}), words);
        edge.program.wait_for(words);
        let large = world.session.call_text(&format!("{name}_big"), json!({"bytes": 100_000}));
        assert_eq!(large.len(), 100_000, "the limit is that of the frame");
        // The gateway answers the server's request itself, and drops its notification.
        let say = |line: &str| {
            let arguments = json!({"line": line, "pad": 200_000});
            world.session.send("POST", &[BOTH], &call(5, &format!("{name}_say"), arguments))
        };
        let _asked = say(r#"{"jsonrpc":"2.0","id":"q-ID","method":"ping","params":{"x":"PAD"}}"#);
        let refusal = edge.wait_for("\"id\":\"q-");
        assert!(refusal.contains("-32603") && refusal.contains(words), "{refusal}");
        let _told = say(r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"x":"PAD"}}"#);
        assert_eq!(world.session.call_text(&format!("{name}_echo"), json!({"text": "after"})), "after");
    }
    world.links_stayed();
}

#[test]
fn a_list_too_large_for_the_gateway_fails_alone() {
    let gateway = Gateway::start(&["--max-message-bytes", "64K"]);
    let edge = gateway.edge_with("s", &["--rich", "--many", "1000"], &[]);
    let line = gateway.program.wait_for("resources/list failed");
    assert!(line.contains("--max-message-bytes at the gateway"), "{line}");
    let session = Session::open(gateway.address, "/mcp");
    assert_eq!(session.call_text("s_echo", json!({"text": "there"})), "there");
    assert!(!gateway.program.log().contains("' removed: "));
    drop(edge);
}

/// Both ends announce their limit; an end that announces none, or an invalid one, is sent
/// everything.
#[test]
fn frame_limits_apply_only_if_announced() {
    let gateway = Gateway::start(&["--max-message-bytes", "1M"]);
    let passes = |end: &mut End, client: &mut Client| {
        client.tools_until(|tools| tools.iter().any(|tool| tool == "s_t"));
        let asked = client.begin_call("s_t", &format!(r#"{{"text":"{}"}}"#, "x".repeat(300_000)));
        let frame = end.find(|frame| frame.contains("tools/call"));
        end.say(&format!(r#"{{"jsonrpc":"2.0","id":{},"result":{{}}}}"#, member(&frame, "id").unwrap()));
        client.answer(&asked);
        frame.len()
    };
    for capabilities in [
        "{}",
        r#"{"mcpport":{}}"#,
        r#"{"mcpport":{"message_bytes":0}}"#,
        r#"{"mcpport":{"message_bytes":"9"}}"#,
    ] {
        let mut end = End::connect(gateway.address, None);
        let received = end.introduce(capabilities);
        let told = received.contains(r#""mcpport":{"message_bytes":1114112"#);
        assert_eq!(told, capabilities != "{}", "{received}");
        end.list();
        let mut client = gateway.client();
        assert!(passes(&mut end, &mut client) > 300_000, "{capabilities}");
    }
    let mut end = End::register(gateway.address, r#"{"mcpport":{"message_bytes":1000}}"#);
    let mut client = gateway.client();
    client.tools_until(|tools| tools.iter().any(|tool| tool == "s_t"));
    let answer = client.call("s_t", &format!(r#"{{"text":"{}"}}"#, "x".repeat(1000)));
    assert!(answer.contains("accepts at most 1000 (see --max-message-bytes at register)"), "{answer}");
    let asked = client.begin_call("s_t", "{}");
    let id = end.request("", "tools/call");
    end.say(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#));
    assert!(client.answer(&asked).contains("\"result\""));
    // Without that limit at our edge, a frame that is too large still ends the link.
    end.say(&format!("{{\"x\":\"{}\"}}", "x".repeat(1_200_000)));
    assert_eq!(end.close_reason().0, 1009);
}
