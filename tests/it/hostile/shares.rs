//! What one session, server or token may use, so that something is left for the others.

use std::time::{Duration, Instant};

use async_tungstenite::tungstenite::Message;
use serde_json::{Value, json};

use super::{counter, raw::Raw, status};
use crate::{
    frames::End,
    harness::{Gateway, eventually},
    in_process,
    session::{BOTH, Session, call, initialize_request, request, value},
    wire::{Answer, UPGRADE, Wire, ask, host},
};

/// Returns the error in the response to a POST.
#[track_caller]
fn error(session: &Session, id: i64, tool: &str, arguments: Value) -> Value {
    let begun = Instant::now();
    let answer = session.post(&call(id, tool, arguments));
    assert!(begun.elapsed() < Duration::from_secs(5), "refusals are immediate");
    value(&answer.body)["error"].clone()
}

/// Rule 29: a call over the limit of a session or a server is refused at once, with the name of the
/// limit; others continue.
#[test]
fn calls_have_limits() {
    let gateway = Gateway::start(&["--max-calls-per-session", "2", "--max-calls-per-server", "3"]);
    let (edge, _other) = (gateway.edge("s"), gateway.edge("o"));
    let (one, two) = (Session::open(gateway.address, "/mcp"), Session::open(gateway.address, "/mcp"));
    let hold = |session: &Session, id: i64, key: &str| {
        let held = session.send("POST", &[BOTH], &call(id, "s_hold", json!({"key": key})));
        edge.wait_for(&format!("\"{key}\""));
        held
    };
    let mut held = vec![hold(&one, 11, "k1"), hold(&one, 12, "k2")];
    let busy = error(&one, 3, "s_echo", json!({"text": "x"}));
    assert_eq!(busy["code"], -32000, "{busy}");
    assert!(busy["message"].as_str().unwrap().contains("--max-calls-per-session"), "{busy}");
    held.push(hold(&two, 11, "k3"));
    let busy = error(&two, 2, "s_echo", json!({"text": "x"}));
    assert!(busy["message"].as_str().unwrap().contains("--max-calls-per-server"), "{busy}");
    assert_eq!(two.call_text("o_echo", json!({"text": "other"})), "other");
    assert_eq!(counter(gateway.address, "busy"), 2);
    let three = Session::open(gateway.address, "/servers/s/mcp");
    assert!(error(&three, 1, "release", json!({"key": "k1"}))["message"].is_string(), "the limit holds");
    // One of them is cancelled, which frees a slot for the call that ends the others.
    let cancelled = json!({"requestId": 12, "reason": "enough"});
    let told = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": cancelled});
    assert_eq!(one.post(&told.to_string()).status, 202);
    for key in ["k1", "k3"] {
        three.call_text("release", json!({"key": key}));
    }
    assert!(held.remove(0).answer().body.contains("k1"));
    eventually("nothing is under way", || status(gateway.address)["tables"]["calls"] == 0);
    assert_eq!(one.call_text("s_echo", json!({"text": "again"})), "again");
}

/// The user chooses the maximum message size, at both ends.
#[test]
fn messages_have_the_size_that_was_chosen() {
    let gateway = Gateway::start(&["--max-message-bytes", "8M"]);
    let _large = gateway.edge_with("large", &[], &["--max-message-bytes", "8M"]);
    let session = Session::open(gateway.address, "/mcp");
    assert_eq!(session.call_text("large_big", json!({"bytes": 6_000_000})).len(), 6_000_000);
    let text = "x".repeat(5_000_000);
    assert_eq!(session.call_text("large_echo", json!({"text": &text})), text);
    let small = Gateway::start(&["--max-message-bytes", "64K"]);
    let session = Session::open(small.address, "/mcp");
    assert_eq!(session.post(&" ".repeat(65_536)).status, 400);
    assert_eq!(session.post(&" ".repeat(65_537)).status, 413);
}

#[test]
fn sessions_of_a_token_have_a_limit() {
    let tokens = ["--auth-token", "one", "--auth-token", "two"];
    let gateway = Gateway::start(&[&tokens[..], &["--max-sessions-per-token", "2"]].concat());
    let open = |token: &str| {
        let (own, token) = (host(gateway.address), format!("Authorization: Bearer {token}"));
        ask(
            &mut Wire::connect(gateway.address),
            "POST",
            "/mcp",
            &[&own, &token, BOTH],
            &initialize_request("2025-11-25"),
        )
    };
    assert_eq!([open("one").status, open("one").status], [200, 200]);
    let refused = open("one");
    assert_eq!((refused.status, refused.field("retry-after")), (429, Some("1")), "{refused:?}");
    assert!(refused.body.contains("--max-sessions-per-token"), "{refused:?}");
    assert_eq!(open("two").status, 200);
}

/// Most clients leave without ending their session; such sessions must not keep others out for half
/// an hour.
#[test]
fn idle_sessions_are_evicted_first() {
    let gateway = in_process::Gateway::start(&[], |limits| {
        limits.session.sessions = 2;
        limits.session.evictable_after = std::time::Duration::ZERO;
    });
    let (first, listening) = (Session::open(gateway.address, "/mcp"), Session::open(gateway.address, "/mcp"));
    let mut stream = listening.listen(None);
    assert_eq!(stream.next().data.as_deref(), Some(""));
    let third = Session::open(gateway.address, "/mcp");
    let status = |session: &Session| session.post(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#).status;
    assert_eq!([status(&first), status(&listening), status(&third)], [404, 200, 200]);
}

/// Kinds of subscriptions that the server does not support use no slot of the session.
#[test]
fn refused_subscriptions_are_not_counted() {
    let gateway = in_process::Gateway::start(&[], |limits| limits.session.subscriptions = 1);
    let url = format!("ws://{}/mcp/register", gateway.address);
    let _edge = crate::harness::Edge::start(&url, "s", &["--rich", "--refuse", "resources/subscribe"], &[]);
    eventually("the server is there", || !status(gateway.address)["servers"][0]["tools"].is_null());
    eventually("and listed", || status(gateway.address)["servers"][0]["tools"] != 0);
    for path in ["/mcp", "/servers/s/mcp"] {
        let session = Session::open(gateway.address, path);
        for uri in ["a://one", "a://two", "a://three"] {
            let answer = session.ask("resources/subscribe", json!({"uri": uri}));
            let why = answer["error"]["message"].as_str().unwrap_or_else(|| panic!("{answer}"));
            assert!(!why.contains("too many"), "{path}: {answer}");
        }
    }
    assert_eq!(status(gateway.address)["tables"]["subscriptions"], 0);
}

/// Rule 30: a link that is not read holds a bounded queue; calls beyond it are refused, and the
/// link ends.
#[test]
fn a_link_that_is_not_read_ends() {
    let gateway = in_process::Gateway::start(&[], |limits| {
        limits.link.queue_bytes = 256 * 1024;
        limits.link.write_stall = Duration::from_secs(3);
    });
    let raw = Raw::registered(gateway.address, "deaf");
    let session = Session::open(gateway.address, "/servers/deaf/mcp");
    let text = "x".repeat(1 << 20);
    // More than all buffers of the system on the way hold.
    let calls = (0..24).map(|id| session.send("POST", &[BOTH], &call(id, "echo", json!({"text": &text}))));
    let calls: Vec<Wire> = calls.collect();
    let answers: Vec<String> = calls.into_iter().map(|mut wire| wire.answer().body).collect();
    let with = |words: &str| answers.iter().filter(|answer| answer.contains(words)).count();
    // The last one may arrive after its end.
    let (busy, gone, late) = (with("is congested"), with("disconnected"), with("is not connected"));
    assert!(busy > 0 && gone > 0 && busy + gone + late == 24, "{answers:?}");
    eventually("the link is given up", || status(gateway.address)["tables"]["links"] == 0);
    let gone = session.post(&request(1, "tools/list", json!({})));
    assert!(gone.body.contains("not connected"), "{gone:?}");
    drop(raw);
}

const TWO: [&str; 4] = ["--auth-token", "one", "--auth-token", "two"];
const SHARE: &str = "share";

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

fn open_with(gateway: &Gateway, path: &str, token: &str) -> Session {
    Session::open_as(gateway.address, path, "2025-11-25", &[&bearer(token)])
}

/// With two principals, neither gets more than half of the calls of a server; a single one gets all
/// of them.
#[test]
fn calls_of_a_server_are_shared_among_principals() {
    for (tokens, max) in [(&TWO[..2], 4), (&TWO[..], 2)] {
        let gateway = Gateway::start(&[tokens, &["--max-calls-per-server", "4"]].concat());
        let edge = gateway.edge_with("s", &[], &["--header", "Authorization: Bearer one"]);
        let one = open_with(&gateway, "/mcp", "one");
        let hold = |session: &Session, key: &str| {
            let held = session.send("POST", &[BOTH], &call(key, "s_hold", json!({"key": key})));
            edge.wait_for(&format!("\"{key}\""));
            held
        };
        let mut held: Vec<Wire> = (0..max).map(|n| hold(&one, &format!("k{n}"))).collect();
        // Another session of the same principal.
        let other = open_with(&gateway, "/mcp", "one");
        let busy = error(&other, 3, "s_echo", json!({"text": "x"}));
        assert_eq!(busy["code"], -32000, "{busy}");
        let why = busy["message"].as_str().unwrap();
        assert!(why.contains("--max-calls-per-server"), "{why}");
        assert_eq!(why.contains(SHARE), max == 2, "{why}");
        if max == 2 {
            let two = open_with(&gateway, "/mcp", "two");
            held.extend((0..2).map(|n| hold(&two, &format!("t{n}"))));
        }
        // A call that ends frees its slot.
        let cancelled = json!({"requestId": "k0", "reason": "enough"});
        let told = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": cancelled});
        assert_eq!(one.post(&told.to_string()).status, 202);
        assert_eq!(other.call_text("s_echo", json!({"text": "again"})), "again");
    }
}

/// With two principals, neither gets more than half of the processes of a server.
#[test]
fn isolated_processes_are_shared_among_principals() {
    for (tokens, max) in [(&TWO[..2], 4), (&TWO[..], 2)] {
        let gateway = Gateway::start(tokens);
        let flags =
            ["--header", "Authorization: Bearer one", "--sessions", "isolated", "--max-sessions", "4"];
        let _edge = gateway.edge_with("s", &["--session"], &flags);
        let open = |token| open_with(&gateway, "/mcp", token);
        let all: Vec<Session> = (0..=max).map(|_| open("one")).collect();
        for session in &all[..max] {
            session.call_text("s_echo", json!({"text": "x"}));
        }
        let busy = error(&all[max], 3, "s_echo", json!({"text": "x"}));
        let why = busy["message"].as_str().unwrap();
        assert!(busy["code"] == -32000 && why.contains("--max-sessions"), "{busy}");
        assert_eq!(why.contains(SHARE), max == 2, "{why}");
        if max == 2 {
            for _ in 0..2 {
                open("two").call_text("s_echo", json!({"text": "x"}));
            }
        }
        assert_eq!(all[0].send("DELETE", &[], "").answer().status, 204);
        assert_eq!(all[max].call_text("s_echo", json!({"text": "again"})), "again");
    }
}

/// Registers a server that can resume, over a link with this token.
fn register(gateway: &Gateway, token: &str, name: &str) -> (End, String) {
    let mut end = End::connect(gateway.address, Some(token));
    end.say(&format!(
        r#"{{"jsonrpc":"2.0","id":"{name}","method":"register","params":{{"name":"{name}","capabilities":{{"mcpport":{{"resume":{{}}}}}}}}}}"#
    ));
    let answer = match end.0.read().unwrap() {
        Message::Text(text) => text.to_string(),
        other => format!("{other:?}"),
    };
    (end, answer)
}

/// Returns the response to one more link with this token.
fn refused_link(gateway: &Gateway, token: &str) -> Answer {
    let lines = [host(gateway.address), bearer(token)];
    let lines: Vec<&str> = lines.iter().map(String::as_str).chain(UPGRADE.iter().copied()).collect();
    ask(&mut Wire::connect(gateway.address), "GET", "/mcp/register", &lines, "")
}

/// With two principals, neither gets more than half of the links, or of the servers.
#[test]
fn links_are_shared_among_principals() {
    let gateway = Gateway::start(&[&TWO[..], &["--max-links", "4"]].concat());
    let (first, answer) = register(&gateway, "one", "a");
    assert!(answer.contains("received"), "{answer}");
    let (_second, answer) = register(&gateway, "one", "b");
    assert!(answer.contains("received"), "{answer}");
    let refused = refused_link(&gateway, "one");
    assert_eq!((refused.status, refused.field("retry-after")), (503, Some("1")), "{refused:?}");
    assert_eq!(refused.body, "this principal has reached its share of the links (half of --max-links)\n");
    // A server whose link is lost keeps its slot; its link does not.
    drop(first);
    gateway.program.wait_for("server 'a' is reconnecting");
    let (_third, answer) = register(&gateway, "one", "c");
    let share = "this principal has reached its share of the registered servers (half of --max-links)";
    assert!(answer.contains("code: Again") && answer.contains(share), "{answer}");
    let others = ["d", "e"].map(|name| register(&gateway, "two", name));
    assert!(others.iter().all(|(_, answer)| answer.contains("received")));
    let single = Gateway::start(&["--auth-token", "one", "--max-links", "4"]);
    let all = ["a", "b", "c", "d"].map(|name| register(&single, "one", name));
    assert!(all.iter().all(|(_, answer)| answer.contains("received")));
    assert_eq!(refused_link(&single, "one").body, "too many registered servers (--max-links)\n");
}
