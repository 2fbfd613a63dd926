//! Authenticated clients that take what others need: calls of a server, memory, log lines.

use serde_json::json;

use super::{memory, status};
use crate::{
    frames::End,
    harness::{Gateway, eventually},
    session::{BOTH, Session, call, value},
    wire::{Wire, ask, host, member},
};

/// A subscription to log messages is not a call of the session, so it uses no slot that calls need.
#[test]
fn log_levels_do_not_count_as_calls() {
    let gateway = Gateway::start(&["--max-calls-per-server", "4"]);
    let edge = gateway.edge_with("s", &["--rich", "--mute", "logging/setLevel"], &[]);
    // A server that has listed everything gets one more request, for the log level.
    gateway.program.wait_for("server 's' offers 1 resource template");
    let (loud, other) = (Session::open(gateway.address, "/mcp"), Session::open(gateway.address, "/mcp"));
    for round in 0..10 {
        for level in ["debug", "info"] {
            loud.ask("logging/setLevel", json!({"level": level}));
        }
        assert_eq!(other.call_text("s_echo", json!({"text": "good"})), "good", "round {round}");
    }
    assert_eq!(edge.count("logging/setLevel"), 1, "the next request is sent when this one is answered");
}

/// A log level that is set while another request runs is not lost.
#[test]
fn the_last_log_level_holds() {
    let gateway = Gateway::start(&[]);
    let mut end = End::connect(gateway.address, None);
    end.introduce("{}");
    let id = end.request("", "initialize");
    let declared = r#"{"tools":{},"logging":{}}"#;
    end.say(&format!(
        r#"{{"jsonrpc":"2.0","id":{id},"result":{{"protocolVersion":"2025-06-18","capabilities":{declared},"serverInfo":{{}}}}}}"#
    ));
    let id = end.request("", "tools/list");
    end.say(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"tools":[{{"name":"t"}}]}}}}"#));
    eventually("the server is listed", || gateway.program.log().contains("server 's' offers"));
    let session = Session::open(gateway.address, "/mcp");
    for level in ["error", "warning", "notice", "info", "debug", "warning"] {
        session.ask("logging/setLevel", json!({"level": level}));
    }
    for expected in ["error", "warning"] {
        let request = end.find(|frame| frame.contains("logging/setLevel"));
        assert_eq!(value(&request)["params"]["level"], *expected);
        let id = member(&request, "id").unwrap();
        end.say(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#));
    }
    session.ask("logging/setLevel", json!({"level": "alert"}));
    let request = end.find(|frame| frame.contains("logging/setLevel"));
    assert_eq!(value(&request)["params"]["level"], "alert");
}

/// The method name of a client appears in no log line unescaped, and is not kept in full.
#[test]
fn methods_are_shown_and_bounded() {
    let gateway = Gateway::start(&["--timeout-rpc", "200ms"]);
    let _end = End::register(gateway.address, "{}");
    eventually("the server is listed", || gateway.program.log().contains("server 's' offers"));
    let session = Session::open(gateway.address, "/servers/s/mcp");
    let answer = session.ask("odd\n2026-01-01T00:00:00.000Z [INFO] forged \u{1b}[31m", json!({}));
    assert_eq!(answer["error"]["code"], -32001, "{answer}");
    gateway.program.wait_for("did not respond to odd\\n2026");
    assert!(!gateway.program.log().contains('\u{1b}'));
    let answer = session.ask(&"m".repeat(257), json!({}));
    assert_eq!(answer["error"]["code"], -32600, "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("method is too long"), "{answer}");
}

/// Subscriptions are kept as long as the session, so their size is limited, not only their number.
#[test]
fn subscriptions_have_a_bounded_size() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge_with("s", &["--rich"], &[]);
    // By then it has received all earlier requests.
    edge.program.wait_for("registered: ");
    let uri = |length: usize| format!("a://{}", "x".repeat(length - 4));
    for path in ["/mcp", "/servers/s/mcp"] {
        let session = Session::open(gateway.address, path);
        let answer = session.ask("resources/subscribe", json!({"uri": uri(2048)}));
        assert!(answer["result"].is_object(), "{path}: {answer}");
        let answer = session.ask("resources/subscribe", json!({"uri": uri(2049)}));
        assert_eq!(answer["error"]["code"], -32602, "{path}: {answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains("too long"), "{path}: {answer}");
    }
    assert_eq!(status(gateway.address)["tables"]["subscriptions"], 1);
    assert_eq!(edge.count("resources/subscribe"), 2);
}

/// The body of a call is freed once the call is forwarded, however long the response takes.
#[test]
fn calls_that_wait_do_not_hold_their_bodies() {
    const CALLS: i64 = 32;
    let gateway = Gateway::start(&[]);
    let mut end = End::register(gateway.address, "{}");
    eventually("the server is listed", || gateway.program.log().contains("server 's' offers"));
    let session = Session::open(gateway.address, "/mcp");
    let text = "x".repeat(2 << 20);
    let before = memory(gateway.program.pid(), "VmRSS:");
    let mut open: Vec<(Wire, String)> = Vec::new();
    for number in 0..CALLS {
        let wire = session.send("POST", &[BOTH], &call(number, "s_t", json!({"text": &text})));
        open.push((wire, end.request("", "tools/call")));
    }
    let grown = memory(gateway.program.pid(), "VmRSS:").saturating_sub(before);
    assert!(grown < 24 * 1024, "{CALLS} calls of 2 MiB each hold {grown} KiB");
    for (wire, id) in &mut open {
        end.say(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"fine":true}}}}"#));
        assert!(wire.answer().body.contains("fine"));
    }
}

/// The responses to one POST are bounded in total: a batch of small requests cannot produce a batch
/// of large responses.
#[test]
fn the_answers_of_a_batch_are_bounded() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge("s");
    let session = Session::open_as(gateway.address, "/mcp", "2025-03-26", &[]);
    let batch = |count: i64, bytes: usize| {
        let calls: Vec<String> = (0..count).map(|id| call(id, "s_big", json!({"bytes": bytes}))).collect();
        let answer = value(&session.post(&format!("[{}]", calls.join(","))).body);
        let answers = answer.as_array().unwrap().clone();
        assert_eq!(answers.len() as i64, count);
        let refused: Vec<_> = answers.into_iter().filter(|answer| answer["error"].is_object()).collect();
        refused
    };
    assert_eq!(batch(4, 1 << 20).len(), 0);
    let refused = batch(8, 3 << 20);
    assert!((1..=6).contains(&refused.len()), "{}", refused.len());
    for answer in &refused {
        assert_eq!(answer["error"]["code"], -32000, "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains("batch"), "{answer}");
    }
    assert_eq!(batch(1, 4_000_000).len(), 0);
}

/// A second `initialize` is refused and changes nothing.
#[test]
fn a_second_initialize_changes_nothing() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge_with("s", &["--version", "2025-06-18"], &[]);
    edge.program.wait_for("registered: ");
    let mut client = crate::wire::Client::open(gateway.address, "/servers/s/sse", &[]);
    let initialize_params =
        |version: &str| format!(r#"{{"protocolVersion":"{version}","capabilities":{{}},"clientInfo":{{}}}}"#);
    assert!(client.ask("initialize", &initialize_params("2025-06-18")).contains("result"));
    assert!(client.ask("initialize", &initialize_params("2024-11-05")).contains("already"));
    let link = r#"{"content":[{"type":"resource_link","uri":"a://b","name":"n"}]}"#;
    let answer = client.call("raw", &json!({"result": link}).to_string());
    assert!(answer.contains("resource_link"), "{answer}");
}

/// Behind a trusted proxy, a connection has no principal: its first authenticated request gives the
/// next one no access.
#[test]
fn connections_of_a_proxy_authenticate_nobody() {
    let gateway = Gateway::start(&["--auth-token=right", "--trusted-proxy", "127.0.0.1"]);
    let mut wire = Wire::connect(gateway.address);
    let own = host(gateway.address);
    let mut health = |token: &str, client: &str| {
        let (token, client) =
            (format!("Authorization: Bearer {token}"), format!("X-Forwarded-For: {client}"));
        ask(&mut wire, "GET", "/status", &[&own, &token, &client], "").status
    };
    assert_eq!(health("right", "192.0.2.9"), 200);
    for guess in 0..10 {
        assert_eq!(health(&format!("guess-{guess}"), "192.0.2.1"), 401);
    }
    assert_eq!(health("guess-10", "192.0.2.1"), 429);
    assert_eq!(health("right", "192.0.2.1"), 429, "a throttled client cannot tell whether a guess is right");
    assert_eq!(health("right", "192.0.2.9"), 200);
}
