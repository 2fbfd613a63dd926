//! Clients of MCP 2026-07-28 without a session, through the real programs.

use std::{fs, net::SocketAddr};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    directory,
    harness::{Edge, Gateway, eventually, kill},
    relay::Relay,
    session::{BOTH, Events, Session, events, value},
    wire::{Answer, Wire, host, text},
};

const SERVER: &str = "/servers/s/mcp";
const SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";

/// A client of an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    pub address: SocketAddr,
    pub target: &'a str,
    /// Further header lines.
    pub lines: &'a [&'a str],
}

impl<'a> Client<'a> {
    pub fn new(gateway: &Gateway, target: &'a str) -> Self {
        Self { address: gateway.address, target, lines: &[] }
    }

    /// Sends a request over a new connection, without reading the response.
    #[track_caller]
    pub fn send(&self, id: &Value, method: &str, params: Value) -> Wire {
        self.send_as(BOTH, id, method, params)
    }

    fn send_as(&self, accept: &str, id: &Value, method: &str, mut params: Value) -> Wire {
        params["_meta"]["io.modelcontextprotocol/protocolVersion"] = json!("2026-07-28");
        if params["_meta"].get("io.modelcontextprotocol/clientCapabilities").is_none() {
            params["_meta"]["io.modelcontextprotocol/clientCapabilities"] = json!({});
        }
        let mut lines = vec![
            host(self.address),
            accept.to_owned(),
            "MCP-Protocol-Version: 2026-07-28".into(),
            format!("Mcp-Method: {method}"),
        ];
        if let Some(name) = params["name"].as_str().or_else(|| params["uri"].as_str()) {
            lines.push(format!("Mcp-Name: {name}"));
        }
        lines.extend(self.lines.iter().map(ToString::to_string));
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let body = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string();
        let mut wire = Wire::connect(self.address);
        wire.send(text("POST", self.target, &lines, &body));
        wire
    }

    /// Sends a request, and returns the whole response.
    #[track_caller]
    pub fn post(&self, method: &str, params: Value) -> Answer {
        self.send(&json!(1), method, params).answer()
    }

    /// Sends a request, and returns its response, which is the last message.
    #[track_caller]
    pub fn ask(&self, method: &str, params: Value) -> Value {
        let answer = self.post(method, params);
        match answer.body.rsplit_once("data: ") {
            Some((_, last)) => value(last.lines().next().unwrap()),
            None => value(&answer.body),
        }
    }

    /// Calls a tool, and returns the first text of its result.
    #[track_caller]
    pub fn call(&self, tool: &str, arguments: Value) -> String {
        let response = self.ask("tools/call", json!({"name": tool, "arguments": arguments}));
        response["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{response}")).to_owned()
    }

    /// Listens, and returns what is acknowledged.
    #[track_caller]
    fn listen(&self, id: impl Into<Value>, filter: Value) -> (Events, Value) {
        let id = id.into();
        let wire = self.send(&id, "subscriptions/listen", json!({"notifications": filter}));
        let mut listen = events(wire);
        let first = listen.message();
        assert_eq!(first["method"], "notifications/subscriptions/acknowledged");
        assert_eq!(first["params"]["_meta"][SUBSCRIPTION], id);
        let honoured = first["params"]["notifications"].clone();
        (listen, honoured)
    }

    fn touch(&self, tool: &str, arguments: Value) {
        assert_eq!(self.call(tool, arguments), "touched");
    }
}

#[track_caller]
fn modern(gateway: &Gateway, name: &str, server: &[&str]) -> Edge {
    let server = [&["--era", "modern"], server].concat();
    let edge = gateway.edge_with(name, &server, &["--era", "modern", "--restart", "always"]);
    edge.program.wait_for("registration complete");
    edge
}

/// The short form of a notification: what has changed, under which id.
#[track_caller]
fn change(listen: &mut Events) -> (String, Value) {
    let message = listen.message();
    let method = message["method"].as_str().unwrap().trim_start_matches("notifications/").to_owned();
    let params = &message["params"];
    let what = params["uri"].as_str().map_or(method, str::to_owned);
    (what, params["_meta"][SUBSCRIPTION].clone())
}

#[track_caller]
fn next_is(listen: &mut Events, what: &str, id: impl Into<Value>) {
    assert_eq!(change(listen), (what.to_owned(), id.into()));
}

/// All lists, and these resources.
fn all(uris: &[&str]) -> Value {
    json!({
        "toolsListChanged": true, "promptsListChanged": true, "resourcesListChanged": true,
        "resourceSubscriptions": uris,
    })
}

#[test]
fn listens_are_acknowledged_with_what_the_server_reports() {
    let gateway = Gateway::start(&[]);
    let _edge = modern(&gateway, "s", &["--rich"]);
    let client = Client::new(&gateway, SERVER);
    for (id, filter, expected) in [
        (json!(1), json!({}), json!({})),
        (json!("1"), json!({"toolsListChanged": true}), json!({"toolsListChanged": true})),
        (json!(""), all(&["a://one", "x://none"]), all(&["a://one"])),
        (json!(-1.5), json!({"resourceSubscriptions": ["x://none"]}), json!({})),
        (json!(2), json!({"taskIds": ["t"], "toolsListChanged": false}), json!({})),
    ] {
        let (_listen, honoured) = client.listen(id, filter);
        assert_eq!(honoured, expected);
    }
    // Some lists of all servers are not there yet.
    let (_listen, honoured) =
        Client::new(&gateway, "/mcp").listen(1, all(&["s+a://one", "x://none", "s+x://none"]));
    assert_eq!(honoured, all(&["s+a://one"]));
    for (filter, expected) in [
        (json!(null), "notifications is no object"),
        (json!({"toolsListChanged": 1}), "toolsListChanged is neither true nor false"),
    ] {
        let answer = client.post("subscriptions/listen", json!({"notifications": filter}));
        assert_eq!(answer.status, 200);
        let error = &value(&answer.body)["error"];
        assert_eq!((&error["code"], error["message"].as_str()), (&json!(-32602), Some(expected)));
    }
    let params = json!({"notifications": {}});
    let answer =
        client.send_as("Accept: application/json", &json!(1), "subscriptions/listen", params).answer();
    assert_eq!(answer.status, 406);
    let unknown = Client::new(&gateway, "/servers/nobody/mcp");
    let error = &unknown.ask("subscriptions/listen", json!({"notifications": {}}))["error"];
    assert_eq!(error["message"], "server 'nobody' is not connected");
}

#[test]
fn listens_get_each_change_once_under_their_own_id() {
    let gateway = Gateway::start(&[]);
    let edge = modern(&gateway, "s", &["--rich"]);
    let client = Client::new(&gateway, SERVER);
    let (mut first, _) = client.listen(1, all(&["a://one"]));
    let (mut second, _) = client.listen("1", json!({"resourceSubscriptions": ["a://one", "a://other"]}));
    let (mut every, _) = Client::new(&gateway, "/mcp").listen(7, all(&["s+a://one"]));
    client.touch("touch", json!({"uri": "a://one/below"}));
    next_is(&mut first, "a://one/below", 1);
    next_is(&mut second, "a://one/below", "1");
    next_is(&mut every, "s+a://one/below", 7);
    client.touch("touch", json!({"uri": "a://other"}));
    next_is(&mut second, "a://other", "1");
    client.call("change", json!({}));
    next_is(&mut first, "tools/list_changed", 1);
    client.touch("touch", json!({"uri": "a://one"}));
    next_is(&mut first, "a://one", 1);
    next_is(&mut second, "a://one", "1");
    // Of all servers, lists are reported once the gateway has listed them again.
    let mut got = vec![change(&mut every).0, change(&mut every).0];
    got.sort();
    assert_eq!(got, ["s+a://one", "tools/list_changed"]);
    let listens = |count: usize| {
        eventually(&format!("the server has {count} listens"), || {
            let open: Value = value(&client.call("listens", json!({})));
            open.as_object().unwrap().len() == count
        });
    };
    // However many clients listen, the gateway listens once.
    listens(1);
    assert!(edge.count("subscriptions/listen") <= 4);
    drop((first, second, every));
    listens(1);
}

#[test]
fn listens_at_a_server_of_an_earlier_version_count_as_subscriptions() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge_with("s", &["--session"], &[]);
    let _lists = gateway.edge_with("t", &["--rich"], &[]);
    let client = Client::new(&gateway, SERVER);
    let (mut first, honoured) = client.listen(1, all(&["test://a", "test://b"]));
    assert_eq!(honoured, json!({"resourceSubscriptions": ["test://a", "test://b"]}));
    let (second, honoured) = Client::new(&gateway, "/mcp").listen(2, all(&["s+test://a", "test://c"]));
    assert_eq!(honoured, all(&["s+test://a"]));
    let session = Session::open(gateway.address, SERVER);
    assert!(session.ask("resources/subscribe", json!({"uri": "test://b"}))["error"].is_null());
    client.call("touch", json!({"uri": "test://b"}));
    next_is(&mut first, "test://b", 1);
    let (mut lists, honoured) = Client::new(&gateway, "/servers/t/mcp").listen(3, all(&[]));
    assert_eq!(honoured["toolsListChanged"], true);
    Client::new(&gateway, "/servers/t/mcp").call("change", json!({}));
    next_is(&mut lists, "tools/list_changed", 3);
    drop((first, second));
    edge.wait_for(r#""resources/unsubscribe","params":{"uri":"test://a"}"#);
    assert_eq!(
        edge.count(r#""resources/unsubscribe","params":{"uri":"test://b"}"#),
        0,
        "the session has that"
    );
    assert_eq!(session.ask("resources/unsubscribe", json!({"uri": "test://b"}))["result"], json!({}));
    edge.wait_for(r#"resources/unsubscribe"#);
}

#[test]
fn listens_survive_a_restart_and_the_loss_of_their_server() {
    let gateway = Gateway::start(&["--resume-window", "0"]);
    let edge = modern(&gateway, "s", &["--rich"]);
    let client = Client::new(&gateway, SERVER);
    let (mut listen, _) = client.listen(1, all(&["a://one"]));
    let lists = |listen: &mut Events| {
        let mut got: Vec<String> = Vec::new();
        while got.len() < 3 {
            let (what, id) = change(listen);
            assert_eq!(id, 1);
            if !got.contains(&what) {
                got.push(what);
            }
        }
        got.sort();
        assert_eq!(got, ["prompts/list_changed", "resources/list_changed", "tools/list_changed"]);
    };
    let reports = |listen: &mut Events| {
        eventually("the server is listened to again", || {
            client.call("listens", json!({})).contains("a://one")
        });
        client.touch("touch", json!({"uri": "a://one"}));
        // A list that changed while the listen was away may be reported more than once.
        while change(listen).0 != "a://one" {}
    };
    kill(edge.server_pid());
    edge.nth_server_pid(2);
    lists(&mut listen);
    reports(&mut listen);
    drop(edge);
    gateway.program.wait_for("server 's' removed");
    let _edge = modern(&gateway, "s", &["--rich"]);
    lists(&mut listen);
    reports(&mut listen);
}

/// The server keeps running, and knows listens of the earlier link.
#[test]
fn listens_survive_a_new_link() {
    let gateway = Gateway::start(&["--resume-window", "0"]);
    let relay = Relay::to(gateway.address);
    let edge = Edge::start(&relay.url(), "s", &["--era", "modern", "--rich"], &["--era", "modern"]);
    edge.program.wait_for("registration complete");
    let client = Client::new(&gateway, SERVER);
    let (mut listen, _) = client.listen("one", all(&["a://one"]));
    for link in 2..4 {
        relay.cut();
        edge.program.wait_for_nth("registration complete", link);
        eventually("the server is listened to again", || {
            let open = value(&client.call("listens", json!({})));
            open.as_object().unwrap().values().any(|filter| filter.to_string().contains("a://one"))
        });
        client.touch("touch", json!({"uri": "a://one"}));
        let mut got = Vec::new();
        while got.last().is_none_or(|last| last != "a://one") {
            got.push(change(&mut listen).0);
        }
        assert!(got.contains(&"tools/list_changed".to_owned()), "{got:?}");
        client.touch("touch", json!({"uri": "a://one/again"}));
        next_is(&mut listen, "a://one/again", "one");
    }
}

#[test]
fn listens_end_with_their_token_their_limit_and_the_gateway() {
    let file = directory("listens").join("tokens");
    fs::write(&file, "register:r\nclient@a:a\nclient@b:b\n").unwrap();
    let mut gateway = Gateway::start(&["--auth-token-file", file.to_str().unwrap()]);
    let bearer = ["--era", "modern", "--header", "Authorization: Bearer r"];
    let edge = gateway.edge_with("s", &["--era", "modern"], &bearer);
    edge.program.wait_for("registration complete");
    let [one, other] = ["Authorization: Bearer a", "Authorization: Bearer b"];
    let client = |lines| Client { lines, ..Client::new(&gateway, SERVER) };
    let (lines_one, lines_other) = ([one], [other]);
    let (a, b) = (client(&lines_one), client(&lines_other));
    let tools = || json!({"toolsListChanged": true});
    let (mut revoked, _) = a.listen(1, tools());
    let (mut last, _) = b.listen("last", tools());
    let more: Vec<_> = (0..31).map(|id| b.listen(id, tools())).collect();
    let refused = b.ask("subscriptions/listen", json!({"notifications": {}}));
    assert_eq!(refused["error"]["code"], -31000, "{refused}");
    drop(more);
    eventually("there is room again", || {
        let refused = b.send(&json!(1), "subscriptions/listen", json!({"notifications": {}})).head().unwrap();
        refused.field("content-type") == Some("text/event-stream")
    });
    fs::write(&file, "register:r\nclient@b:b\n").unwrap();
    gateway.program.signal(Signal::HUP);
    gateway.program.wait_for("reloaded");
    revoked.ended();
    b.call("change", json!({}));
    next_is(&mut last, "tools/list_changed", "last");
    gateway.program.signal(Signal::TERM);
    let end = last.message();
    assert_eq!((&end["id"], &end["result"]["resultType"]), (&json!("last"), &json!("complete")));
    last.ended();
    gateway.program.ended();
    drop(edge);
}

#[test]
fn sessions_subscribe_to_resources_of_a_modern_server() {
    let gateway = Gateway::start(&[]);
    let edge = modern(&gateway, "s", &["--rich"]);
    let client = Client::new(&gateway, SERVER);
    for (target, prefix) in [(SERVER, ""), ("/mcp", "s+")] {
        let session = Session::open(gateway.address, target);
        let mut stream = session.listen(None);
        stream.next();
        let uri = |own: &str| json!({"uri": format!("{prefix}{own}")});
        assert_eq!(session.ask("resources/subscribe", uri("a://one"))["result"], json!({}));
        let refused = &session.ask("resources/subscribe", uri("x://none"))["error"];
        assert_eq!(refused["code"], -32602, "{refused}");
        client.touch("touch", json!({"uri": "a://one"}));
        let updated = stream.message();
        assert_eq!(updated["params"]["uri"], uri("a://one")["uri"]);
        assert!(updated["params"]["_meta"].get(SUBSCRIPTION).is_none(), "{updated}");
        client.call("change", json!({}));
        let changed = stream.message();
        assert_eq!(changed["method"], "notifications/tools/list_changed");
        assert!(changed["params"]["_meta"].get(SUBSCRIPTION).is_none(), "{changed}");
        assert_eq!(session.ask("resources/unsubscribe", uri("a://one"))["result"], json!({}));
        client.touch("touch", json!({"uri": "a://one"}));
        client.call("change", json!({}));
        assert_eq!(stream.message()["method"], "notifications/tools/list_changed");
    }
    assert_eq!(edge.count("resources/subscribe") + edge.count("resources/unsubscribe"), 0);
}
