//! The edge with servers that speak MCP 2026-07-28, or die of its first request. The gateway is one
//! frame after the other.

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{directory, frames::End, harness::Edge, session::value};

const RECEIVED: &str =
    r#"{"status":"received","id":"x","message":"hi","capabilities":{"mcpport":{"era":{}}}}"#;
/// The answer of a gateway of before.
const RECEIVED_BEFORE: &str =
    r#"{"status":"received","id":"x","message":"hi","capabilities":{"mcpport":{}}}"#;

/// Starts `register` with a fake server, and accepts its registration with `answer`. Returns the
/// capability of the registration, too.
#[track_caller]
fn registered(
    server: &[&str],
    register: &[&str],
    variables: &[(&str, &str)],
    answer: &str,
) -> (Edge, End, Value) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/mcp/register", listener.local_addr().unwrap());
    let edge = Edge::start_in(&url, "s", server, register, variables);
    let mut end = End::accept(&listener);
    let registration = value(&end.next());
    end.say(answer);
    (edge, end, registration["params"]["capabilities"]["mcpport"].clone())
}

/// A request of MCP 2026-07-28.
fn request(id: u64, method: &str, mut params: Value) -> String {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string()
}

fn initialize(id: u64) -> String {
    let params = json!({"protocolVersion": "2025-11-25", "capabilities": {}});
    json!({"jsonrpc": "2.0", "id": id, "method": "initialize", "params": params}).to_string()
}

#[track_caller]
fn ask(end: &mut End, frame: &str) -> Value {
    end.say(frame);
    value(&end.next())
}

#[test]
fn era_flag_and_variable_are_offered() {
    for (flags, variables, word) in [
        (&[][..], &[][..], "auto"),
        (&["--era", "legacy"], &[], "legacy"),
        (&[], &[("MCPPORT_ERA", "modern")], "modern"),
        (&["--era", "auto"], &[("MCPPORT_ERA", "modern")], "auto"),
    ] {
        let (_edge, _end, offered) = registered(&[], flags, variables, RECEIVED);
        assert_eq!(offered["era"], word, "{flags:?} {variables:?}");
    }
}

#[test]
fn a_restart_of_a_modern_server_is_reported_to_a_gateway_that_asks_for_it() {
    for (answer, reports) in [(RECEIVED, true), (RECEIVED_BEFORE, false)] {
        let server = ["--era", "modern"];
        let (edge, mut end, _) = registered(&server, &["--restart", "always"], &[], answer);
        let discovered = ask(&mut end, &request(1, "server/discover", json!({})));
        assert_eq!(discovered["result"]["supportedVersions"], json!(["2026-07-28"]));
        let crash = request(2, "tools/call", json!({"name": "crash"}));
        let failed = &ask(&mut end, &crash)["error"];
        assert_eq!((&failed["code"], &failed["data"]), (&json!(-32603), &json!({"exited": true})));
        if reports {
            assert_eq!(end.next(), r#"{"status":"restarted"}"#, "before anything else");
        }
        edge.nth_server_pid(2);
        assert_eq!(ask(&mut end, &request(3, "tools/list", json!({})))["id"], 3);
        assert_eq!(edge.count("initialize"), 0);
    }
}

#[test]
fn a_server_that_dies_of_the_probe_gets_initialize_in_its_next_process() {
    let starts = directory("starts").join("starts");
    let server = ["--probe", "die", "--starts", starts.to_str().unwrap()];
    let (edge, mut end, _) = registered(&server, &["--restart", "never"], &[], RECEIVED);
    let died = &ask(&mut end, &request(1, "server/discover", json!({})))["error"];
    assert_eq!(died["data"], json!({"exited": true}));
    end.say(&initialize(2));
    let initialized = value(&end.find(|frame| !frame.contains("restarted")));
    assert_eq!((&initialized["id"], initialized.get("error")), (&json!(2), None));
    assert_eq!(std::fs::read_to_string(&starts).unwrap().lines().count(), 2);
    edge.program.wait_for("may not know server/discover, and is started again");
    // The policy applies to what follows.
    let (mut program, mut end) = (edge.program, end);
    end.say(
        &json!({"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": {"name": "crash"}}).to_string(),
    );
    end.close_reason();
    assert_eq!(program.ended().code, Some(1));
}

#[test]
fn subscriptions_survive_a_new_link_and_hold_up_no_stop() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/mcp/register", listener.local_addr().unwrap());
    let edge = Edge::start(&url, "s", &["--era", "modern"], &[]);
    let filter = json!({"notifications": {"toolsListChanged": true}});
    let mut end = End::accept(&listener);
    end.next();
    end.say(RECEIVED);
    for link in 0..3 {
        let accepted = ask(&mut end, &request(1, "subscriptions/listen", filter.clone()));
        let subscription =
            |note: &Value| note["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"].clone();
        assert_eq!(subscription(&accepted), 1, "link {link}");
        end.say(&request(2, "tools/call", json!({"name": "change"})));
        let changed = value(&end.next());
        assert_eq!(changed["method"], "notifications/tools/list_changed");
        assert_eq!(subscription(&changed), 1, "link {link}");
        assert_eq!(value(&end.next())["id"], 2);
        if link < 2 {
            drop(end);
            end = End::accept(&listener);
            end.next();
            end.say(RECEIVED);
        }
    }
    let begun = Instant::now();
    let mut program = edge.program;
    program.signal(Signal::TERM);
    end.close_reason();
    assert_eq!(program.ended().code, Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}
