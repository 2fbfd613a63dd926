//! Many list changes at once: each client gets few notifications, and then requests the lists.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    frames::End,
    harness::{Gateway, eventually},
    hostile::status,
    session::Session,
};

/// Registers a server with this name and one tool, and waits until the tool is listed.
fn register(gateway: &Gateway, name: &str) -> End {
    register_with(gateway, name, "{}")
}

fn register_with(gateway: &Gateway, name: &str, capabilities: &str) -> End {
    let mut end = End::connect(gateway.address, None);
    end.say(&format!(
        r#"{{"jsonrpc":"2.0","id":"{name}","method":"register","params":{{"name":"{name}","capabilities":{capabilities}}}}}"#
    ));
    end.list();
    // Answered in order, so the list has been read by then.
    end.say(r#"{"jsonrpc":"2.0","id":"listed","method":"ping"}"#);
    end.find(|frame| frame.contains("\"listed\""));
    end
}

fn tools(session: &Session) -> usize {
    session.ask("tools/list", json!({}))["result"]["tools"].as_array().unwrap().len()
}

const CHANGED: &str = "notifications/tools/list_changed";

#[test]
fn many_registrations_cause_few_notifications() {
    let gateway = Gateway::start(&[]);
    let session = Session::open(gateway.address, "/mcp");
    let mut listening = session.listen(None);
    assert_eq!(listening.next().data.as_deref(), Some(""));
    let begun = Instant::now();
    let _first = register(&gateway, "first");
    assert_eq!(listening.message()["method"], CHANGED);
    assert!(begun.elapsed() < Duration::from_secs(10), "the first notification is not delayed");
    let begun = Instant::now();
    let all: Vec<End> = (0..40).map(|number| register(&gateway, &format!("s{number}"))).collect();
    assert_eq!(tools(&session), all.len() + 2);
    assert_eq!(listening.message()["method"], CHANGED, "the last change is notified, too");
    let pauses = begun.elapsed().as_millis() as usize / 500;
    assert_eq!(session.send("DELETE", &[], "").answer().status, 204);
    let rest = listening.all().len();
    assert!(rest <= pauses + 1, "{rest} more notices in {pauses} pauses");
}

/// Whether the gateway is still waiting for them or not, clients are not notified of each.
#[test]
fn many_lost_links_cause_few_notifications() {
    for capabilities in ["{}", r#"{"mcpport":{"resume":{}}}"#] {
        let gateway = Gateway::start(&["--max-links", "400", "--resume-window", "1"]);
        let all = (0..300).map(|number| register_with(&gateway, &format!("s{number}"), capabilities));
        let all: Vec<End> = all.collect();
        let session = Session::open(gateway.address, "/mcp");
        let mut listening = session.listen(None);
        assert_eq!(listening.next().data.as_deref(), Some(""));
        let begun = Instant::now();
        drop(all);
        assert_eq!(listening.message()["method"], CHANGED);
        eventually("all are gone", || status(gateway.address)["tables"]["servers"] == 0);
        assert_eq!(tools(&session), 1, "the gateway's own");
        let pauses = begun.elapsed().as_millis() as usize / 500;
        assert_eq!(session.send("DELETE", &[], "").answer().status, 204);
        let rest = listening.all().len();
        assert!(rest <= pauses + 1, "{rest} more notices in {pauses} pauses");
    }
}

/// An absent client finds one notification of a kind, however many changes there were.
#[test]
fn an_absent_client_gets_one_notification_per_kind() {
    let gateway = Gateway::start(&[]);
    let session = Session::open(gateway.address, "/mcp");
    let mut listening = session.listen(None);
    let last = listening.next().id.unwrap();
    drop(listening);
    eventually("the stream rests", || status(gateway.address)["tables"]["streams"] == 0);
    let begun = Instant::now();
    let mut last_one = register(&gateway, "s");
    while begun.elapsed() < Duration::from_millis(1600) {
        drop(last_one);
        eventually("it is gone", || status(gateway.address)["tables"]["servers"] == 0);
        last_one = register(&gateway, "s");
    }
    assert_eq!(tools(&session), 2);
    let listening = session.listen(Some(&last));
    // The session ends after its pending messages.
    assert_eq!(session.send("DELETE", &[], "").answer().status, 204);
    let told: Vec<Value> = listening.all();
    assert!(
        !told.is_empty() && told.iter().all(|message| message["method"] == CHANGED),
        "{} messages",
        told.len()
    );
    assert!(told.len() <= 2, "one that waited, and one for the last pause, not {}", told.len());
}

/// More servers than one step handles: each of them is in each list once.
#[test]
fn lists_of_many_servers_are_complete() {
    let gateway = Gateway::start(&["--max-links", "400"]);
    let names: Vec<String> = (0..200).map(|number| format!("s{number}")).collect();
    let all: Vec<End> = names.iter().map(|name| register(&gateway, name)).collect();
    let session = Session::open(gateway.address, "/mcp");
    let named = |list: &Value| -> Vec<String> {
        let servers = list.as_array().unwrap().iter();
        servers.map(|server| server["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(named(&status(gateway.address)["servers"]), names);
    let answer = session.ask("tools/call", json!({"name": "list_servers", "arguments": {}}));
    let result = &answer["result"];
    assert_eq!(named(&result["structuredContent"]["servers"]), names);
    let texts = result["content"].as_array().unwrap().iter();
    let texts: Vec<Value> = texts.map(|text| crate::session::value(text["text"].as_str().unwrap())).collect();
    assert_eq!(named(&Value::Array(texts)), names);
    assert_eq!(status(gateway.address)["tables"]["servers"], all.len());
}
